"""Recomputation of a run's steps in a child process, and their comparison with the recorded metrics."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from harness.artifacts import Dataset, Machine, Manifest, Plan
from harness.artifacts.verdict import Replay
from harness.download.cache import WEIGHTS, check_may_fetch
from harness.errors import HarnessError
from harness.flow.chain import Chain
from harness.flow.device import prepare_jax
from harness.flow.trainer import Trainer
from harness.received.files import ARTIFACT_BYTES, check_stays, read_received, there, walk
from harness.received.text import word
from harness.run.cluster import COUNT
from harness.run.directory import KERNELS, RunDir
from harness.run.steps import whole_steps
from harness.run.surroundings import is_deterministic
from harness.run.watcher import Watcher
from harness.run.xla_flags import in_order
from harness.verify.replay import OTHER_DEVICE_TOLERANCE, compare_metrics, recorded_metrics


class Again(NamedTuple):
    """The inputs for recomputing the steps of `run`.

    `chain` makes the parts in a scratch run. Without a `dataset` nothing can be computed. `device` is the
    requested one.
    """

    run: RunDir
    manifest: Manifest
    chain: Chain
    machine: Machine
    dataset: Dataset | None
    device: str | None
    watcher: Watcher

    def replay(self, recorded: dict[int, dict[str, float]], start: int, steps: int) -> Replay:
        """The comparison of `steps` steps from `start` on with `recorded`.

        If the steps cannot be computed, its note says why.

        Raises: HarnessError "checkpoint-missing" when the run has no whole step `start`.
        """
        try:
            self._compute(start, steps)
        except HarnessError as error:
            if error.code == "checkpoint-missing":
                raise
            nothing = compare_metrics(recorded, {}, start=start, tolerance=0.0, device="none")
            # A checkpoint that changed after it was saved is a difference, not a missing answer.
            changed = (
                {"status": "differs", "first": error.what}
                if error.code == "checkpoint-damaged" and start
                else {}
            )
            return nothing.model_copy(update={"note": str(error)} | changed)
        remade = self._made.read(Manifest)
        kind = remade.device if remade is not None else self.manifest.device
        why_not = None if remade is None else _why_not_exact(self.manifest, remade)
        exact = remade is not None and why_not is None
        note = (
            "bit for bit"
            if exact
            else f"within a tolerance: {why_not or 'what it was computed on is not known'}"
        )
        lines = recorded_metrics(self._made.metrics)
        return compare_metrics(
            recorded,
            {step: values for step, values in lines.items() if step >= start},
            start=start,
            tolerance=0.0 if exact else OTHER_DEVICE_TOLERANCE,
            device=kind,
            note=note,
        )

    @property
    def _made(self) -> RunDir:
        assert self.chain.run is not None
        return self.chain.run

    def _compute(self, start: int, steps: int) -> None:
        """Trains the steps. The run of `chain` then has their metrics.

        Raises: HarnessError of whatever prevents the computation.
        """
        run, made = self.run, self._made
        if self.dataset is None:
            raise HarnessError(
                "dataset-unreadable", "the data cannot be read here", fix="give the data as it was"
            )
        check_may_fetch(self.chain.recipe.weights.source, WEIGHTS)
        trainer = self.chain.trainer.again(start)
        if start:
            _copy_step(run, made, start)
        if there(run.path / KERNELS):
            # A link must not bring in a file that is not of the run.
            try:
                kernels = read_received(run.path / KERNELS, run.path, ARTIFACT_BYTES)
            except OSError as error:
                what = f"{run.path / KERNELS} cannot be read: {error.strerror}"
                fix = f"chmod u+r {word(run.path / KERNELS)}"
                raise HarnessError("run-unreadable", what, fix=fix) from error
            made.path.mkdir(parents=True, exist_ok=True)
            (made.path / KERNELS).write_bytes(kernels)
        plan = self._plan_as_recorded(self.dataset)
        made.write(plan)
        self.watcher.say(f"computing {steps} steps again on {plan.device}")
        several = self.manifest.plan.levers.hosts > 1
        _train(made, plan, trainer, self.machine, self.watcher, several=several)

    def _plan_as_recorded(self, dataset: Dataset) -> Plan:
        """This machine's plan, with the levers of the recorded run where the platform is the same.

        Raises: HarnessError "no-gpu" and the planner's others, or "does-not-fit".
        """
        levers = self.manifest.plan.levers
        plan = self.chain.plan(
            self.machine,
            dataset,
            device=self.device or (None if levers.platform == "cuda" else "cpu"),
            exact=True,
        )
        if plan.chosen is None:
            fix = "verify it on a machine with the memory that the run had"
            raise HarnessError(
                "does-not-fit", f"no plan fits {plan.device}: {plan.candidates[-1].reason}", fix=fix
            )
        if plan.chosen.levers.platform != levers.platform:
            return plan
        # One process computes what several did, on as many devices of its own.
        levers = levers.model_copy(update={"hosts": 1})
        return plan.model_copy(update={"chosen": plan.chosen.model_copy(update={"levers": levers})})


def _why_not_exact(manifest: Manifest, remade: Manifest) -> str | None:
    """The reason why this device need not give the same bits. None if it must."""
    if remade.device != manifest.device:
        return f"another device, {remade.device} instead of {manifest.device}"
    if remade.plan.levers != manifest.plan.levers:
        return "another plan, which sums in another order"
    if manifest.plan.levers.platform == "cpu":
        was, now = (each.machine.get("processor") for each in (manifest, remade))
        return None if was == now else f"another processor, {now} instead of {was}"
    if not all(is_deterministic(each.environment) for each in (manifest, remade)):
        return "kernels that are not deterministic"
    return None if remade.kernels_sha256 == manifest.kernels_sha256 else "other kernels, chosen by timing"


def _copy_step(run: RunDir, again: RunDir, step: int) -> None:
    source = run.checkpoints / str(step)
    check_stays(source, run.path)
    steps = whole_steps(run.checkpoints)
    if step not in steps:
        raise HarnessError(
            "checkpoint-missing",
            f"{run.path} has no whole checkpoint of step {step}",
            got=f"steps {steps}",
            fix="--from one of these steps",
        )
    strays: list[Path] = []
    for path in walk(source, strays=strays):
        target = again.checkpoints / str(step) / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), target)
        except OSError:
            # On another filesystem: copy the bytes.
            shutil.copy2(path, target)
    if strays:
        raise HarnessError(
            "checkpoint-leads-out",
            f"{source} holds links or special files; nothing was computed from it",
            got=", ".join(str(path.relative_to(source)) for path in strays[:3]),
            need="regular files only",
            fix=f"look at it first: harness inspect {word(source)}",
        )


def _train(
    run: RunDir, plan: Plan, trainer: Trainer, machine: Machine, watcher: Watcher, *, several: bool
) -> None:
    """Computes the steps in a process of its own, as one of `several` would compute on CPUs."""
    from harness.supervise.process import Limits
    from harness.supervise.run import supervise

    before = dict(os.environ)
    try:
        prepare_jax(plan, machine)
        os.environ["WANDB_MODE"] = "disabled"
        # Whoever started this process: it computes alone.
        os.environ[COUNT] = "1"
        levers = plan.chosen.levers if plan.chosen is not None else None
        if levers is not None and levers.platform == "cpu" and levers.devices > 1:
            os.environ["JAX_NUM_CPU_DEVICES"] = str(levers.devices)
        if several and levers is not None and levers.platform == "cpu":
            os.environ["XLA_FLAGS"] = in_order(os.environ)
        supervise(run, plan, trainer, watcher, look=lambda: machine, limits=Limits(), restarts=0)
    finally:
        os.environ.clear()
        os.environ.update(before)
