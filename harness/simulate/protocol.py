"""The protocols of an evaluation: files with a name, a version and every value that decides what is measured.

A value has a dotted key, so that a departure can be named by it, such as `max_steps.libero_10`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import HarnessError
from harness.received.litter import named

DIRECTORY = Path(__file__).parent / "protocols"
# Tasks of each suite. Source: LIBERO 8f1084e, libero/benchmark.
SUITES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
# robosuite ends an episode of its own at this step, so waiting and acting must be shorter.
HORIZON = 1000
ACTION = 7

Value = str | int | float | bool | None


class Shipped(NamedTuple):
    """A protocol's file. `versions` are those of the programs that it wants; `sources` say where each value
    comes from, by key, and "" where those come from that are not named.
    """

    name: str
    version: int
    values: dict[str, Value]
    versions: dict[str, str]
    sources: dict[str, str]


class Values(NamedTuple):
    """The values of a protocol, checked.

    `scenes` "serial": fixtures stand as openpi's loop leaves them, a task's environment seeded once.
    "reseeded": as LeRobot's loop leaves them, seeded anew by `seed` + episode before each reset.
    `resolution` are the pixels of a camera's side, `resize` those of the policy's picture. `max_steps` are
    steps of the policy, by suite; `wait_steps` come before them.
    """

    seed: int
    scenes: str
    episodes: int
    wait_steps: int
    replan_steps: int
    resolution: int
    resize: int
    resize_method: str
    turn: int
    image: str
    wrist_image: str
    state: str
    dummy_action: tuple[float, ...]
    clip: str
    control_hz: int
    max_steps: dict[str, int]


def names() -> list[str]:
    """The shipped protocols, in the order of the alphabet."""
    return [path.stem for path in named(DIRECTORY.iterdir(), ".json")]


def shipped(name: str) -> Shipped:
    """The shipped protocol of that name.

    Raises: HarnessError "protocol-unknown".
    """
    if name not in names():
        close = (difflib.get_close_matches(name, names(), n=1, cutoff=0.3) or names())[0]
        raise HarnessError(
            "protocol-unknown",
            f"there is no protocol {name!r}",
            got=name,
            need=f"one of {', '.join(names())}",
            fix=f"give {close}",
        )
    found = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    check(found["values"])
    return Shipped(**found)


def check(values: Mapping[str, Any]) -> Values:
    """The values by name, each of the type and in the range that an episode can be driven with.

    Raises: HarnessError "protocol-invalid".
    """
    for key in values:
        if key not in _RULES:
            close = difflib.get_close_matches(key, _RULES, n=1, cutoff=0.3)
            raise _invalid(key, "no such key", "a key of a shipped protocol", (close or ["seed"])[0])
    found: dict[str, Any] = {}
    for key, (need, read) in _RULES.items():
        if key not in values:
            raise _invalid(key, "nothing", need)
        try:
            found[key] = read(values[key])
        except (TypeError, ValueError):
            raise _invalid(key, repr(values[key])[:100], need) from None
    most = {suite: found.pop(f"max_steps.{suite}") for suite in SUITES}
    for suite, steps in most.items():
        if steps + found["wait_steps"] > HORIZON:
            raise _invalid(
                f"max_steps.{suite}",
                steps,
                f"at most {HORIZON} steps together with {found['wait_steps']} of waiting",
            )
    found.pop("success")
    cameras = {name: found.pop(f"camera.{name}") for name in ("image", "wrist_image")}
    return Values(**found, **cameras, max_steps=most)


def _invalid(key: str, got: object, need: str, near: str = "") -> HarnessError:
    return HarnessError(
        "protocol-invalid",
        f"the protocol's value {key} is wrong",
        got=got,
        need=need,
        fix=f"give {near or key} a value as the shipped protocols do (docs/simulator.md)",
    )


Rule = tuple[str, Callable[[Any], Any]]


def _whole(low: int, high: int) -> Rule:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return f"a whole number from {low} to {high}", read


def _one_of(*choices: str | int) -> Rule:
    def read(value: Any) -> Any:
        if type(value) is bool or value not in choices:
            raise ValueError
        return value

    return f"one of {', '.join(map(str, choices))}", read


def _action(value: Any) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in value.split()) if isinstance(value, str) else ()
    if len(numbers) != ACTION or not all(-1 <= number <= 1 for number in numbers):
        raise ValueError
    return numbers


_CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")
_RULES: dict[str, Rule] = {
    "seed": _whole(0, 2**31 - 1),
    "scenes": _one_of("serial", "reseeded"),
    "episodes": _whole(1, 50),
    "wait_steps": _whole(0, HORIZON),
    "replan_steps": _whole(1, HORIZON),
    "resolution": _whole(16, 1024),
    "resize": _whole(16, 1024),
    "resize_method": _one_of("pil-bilinear", "bilinear"),
    "turn": _one_of(0, 180),
    "camera.image": _one_of(*_CAMERAS),
    "camera.wrist_image": _one_of(*_CAMERAS),
    "state": _one_of("float64", "float32"),
    "dummy_action": (f"{ACTION} numbers from -1 to 1 with spaces between them", _action),
    "clip": _one_of("none", "unit"),
    "control_hz": _one_of(20),
    "success": _one_of("after waiting"),
    **{f"max_steps.{suite}": _whole(1, HORIZON) for suite in SUITES},
}
