"""Who acts in an episode: the policy at the other end of the pipe, or a control whose result is known.

A control shows that the measurement works: `zero` must never succeed, `replay` must always. They are asked as
often as the policy is, so that their observations can be compared and filmed.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from harness.errors import HarnessError
from harness.simulate.environment import Environment
from harness.simulate.frames import Array
from harness.simulate.protocol import ACTION, Values
from harness.simulate.scenes import Poses

RECORDED = Path(__file__).parent / "recorded.npz"
KINDS = ("remote", "zero", "replay", "scripted")


class Control(Protocol):
    """`fixtures` are poses that its episodes need, or None for the protocol's. `chunk` is what the other end
    answered to a query, float64 [n, 7], or None. `act` gives the next action, float64 [7].
    """

    fixtures: Poses | None

    def chunk(self, actions: Array | None) -> None: ...

    def act(self, env: Environment, observation: Any) -> Array: ...


class Remote:
    """The first actions of each chunk that the other end answers."""

    fixtures: Poses | None = None

    def __init__(self, values: Values) -> None:
        self._wanted = values.replan_steps
        self._left: list[Array] = []

    def chunk(self, actions: Array | None) -> None:
        """Take the actions of a query.

        Raises: HarnessError "actions-invalid" for another shape, too few actions, or one that is no number.
        """
        if actions is None or actions.ndim != 2 or actions.shape[1] != ACTION:
            raise self._invalid(f"shape {None if actions is None else list(actions.shape)}")
        if len(actions) < self._wanted:
            raise self._invalid(f"{len(actions)} actions")
        if not np.isfinite(actions).all():
            raise self._invalid("NaN or infinity")
        self._left = list(actions[: self._wanted].astype(np.float64))

    def act(self, env: Environment, observation: Any) -> Array:  # noqa: ARG002
        return self._left.pop(0)

    def _invalid(self, got: str) -> HarnessError:
        return HarnessError(
            "actions-invalid",
            "the policy's answer cannot be executed",
            got=got,
            need=f"at least {self._wanted} actions of {ACTION} finite numbers",
            fix="serve a checkpoint of a recipe for LIBERO, whose action horizon is at least the protocol's"
            " replan_steps",
        )


class Zero:
    """The protocol's dummy action, at every step: the arm stays where it is."""

    fixtures: Poses | None = None

    def __init__(self, values: Values) -> None:
        self._action = np.array(values.dummy_action)

    def chunk(self, actions: Array | None) -> None:
        pass

    def act(self, env: Environment, observation: Any) -> Array:  # noqa: ARG002
        return self._action


class Recording(NamedTuple):
    """An episode that was recorded: `actions` float32 [n, 7], of which the last one succeeds; `fixtures` are
    the poses that it was recorded with.
    """

    suite: str
    task: int
    episode: int
    actions: Array
    fixtures: Poses

    @property
    def steps(self) -> int:
        """The step of the policy at which it succeeds."""
        return len(self.actions)


@functools.cache
def recordings() -> list[Recording]:
    """The shipped recordings: episodes of a scripted policy, made by ci/make_recorded.py."""
    found = []
    with np.load(RECORDED, allow_pickle=False) as file:
        for name in [key.removesuffix("/actions") for key in file.files if key.endswith("/actions")]:
            suite, task, episode = name.split("/")
            poses = {key.split("/")[-1]: file[key] for key in file.files if key.startswith(f"{name}/pose/")}
            found.append(Recording(suite, int(task), int(episode), file[f"{name}/actions"], poses))
    return sorted(found, key=lambda each: each[:3])


def recording(suite: str, task: int, episode: int) -> Recording:
    """The recording of that episode.

    Raises: HarnessError "recording-missing".
    """
    for each in recordings():
        if each[:3] == (suite, task, episode):
            return each
    raise HarnessError(
        "recording-missing",
        f"no episode is recorded of {suite} task {task} initial state {episode}",
        got=f"{suite}/{task}/{episode}",
        need=f"one of {', '.join('/'.join(map(str, each[:3])) for each in recordings())}",
        fix="replay only these, or take another policy",
    )


class Replay:
    """The actions of a recording, in its scene; then the protocol's dummy action."""

    def __init__(self, values: Values, of: Recording) -> None:
        self.fixtures: Poses | None = of.fixtures
        self._left = list(of.actions.astype(np.float64))
        self._after = np.array(values.dummy_action)

    def chunk(self, actions: Array | None) -> None:
        pass

    def act(self, env: Environment, observation: Any) -> Array:  # noqa: ARG002
        return self._left.pop(0) if self._left else self._after


def control(kind: str, values: Values, suite: str, task: int, episode: int) -> Control:
    """A control of that kind for one episode.

    Raises: HarnessError "control-unknown", "recording-missing".
    """
    if kind == "remote":
        return Remote(values)
    if kind == "zero":
        return Zero(values)
    if kind == "replay":
        return Replay(values, recording(suite, task, episode))
    if kind == "scripted":
        # It imports this room's environment, and is needed by this control alone.
        from harness.simulate.scripted import Script

        return Script(f"{suite}/{task}", episode, values.seed)
    raise HarnessError(
        "control-unknown",
        f"there is no control {kind!r}",
        got=kind,
        need=f"one of {', '.join(KINDS)}",
        fix="use the same version of the harness at both ends",
    )
