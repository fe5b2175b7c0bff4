"""Whether a policy is one for LIBERO's robot, by what it says of itself and by one query, before any episode.

A server of the harness says in its metadata what it takes and gives (harness/serve/contract.py). openpi's own
says nothing, so that only the query speaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts.dataset import DimensionStats
from harness.artifacts.episodes import Key
from harness.artifacts.setting import Evaluated, Policy
from harness.errors import HarnessError
from harness.evaluate.remote import (
    ACTION_WIDTH,
    IMAGE,
    PROMPT,
    STATE,
    STATE_WIDTH,
    WRIST,
    Form,
    Remote,
    of_another_robot,
    too_short,
)
from harness.received.text import one_line
from harness.serve.names import SEED, plain

Array = np.ndarray[Any, np.dtype[Any]]
Stats = Mapping[Any, DimensionStats]
# LIBERO's actions are those of its controller, which clips them to -1 to 1; a quantile beyond is no LIBERO's.
# Source: robosuite 1.4, controllers/config/osc_pose.json, input_max and input_min.
_LARGEST_ACTION = 1.0 + 1e-3
_UNSEEDED = (
    "noise is drawn in the order of all calls: this server does not know noise_seed, so the outcome of an"
    " episode depends on the order and the number of workers"
)
_MOST_DEVIATIONS = 20
_GREY = 128


class Told(NamedTuple):
    """What a server's metadata says of its policy. None where it says nothing.

    `prompt` is the instruction that it puts in the place of every other.
    """

    seeded: bool
    contract: bool
    sha256: str | None
    step: int | None
    recipe: str | None
    recipe_sha256: str | None
    statistics_sha256: str | None
    horizon: int | None
    sampling_steps: int | None
    prompt: str | None
    deviations: list[str]


def told(metadata: Mapping[str, Any]) -> Told:
    """What metadata says. Another program's may hold anything, or nothing."""
    checkpoint, recipe = _map(metadata, "checkpoint"), _map(metadata, "recipe")
    named = metadata.get("deviations")
    return Told(
        seeded=_map(metadata, "noise_seed").get("key") == SEED,
        contract=type(metadata.get("contract_version")) is int,
        sha256=_text(checkpoint, "sha256"),
        step=_number(checkpoint, "step"),
        recipe=_text(recipe, "name"),
        recipe_sha256=_text(recipe, "sha256"),
        statistics_sha256=_text(metadata, "norm_stats_sha256"),
        horizon=_number(_map(metadata, "actions"), "horizon"),
        sampling_steps=_number(metadata, "sampling_steps"),
        prompt=_text(_map(metadata, "prompt"), "replaced_by"),
        deviations=[
            one_line(each)[:300]
            for each in (named if isinstance(named, list) else [])[:_MOST_DEVIATIONS]
            if isinstance(each, str)
        ],
    )


def check_metadata(metadata: Mapping[str, Any], least: int) -> None:
    """Refuses a server that says that it is no policy of LIBERO's robot.

    Raises: HarnessError "policy-of-another-robot", "policy-keys", "policy-horizon".
    """
    for key, need in (("state", STATE_WIDTH), ("actions", ACTION_WIDTH)):
        width = _number(_map(metadata, key), "dimensions")
        if width is not None and width != need:
            raise of_another_robot(key, width, need)
    horizon = _number(_map(metadata, "actions"), "horizon")
    if horizon is not None and horizon < least:
        raise too_short(horizon, least)
    given = {plain(name) for name in (IMAGE, WRIST, STATE, PROMPT)}
    state = _map(metadata, "state")
    wanted = [_list(each.get("keys")) for each in _list(metadata.get("cameras")) if isinstance(each, dict)]
    if state.get("needed") is True and (names := _list(state.get("keys"))):
        # A state of several parts is none that LIBERO gives.
        wanted.append([each[0] if len(each) == 1 else each for each in map(_list, names) if each])
    for names in wanted:
        if names and not any(isinstance(name, str) and plain(name) in given for name in names):
            raise HarnessError(
                "policy-keys",
                "the policy needs a picture or a state that LIBERO does not give",
                got=", ".join(map(one_line, map(str, names)))[:300] or "a state of several parts",
                need=f"policies of {IMAGE}, {WRIST}, {STATE} and {PROMPT}",
                fix="evaluate a checkpoint whose recipe maps LIBERO's two cameras and its state, as"
                " pi05_libero does",
            )


def check_statistics(stats: Stats) -> None:
    """Refuses statistics that cannot be of LIBERO's data: of other widths, or of actions beyond -1 to 1.

    Raises: HarnessError "policy-of-another-robot", "statistics-of-another-dataset".
    """
    for key, need in (("state", STATE_WIDTH), ("actions", ACTION_WIDTH)):
        one = stats.get(key)
        width = None if one is None else len(one.q01 or one.mean)
        if width is not None and width != need:
            raise of_another_robot(key, width, need)
    actions = stats.get("actions")
    if actions is None or not actions.q01:
        return
    for d, (low, high) in enumerate(zip(actions.q01, actions.q99, strict=True)):
        if max(abs(low), abs(high)) > _LARGEST_ACTION:
            raise HarnessError(
                "statistics-of-another-dataset",
                "the checkpoint's statistics are not those of LIBERO's actions, which lie in -1 to 1",
                got=f"98 % of actions[{d}] from {low:.4g} to {high:.4g}",
                need="quantiles within -1 to 1",
                fix="evaluate a checkpoint that learned from LIBERO; of several statistics in it, name"
                " LIBERO's: --set data.asset_id=NAME",
            )


def check_same(stats: Stats, others: Stats, of: str) -> None:
    """Refuses a checkpoint whose statistics are not those of `of`.

    Raises: HarnessError "statistics-of-another-dataset".
    """
    for key in stats.keys() & others.keys():
        for name in ("mean", "std", "q01", "q99"):
            ours, theirs = getattr(stats[key], name), getattr(others[key], name)
            width = min(len(ours), len(theirs))
            for d in range(width):
                if not np.isclose(ours[d], theirs[d], rtol=1e-4, atol=1e-6):
                    raise HarnessError(
                        "statistics-of-another-dataset",
                        f"the checkpoint's statistics are not those of {of}",
                        got=f"{name} of {key}[{d}] {ours[d]:.6g}",
                        need=f"{theirs[d]:.6g}",
                        fix="name the dataset that it learned from (--dataset), or evaluate another"
                        " checkpoint",
                    )


def check_answer(remote: Remote, form: Form) -> int | None:
    """Asks the policy once, with grey pictures and a state of zeros, so that a wrong one is named at once.

    Returns the horizon of its answers. Raises: as `Remote.act`.
    """
    grey = np.full((224, 224, 3), _GREY, np.uint8)
    arrays: dict[str, Array] = {"image": grey, "wrist_image": grey, "state": np.zeros(STATE_WIDTH)}
    remote.act(Key("probe", 0, 0), 0, "do something", arrays, form)
    return remote.horizon


def evaluated(
    kind: Policy, name: str, said: Told, *, seed: int, horizon: int | None, **known: Any
) -> Evaluated:
    """The policy, of what its server says and what is `known` of its checkpoint."""
    values: dict[str, Any] = {
        "sha256": said.sha256,
        "step": said.step,
        "recipe_sha256": said.recipe_sha256,
        "statistics_sha256": said.statistics_sha256,
        "action_horizon": said.horizon if said.horizon is not None else horizon,
        "sampling_steps": said.sampling_steps,
        "noise_seed": seed if said.seeded else None,
    }
    return Evaluated(kind=kind, name=name, **(values | known))


def deviations_of(said: Told) -> list[str]:
    """What departs from the protocol because of this server."""
    own = [] if said.seeded else [_UNSEEDED]
    own += [f"the policy is told {said.prompt!r} in every task"] if said.prompt is not None else []
    return [*own, *(f"policy: {each}" for each in said.deviations)]


def _map(value: Any, key: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, dict) else {}


def _text(value: Mapping[str, Any], key: str) -> str | None:
    found = value.get(key)
    return one_line(found)[:200] if isinstance(found, str) else None


def _number(value: Mapping[str, Any], key: str) -> int | None:
    found = value.get(key)
    return found if type(found) is int else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
