"""The names under which clients send cameras and states: the dataset's own, and those of openpi's robots.

A dot counts as a slash, and a leading `observation` does not count. So `observation/image`, `image` and
`observation.image` are one name.

Source: openpi src/openpi/policies/libero_policy.py, droid_policy.py, aloha_policy.py, commit 15a9616.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness.errors import HarnessError
from harness.received.text import one_line
from harness.recipe.schema import CAMERAS, Data
from harness.serve.rtc_keys import KEYS

PROMPT, SEED = "prompt", "noise_seed"
# Camera of the model → openpi's names of it: LIBERO, DROID, ALOHA.
OPENPI_CAMERAS: dict[str, tuple[str, ...]] = {
    "base_0_rgb": ("observation/image", "observation/exterior_image_1_left", "images/cam_high"),
    "left_wrist_0_rgb": ("observation/wrist_image", "observation/wrist_image_left", "images/cam_left_wrist"),
    "right_wrist_0_rgb": ("images/cam_right_wrist",),
}
# The pictures of an ALOHA that openpi's server takes, the wrists' apart. Without one of a wrist it masks it.
_ALOHA_WRISTS = {"images/cam_left_wrist", "images/cam_right_wrist"}
_ALOHA_OTHERS = {"images/cam_high", "images/cam_low"}
# openpi's names of a state: LIBERO and ALOHA in one, DROID in two parts that follow each other.
OPENPI_STATES = (("observation/state",), ("observation/joint_position", "observation/gripper_position"))
_DEEPEST, _PREFIX = 4, "observation/"
# Each key that nobody reads is compared with the optional ones, which takes 0.1 ms.
_MOST_KEYS = 1024


def plain(name: str) -> str:
    """The name without what does not count: dots are slashes, `observation/` is dropped."""
    found = name.replace(".", "/")
    # A map called observation may hold keys that say it again.
    while found.startswith(_PREFIX):
        found = found.removeprefix(_PREFIX)
    return found


class Names:
    """The names of one recipe.

    `cameras`: camera of the model, in the model's order → the names under which its picture is taken, the
    dataset's own first. openpi's name of one camera is not taken where the dataset calls another camera so.
    `states`: the sets of names under which the state is taken, likewise; empty without a state. `optional`:
    the cameras that a request may lack, an ALOHA's wrists, as openpi's server has it.
    """

    def __init__(self, data: Data) -> None:
        features: dict[str, str | None] = {str(camera): name for camera, name in data.cameras.items()}
        own = {camera: name for camera in CAMERAS if (name := features.get(camera)) is not None}
        alike = Counter(map(plain, {*own.values(), *data.state_features}))
        # A dataset may have two features whose names differ in nothing that counts. They are told apart.
        self._apart = {name for name in (*own.values(), *data.state_features) if alike[plain(name)] > 1}
        self.cameras: dict[str, list[str]] = {}
        for camera, feature in own.items():
            others = {plain(name) for other, name in own.items() if other != camera}
            more = (*OPENPI_CAMERAS.get(camera, ()), camera, f"images/{camera}")
            self.cameras[camera] = [feature, *(n for n in more if n != feature and plain(n) not in others)]
        self.optional = {
            camera
            for camera, feature in own.items()
            if camera != CAMERAS[0] and (data.adapt is not None or plain(feature) in _ALOHA_WRISTS)
        }
        states = [tuple(data.state_features), *OPENPI_STATES] if data.state_features else []
        self.states: list[tuple[str, ...]] = list(dict.fromkeys(states))
        known = [name for names in (*self.cameras.values(), *self.states) for name in names]
        self.known = {self.key(name) for name in (*known, PROMPT, SEED, *KEYS)}

    def key(self, name: str) -> str:
        """What `flat` finds a name by: the plain one; where two have the same plain one, the name itself."""
        return name if name in self._apart else plain(name)

    def may_lack(self, camera: str, found: Mapping[str, tuple[str, Any]]) -> bool:
        """Whether a request may lack this camera. Not if it has a picture that nobody reads: a wrong name."""
        unread = (key for key in found.keys() - self.known - _ALOHA_OTHERS)
        return camera in self.optional and not any(getattr(found[key][1], "ndim", 0) == 3 for key in unread)

    def flat(self, observation: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        """`key` of each name → the client's own name and the value. Maps in maps are joined with slashes.

        Raises: HarnessError "observation-invalid" if two names mean the same, or if there are too many.
        """
        found: dict[str, tuple[str, Any]] = {}
        todo: list[tuple[str, Any, int]] = [(name, value, 1) for name, value in observation.items()][::-1]
        while todo:
            name, value, depth = todo.pop()
            if isinstance(value, Mapping) and depth <= _DEEPEST:
                todo += [(f"{name}/{inner}", child, depth + 1) for inner, child in value.items()][::-1]
                continue
            key = self.key(name)
            if key in found:
                raise HarnessError(
                    "observation-invalid",
                    "two keys of the observation mean the same",
                    got=one_line(f"{found[key][0][:100]!r} and {name[:100]!r}"),
                    need="each once",
                    fix="leave one of them out",
                )
            found[key] = (name, value)
            if len(found) > _MOST_KEYS:
                raise HarnessError(
                    "observation-invalid",
                    "the observation has too many keys",
                    got=f"more than {_MOST_KEYS:,}",
                    need=f"at most {_MOST_KEYS:,}, those of maps in maps counted too",
                    fix="leave out what the handshake's metadata does not name",
                )
        return found
