"""The beginning of a training run: which run, which recipe, which trainer, and everything before the trainer.

In a run of several processes the first one prepares it, and the others wait (`harness.flow.together`).
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from harness.errors import HarnessError
from harness.flow.chain import Chain
from harness.flow.find import find_run, recipe_of, refuse_behind, refuse_started, trainer_of
from harness.flow.together import Lead, all_processes, follow, of_process
from harness.flow.trainer_ours import OURS
from harness.flow.training import prepare
from harness.run.cluster import COUNT
from harness.run.lock import locked

if TYPE_CHECKING:
    from harness.artifacts import Machine
    from harness.artifacts.plan import Backend
    from harness.flow.trainer import Trainer
    from harness.run.job import Job
    from harness.run.peers import Peers
    from harness.show.progress import Progress


class Asked(NamedTuple):
    """The options of `harness train` that say what is trained. `net`: bytes a second between machines;
    `profile`: steps to trace."""

    recipe: str | None
    resume: bool
    name: str | None
    steps: int | None
    device: str | None
    allow: list[str]
    backend: Backend | None
    any_commit: bool
    sets: list[str]
    run: Path | None
    net: float | None
    profile: int = 0


class Ready(NamedTuple):
    """A run that is ready to be trained by this process, which is `number` of `processes`.

    `lock` is the descriptor of the run's lock, which the first process holds.
    """

    job: Job
    machine: Machine
    trainer: Trainer
    lock: int | None
    number: int
    processes: int


def get_ready(asked: Asked, console: Progress, held: ExitStack) -> Ready:
    """The run that `asked` names, prepared. `held` keeps its lock.

    Raises: HarnessError of each part, in all processes; typer.Exit(1) if no plan fits or the doctor finds an
    error.
    """
    with all_processes(console) as peers:
        _check_net(asked, peers)
        if peers.index:
            job, machine = follow(peers, console, asked.run, asked.name, asked.device)
            # What the user has named in this process may be fetched by it.
            recipe_of(job.run, asked.recipe, [*asked.sets, *_last_step(asked)], own_first=True)
            return Ready(of_process(job, peers), machine, OURS, None, peers.index, peers.count)
        directory = find_run(asked.run, asked.name, asked.recipe, resume=asked.resume)
        directory.check_own()
        trainer, overrides = trainer_of(directory, asked.backend).told(
            asked.sets, any_commit=asked.any_commit
        )
        trainer = trainer.profiled(asked.profile)
        _refuse_upstream(trainer, peers)
        # Who names no recipe means a trained run's own: what is refused is then that it was trained.
        own_first = asked.resume or directory.started
        own = recipe_of(directory, asked.recipe, [*overrides, *_last_step(asked)], own_first=own_first)
        trainer.check(own)
        lock = held.enter_context(locked(directory.path))
        if not asked.resume:
            refuse_started(directory, named=asked.run is None)
        else:
            refuse_behind(directory, own.train.steps, trainer.name)
        chain = Chain(directory, own, trains=True, trainer=trainer)
        console.say(f"run {directory.path}: recipe {chain.recipe.name}, {chain.recipe.train.steps} steps")
        lead = Lead(peers, asked.net)
        try:
            job, machine = prepare(chain, console, asked.device, asked.allow, lead)
        except typer.Exit as ended:
            lead.end(ended.exit_code)
            raise
        lead.ready(directory)
    return Ready(of_process(job, peers), machine, trainer, lock, peers.index, peers.count)


def _check_net(asked: Asked, peers: Peers) -> None:
    """Raises: HarnessError "options-together" for the rate of a network that nothing passes."""
    if asked.net is not None and peers.count == 1:
        raise HarnessError(
            "options-together",
            "--net is for a run of several processes, and this is one",
            need="the variables of a launcher: docs/clusters.md",
            fix="leave --net out",
        )


def _last_step(asked: Asked) -> list[str]:
    return [] if asked.steps is None else [f"train.steps={asked.steps}"]


def _refuse_upstream(trainer: Trainer, peers: Peers) -> None:
    """Refuses a trainer that is one process.

    Raises: HarnessError "upstream-cannot".
    """
    if peers.count == 1 or trainer.name == OURS.name:
        return
    raise HarnessError(
        "upstream-cannot",
        f"{trainer.name}'s trainer is one process: it raises where it is one of several",
        got=f"{peers.count} processes",
        need=f"--backend {OURS.name}",
        fix=f"--backend ours; or {COUNT}=1 trains in this process alone",
    )
