"""Whose episodes are evaluated: a checkpoint that is served here, a server, or a control."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.artifacts.dataset import NormStats
from harness.artifacts.setting import Evaluated, Policy
from harness.artifacts.training import Manifest
from harness.errors import HarnessError
from harness.evaluate.contract import (
    check_answer,
    check_metadata,
    check_same,
    check_statistics,
    deviations_of,
    evaluated,
    told,
)
from harness.evaluate.remote import Address, Form, Remote, too_short
from harness.evaluate.served import served
from harness.received.text import one_line
from harness.run.directory import RunDir

if TYPE_CHECKING:
    from harness.checkpoint.locate import Located
    from harness.recipe.schema import Recipe

Say = Callable[[str], None]


class Acting(NamedTuple):
    """A policy that was asked once and answered as LIBERO's robot needs it; or a control.

    `connect` makes a connection to it; None for a control. `died` says why its server has ended, if it has.
    """

    evaluated: Evaluated
    form: Form
    connect: Callable[[], Remote] | None
    died: Callable[[], HarnessError | None]
    deviations: list[str]
    unknown: dict[str, str]


class Source(NamedTuple):
    """Whose episodes they are. `name` says it without a place of this machine, as far as that is known.

    `known` are fields of `Evaluated` that are known before anything is started.

    `opened(seed, least)` is a block in which a server starts, if one is needed. What it gives waits for the
    server, and returns the acting policy.
    """

    kind: Policy
    name: str
    opened: Callable[[int, int], Any]
    known: Mapping[str, Any] = {}


def of_control(kind: Policy) -> Source:
    """A control: it acts in the simulator's own process, and needs no checkpoint."""

    @contextmanager
    def opened(_: int, least: int) -> Iterator[Callable[[], Acting]]:
        policy = Evaluated(kind=kind, name=f"the control {kind}")
        yield lambda: Acting(policy, Form(None, least), None, lambda: None, [], {})

    return Source(kind, f"the control {kind}", opened)


def of_server(address: Address) -> Source:
    """A server, ours or openpi's."""

    @contextmanager
    def opened(seed: int, least: int) -> Iterator[Callable[[], Acting]]:
        yield lambda: _asked(address, "server", seed, least, name=None, known={}, died=lambda: None)

    return Source("server", address.shown, opened)


class Checkpoint(NamedTuple):
    """A checkpoint to serve: `located` step of `recipe`, with so many Euler steps and rows of a batch.

    `options` are more of `harness serve`.
    """

    located: Located
    recipe: Recipe
    options: Sequence[str]
    steps: int
    batch: int


def of_checkpoint(checkpoint: Checkpoint, out: Path, patience_s: float, say: Say, data: Any = None) -> Source:
    """A checkpoint that is served as long as it is evaluated. What is wrong with it is said before that.

    `data` is the recipe's dataset, if it was named. The server writes its file to `out`.
    Raises: HarnessError "policy-of-another-robot", "policy-keys", "statistics-of-another-dataset"; those of
    `robot_of`.
    """
    known = _known(checkpoint, data)
    name = name_of(checkpoint.located)

    @contextmanager
    def opened(seed: int, least: int) -> Iterator[Callable[[], Acting]]:
        if checkpoint.recipe.model.action_horizon < least:
            raise too_short(checkpoint.recipe.model.action_horizon, least)
        numbers = ["--steps", str(checkpoint.steps), "--batch", str(checkpoint.batch)]
        options = [*checkpoint.options, *numbers, "--run", str(out)]
        with served(str(checkpoint.located.path), options, patience_s, say) as server:

            def died() -> HarnessError | None:
                return None if server.alive else server.died()

            yield lambda: _asked(server.ready(), "checkpoint", seed, least, name=name, known=known, died=died)

    return Source("checkpoint", name, opened, known)


def name_of(located: Located) -> str:
    """The name of a checkpoint: its run, or the last names of its path; and its step."""
    path = located.path.absolute()
    where = "/".join(path.parts[-2:]) if located.run is None else located.run.absolute().name
    return one_line(where if located.step is None else f"{where} step {located.step}")


def _known(checkpoint: Checkpoint, data: Any) -> dict[str, Any]:
    """What is known of the checkpoint without its weights, checked."""
    from harness.serve.contract import stats_sha256
    from harness.serve.robot import robot_of

    located, recipe = checkpoint.located, checkpoint.recipe.parts()[0]
    robot = robot_of(located, recipe, data)
    check_metadata({key: {"dimensions": getattr(robot, key)} for key in ("state", "actions")}, 0)
    check_metadata(_cameras(recipe), 0)
    check_statistics(robot.stats)
    manifest, own = _of_run(located)
    if own is not None:
        check_same(robot.stats, own.norm_stats, "the run that saved it")
    if data is not None:
        _check_data(checkpoint.recipe, robot.stats)
    return {
        "recipe": checkpoint.recipe.model_dump(mode="json"),
        "recipe_sha256": checkpoint.recipe.sha256(),
        "statistics": robot.stats,
        "statistics_sha256": stats_sha256(robot.stats),
        "data_sha256": None if manifest is None else [manifest.dataset_sha256],
        "sampling_steps": checkpoint.steps,
        "batch": checkpoint.batch,
    }


def _cameras(recipe: Recipe) -> dict[str, Any]:
    from harness.serve.names import Names

    names = Names(recipe.data)
    return {
        "cameras": [{"keys": keys} for keys in names.cameras.values()],
        "state": {"needed": recipe.model.discrete_state_input, "keys": [list(n) for n in names.states]},
    }


def _of_run(located: Located) -> tuple[Manifest | None, NormStats | None]:
    """The manifest and the statistics of the run that saved it; None for what cannot be read."""
    if located.run is None:
        return None, None
    run = RunDir(located.run)
    found: list[Any] = []
    for kind in (Manifest, NormStats):
        try:
            found.append(run.read(kind))
        except HarnessError:
            found.append(None)
    return found[0], found[1]


def _check_data(recipe: Recipe, stats: Any) -> None:
    """Refuses a checkpoint whose statistics are not those of the named dataset."""
    from harness.data.dataset import describe
    from harness.data.given import statistics

    described = describe(recipe)
    check_same(stats, statistics(recipe, described).norm_stats, recipe.data.dataset)


def _asked(
    address: Address,
    kind: Policy,
    seed: int,
    least: int,
    *,
    name: str | None,
    known: dict[str, Any],
    died: Callable[[], HarnessError | None],
) -> Acting:
    """The policy behind an address, after one query.

    Raises: HarnessError of the connection, of the contract and of the answer.
    """
    remote = Remote(address)
    try:
        said = told(remote.metadata)
        check_metadata(remote.metadata, least)
        form = Form(seed if said.seeded else None, least)
        horizon = check_answer(remote, form)
    finally:
        remote.close()
    own = said.recipe and f"{said.recipe}{'' if said.step is None else f' step {said.step}'}"
    policy = evaluated(kind, name or own or address.shown, said, seed=seed, horizon=horizon, **known)
    missing = "the server does not say it" if kind == "server" else "the checkpoint does not record it"
    unknown = {
        f"evaluated.{field}": missing
        for field in ("sha256", "recipe", "data_sha256", "statistics", "sampling_steps")
        if getattr(policy, field) is None
    }
    return Acting(policy, form, lambda: Remote(address), died, deviations_of(said), unknown)
