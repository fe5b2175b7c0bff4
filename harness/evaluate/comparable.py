"""Whether two evaluations measured the same thing: the fields of their settings, and which of them decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from harness.artifacts.evaluation import Apart
from harness.artifacts.setting import Protocol, Setting, Value
from harness.evaluate.claims import Claim

# The programs whose version changes what happens or what is seen.
SIMULATES = {
    "mujoco": "another version moves and renders otherwise: a floor from 3.3.3, a bowl that slips from 3.4",
    "robosuite": "another version has other bodies and controllers",
}


class Fields(NamedTuple):
    """What of a setting, or of a claim, must be equal. None: not known."""

    protocol: Protocol
    versions: Mapping[str, str]
    renderer: str | None
    scenes: str | None
    statistics: str | None
    action_horizon: int | None
    sampling_steps: int | None
    deviations: list[str] | None


def of_setting(setting: Setting) -> Fields:
    policy = setting.evaluated
    return Fields(
        setting.protocol,
        setting.versions,
        setting.renderer,
        setting.scenes_sha256,
        policy.statistics_sha256,
        policy.action_horizon,
        policy.sampling_steps,
        setting.deviations,
    )


def of_claim(claim: Claim) -> Fields:
    return Fields(
        claim.protocol,
        claim.versions,
        None,
        None,
        None,
        claim.action_horizon,
        claim.sampling_steps,
        [],
    )


def apart(ours: Fields, theirs: Fields, suites: set[str]) -> list[Apart]:
    """The fields that differ or are unknown on a side; those that decide come first.

    Values of the protocol that are for other suites than these are left out.
    """
    found = [
        _field("protocol", ours.protocol.name, theirs.protocol.name, "another protocol"),
        _field(
            "protocol version", ours.protocol.version, theirs.protocol.version, "the same name, other values"
        ),
        *_values(ours.protocol.values, theirs.protocol.values, suites),
        *(
            _field(f"{name} version", ours.versions.get(name), theirs.versions.get(name), why)
            for name, why in SIMULATES.items()
        ),
        _field("renderer", ours.renderer, theirs.renderer, "other pixels for the same scene"),
        _field("scenes", ours.scenes, theirs.scenes, "fixtures stand elsewhere"),
        _field(
            "dataset statistics",
            ours.statistics,
            theirs.statistics,
            "states and actions are scaled by other numbers",
        ),
        _field("action horizon", ours.action_horizon, theirs.action_horizon, "chunks of another length"),
        _field("sampling steps", ours.sampling_steps, theirs.sampling_steps, "actions are sampled otherwise"),
        _field(
            "deviations", _told(ours.deviations), _told(theirs.deviations), "a departure from the protocol"
        ),
    ]
    return sorted((each for each in found if each.status != "equal"), key=lambda each: not each.decides)


def _values(ours: Mapping[str, Value], theirs: Mapping[str, Value], suites: set[str]) -> list[Apart]:
    keys = sorted(ours.keys() | theirs.keys())
    return [
        _field(f"protocol.{key}", ours.get(key), theirs.get(key), "a value of the protocol")
        for key in keys
        if not key.partition(".")[2].startswith("libero") or key.partition(".")[2] in suites
    ]


def _told(deviations: list[str] | None) -> str | None:
    return None if deviations is None else "; ".join(sorted(deviations)) or "none"


def _field(name: str, ours: Value, theirs: Value, why: str) -> Apart:
    unknown = ours is None or theirs is None
    # True == 1 in Python, and not here.
    equal = isinstance(ours, bool) == isinstance(theirs, bool) and ours == theirs
    return Apart(
        field=name,
        status="unknown" if unknown else "equal" if equal else "differs",
        ours=ours,
        theirs=theirs,
        decides=not unknown and not equal,
        why=why,
    )
