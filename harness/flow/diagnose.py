"""The doctor's examination of a run that is about to start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.received.consent import is_offline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.artifacts import Dataset, HostReport, InterruptedSave, Machine, NormStats, Plan
    from harness.artifacts.doctor import Diagnosis
    from harness.artifacts.plan import Backend
    from harness.flow.chain import Chain


def diagnose(
    chain: Chain,
    machine: Machine,
    made: Plan | HarnessError,
    known: tuple[Dataset, NormStats] | None,
    *,
    allow: list[str],
    online: bool = False,
    device: str | None = None,
    hosts: Sequence[HostReport] = (),
) -> Diagnosis:
    """The doctor's findings about a run that is about to start.

    Writes doctor.json if there is a run directory. `made` is the plan, or the error that says why there is
    none.
    """
    from harness.checkpoint.policy import other_actions
    from harness.checkpoint.source import why_not
    from harness.doctor.examine import examine
    from harness.doctor.host import process_limits
    from harness.doctor.situation import Situation
    from harness.plan.cluster import slower
    from harness.run.directory import cache_root, runs_root

    run = chain.run.path if chain.run is not None else None
    situation = Situation(
        recipe=chain.recipe,
        machine=machine,
        environ=os.environ,
        run=run,
        writes=(run or runs_root(), cache_root()),
        plan=None if isinstance(made, HarnessError) else made,
        refusal=made if isinstance(made, HarnessError) else None,
        device=device,
        dataset=known[0] if known else None,
        stats=known[1] if known else None,
        leftovers=(() if chain.run is None else tuple(_leftovers(chain.run.checkpoints, chain.trainer.name))),
        limits=process_limits(),
        online=online and not is_offline(),
        python=chain.trainer.python(),
        why_not_weights=why_not,
        other_actions=other_actions,
        backend=chain.trainer.name,
        hosts=tuple(hosts),
        coordinator=_coordinator() if hosts else "",
        slower=None if isinstance(made, HarnessError) else slower(made.cluster, made.chosen),
    )
    found = examine(situation, allow=allow)
    if chain.run is not None:
        chain.run.write(found)
    return found


def _coordinator() -> str:
    """The host of the coordinator's address, as every process of the run knows it."""
    from harness.run.cluster import member_of

    member = member_of(os.environ)
    return "" if member is None else member.coordinator.rpartition(":")[0]


def data_here(chain: Chain) -> tuple[Dataset, NormStats] | None:
    """Dataset and statistics if the data lies on this machine. None if it would have to be fetched first."""
    if chain.recipe.data.away():
        return None
    found = chain.dataset()
    return found, chain.stats(found)


def plan_or_refusal(
    chain: Chain, machine: Machine, dataset: Dataset | None, device: str | None, *, allow: list[str]
) -> Plan | HarnessError:
    """The plan, or the error that says why this machine or its environment has none.

    The checks report that error. If weights on this machine cannot be the recipe's start, no plan is made and
    nothing is compiled, unless `allow` lets those weights pass.
    """
    from harness.checkpoint.source import why_not
    from harness.download.cache import is_remote

    source = chain.recipe.weights.source
    # A started run has its weights in its checkpoints.
    started = chain.run is not None and chain.run.started
    passes = started or source is None or is_remote(source) or "weights directory" in allow
    if not passes and why_not(Path(str(source)), chain.recipe) is not None:
        return HarnessError(
            "weights-first",
            "nothing is planned with weights that cannot be the recipe's start",
            fix="mend what the check of the weights names",
        )
    try:
        planned: Plan = chain.plan(machine, dataset, device=device)
    except HarnessError as refusal:
        return refusal
    return planned


def _leftovers(checkpoints: Path, backend: Backend) -> list[InterruptedSave]:
    from harness.checkpoint.scan import find, interrupted_save
    from harness.run.steps import newest_step

    try:
        found = find(checkpoints) if checkpoints.is_dir() and any(checkpoints.iterdir()) else None
        if found is None or not found.interrupted:
            return []
        newest = newest_step(checkpoints, backend)
    except HarnessError:
        # A directory without any checkpoint has no interrupted save either. `inspect` says what the directory
        # is, and which step may not be read.
        return []
    return [interrupted_save(path, newest) for path in found.interrupted]
