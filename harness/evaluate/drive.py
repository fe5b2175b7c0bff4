"""One episode: the simulator's queries are relayed to the policy, and its end becomes a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts.episodes import Episode, EpisodeError, Key
from harness.artifacts.setting import Policy, Value
from harness.errors import HarnessError
from harness.evaluate.remote import Form, Remote
from harness.evaluate.simulator import Simulator
from harness.evaluate.videos import Video
from harness.received.text import one_line
from harness.redact import redact
from harness.strict import parse

# The policies that act inside the simulator's process, beside "remote".
CONTROLS: tuple[Policy, ...] = ("replay", "zero", "scripted")
_MOST_WHAT = 2000
_FIX = "use the same version of the harness in the simulator's environment"
_PICTURES = ("image", "wrist_image")
_FIELDS = (
    "outcome",
    "steps",
    "initial_state",
    "scene_sha256",
    "observations",
    "actions_sha256",
    "reached",
)


class Order(NamedTuple):
    """How every episode is driven.

    `policy` is what the simulator's process is told: "remote", or a control. `protocol` has every value by
    its dotted key. `fps` are the queries in a second of the robot's time; None: no video is made.
    """

    policy: str
    protocol: Mapping[str, Value]
    form: Form
    fps: Fraction | None
    more: Mapping[str, Any] = {}


def drive(
    simulator: Simulator,
    remote: Remote | None,
    key: Key,
    order: Order,
    setting: str,
    *,
    video: Video | None = None,
    prompted: Callable[[str], None] = lambda _: None,
) -> Episode:
    """The episode with its outcome. `setting` is the hash that its line carries.

    `prompted` is told the task's words.

    Raises: HarnessError of the simulator's process, of the policy, or as the process says it. After one of
    the policy's the process is ready for the next episode.
    """
    message = {
        "do": "drive",
        **key._asdict(),
        "policy": order.policy,
        "protocol": dict(order.protocol),
        "pictures": video is not None or remote is not None,
        **order.more,
    }
    answer, arrays = simulator.ask(message)
    while answer.get("is") in ("scene", "query"):
        if answer["is"] == "scene":
            answer, arrays = simulator.hear("drive")
            continue
        if isinstance(words := answer.get("prompt"), str):
            prompted(words)
        if video is not None and all(name in arrays for name in _PICTURES):
            video.add(arrays)
        if remote is None:
            answer, arrays = simulator.ask({"do": "go on"})
            continue
        try:
            actions = remote.act(key, *_query(answer, arrays), arrays, order.form)
        except HarnessError:
            _abandon(simulator)
            raise
        answer, arrays = simulator.ask({"do": "act"}, {"actions": actions})
    if answer.get("is") == "error":
        raise said(answer)
    if answer.get("is") != "episode":
        raise strange(answer)
    found = {name: answer.get(name) for name in _FIELDS}
    return parse(
        Episode,
        {**key._asdict(), "setting": setting, **found, "reached": found["reached"] or {}},
        where="the simulator's answer",
        code="simulator-strange",
        fix=_FIX,
    )


def not_measured(key: Key, setting: str, error: HarnessError) -> Episode:
    """The line of an episode that the harness could not measure."""
    parts = [
        error.what,
        *(f"{name}: {text}" for name, text in (("got", error.got), ("fix", error.fix)) if text),
    ]
    return Episode(
        **key._asdict(),
        setting=setting,
        initial_state=None,
        scene_sha256=None,
        observations=[],
        actions_sha256=None,
        outcome="error",
        steps=0,
        error=EpisodeError(code=error.code[:100], what=one_line(redact("; ".join(parts)))[:_MOST_WHAT]),
    )


def _query(answer: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """The number and the prompt of a query."""
    number, prompt = answer.get("number"), answer.get("prompt")
    if type(number) is not int or not isinstance(prompt, str) or not {*_PICTURES, "state"} <= arrays.keys():
        raise strange(answer)
    return number, prompt


def _abandon(simulator: Simulator) -> None:
    """Lets the process end its episode without outcome."""
    answer, _ = simulator.ask({"do": "abandon"})
    while answer.get("is") in ("scene", "query"):
        answer, _ = simulator.hear("abandon")


def said(answer: Mapping[str, Any]) -> HarnessError:
    """The error that the process tells."""
    code, what, fix = (str(answer.get(name) or "") for name in ("code", "what", "fix"))
    return HarnessError(
        one_line(code)[:100] or "simulator-strange",
        one_line(what)[:1000] or "the simulator names no reason",
        got=None if answer.get("got") is None else one_line(str(answer["got"]))[:300],
        need=None if answer.get("need") is None else one_line(str(answer["need"]))[:300],
        fix=one_line(fix)[:500] or "use the same version of the harness in the simulator's environment",
    )


def strange(answer: Mapping[str, Any], need: str = "a query, or the end of an episode") -> HarnessError:
    """The refusal of an answer that no simulator of this version gives."""
    return HarnessError(
        "simulator-strange",
        "the simulator's process answers what the harness does not know",
        got=one_line(str({key: answer[key] for key in list(answer)[:8]}))[:300],
        need=need,
        fix="use the same version of the harness in the simulator's environment",
    )
