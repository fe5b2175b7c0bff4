"""The names under which clients send cameras and states: the dataset's own, and those of openpi's robots.

A dot counts as a slash, and a leading `observation` does not count. So `observation/image`, `image` and
`observation.image` are one name.

Source: openpi src/openpi/policies/libero_policy.py, droid_policy.py, aloha_policy.py, commit 15a9616.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import HarnessError
from harness.received.text import one_line
from harness.recipe.schema import CAMERAS, Data

PROMPT, SEED = "prompt", "noise_seed"
# Camera of the model → openpi's names of it: LIBERO, DROID, ALOHA.
OPENPI_CAMERAS: dict[str, tuple[str, ...]] = {
    "base_0_rgb": ("observation/image", "observation/exterior_image_1_left", "images/cam_high"),
    "left_wrist_0_rgb": ("observation/wrist_image", "observation/wrist_image_left", "images/cam_left_wrist"),
    "right_wrist_0_rgb": ("images/cam_right_wrist",),
}
# openpi's names of a state: LIBERO and ALOHA in one, DROID in two parts that follow each other.
OPENPI_STATES = (("observation/state",), ("observation/joint_position", "observation/gripper_position"))
_DEEPEST, _PREFIX = 4, "observation/"


def plain(name: str) -> str:
    """The name without what does not count: dots are slashes, `observation/` is dropped."""
    found = name.replace(".", "/")
    # A map called observation may hold keys that say it again.
    while found.startswith(_PREFIX):
        found = found.removeprefix(_PREFIX)
    return found


def flat(observation: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Plain name → the client's own name and the value. Maps in maps are joined with slashes.

    Raises: HarnessError "observation-invalid" if two names mean the same.
    """
    found: dict[str, tuple[str, Any]] = {}
    todo: list[tuple[str, Any, int]] = [(key, value, 1) for key, value in reversed(list(observation.items()))]
    while todo:
        key, value, depth = todo.pop()
        if isinstance(value, Mapping) and depth <= _DEEPEST:
            todo += [(f"{key}/{name}", child, depth + 1) for name, child in reversed(list(value.items()))]
            continue
        if plain(key) in found:
            raise HarnessError(
                "observation-invalid",
                "two keys of the observation mean the same",
                got=one_line(f"{found[plain(key)][0][:100]!r} and {key[:100]!r}"),
                need="each once",
                fix="leave one of them out",
            )
        found[plain(key)] = (key, value)
    return found


def camera_names(data: Data) -> dict[str, list[str]]:
    """Camera of the model → the names under which its picture is taken, the dataset's own first.

    openpi's name of one camera is not taken where the dataset calls another camera so.
    """
    # In the order in which the model has them.
    own = {camera: name for camera in CAMERAS if (name := data.cameras.get(camera)) is not None}  # type: ignore[call-overload]
    found: dict[str, list[str]] = {}
    for camera, feature in own.items():
        others = {plain(name) for other, name in own.items() if other != camera}
        names = [feature, *OPENPI_CAMERAS.get(camera, ()), camera, f"images/{camera}"]
        found[camera] = [name for name in dict.fromkeys(names) if plain(name) not in others]
    return found


def state_names(data: Data) -> list[tuple[str, ...]]:
    """The sets of names under which the state is taken, the dataset's own first; empty without a state."""
    if not data.state_features:
        return []
    return list(dict.fromkeys([tuple(data.state_features), *OPENPI_STATES]))
