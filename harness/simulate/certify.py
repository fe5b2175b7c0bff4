"""Whether this simulator is the one that the published figures were measured in, before anything is measured.

Versions alone do not show it: the same version draws other pixels with another renderer, and a wheel may be
built otherwise. So what it does is looked at too. What changed in MuJoCo: docs/simulator.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.errors import HarnessError
from harness.simulate import controls, episode, gl, protocol
from harness.simulate.environment import Environment, versions
from harness.simulate.frames import Array

GOLDEN = Path(__file__).parent / "golden.json"
PICTURES = Path(__file__).parent / "golden.npz"
# The task and the initial state of each suite whose first picture is compared.
FRAMES = {"libero_spatial": (5, 0), "libero_object": (0, 0), "libero_goal": (8, 3), "libero_10": (0, 0)}
# The mean difference of a picture's 64 x 64 cells, of 255, that another renderer may show. Other versions of
# MuJoCo below 3.3.3 show at most 0.4, libero_object's dark floor from 3.3.3 on more than 30.
TOLERANCE = 3.0
CELLS = 64
# Task 5 of libero_spatial: its bowl slides from its ramekin from MuJoCo 3.4 on. The horizontal distance after
# waiting is 14.5 mm before, 62 mm on 3.17.
SETTLES = ("libero_spatial", 5, "akita_black_bowl_1", "glazed_rim_porcelain_ramekin_1")
SETTLED_MM = 20.0
# The recorded episode that is driven again.
REPLAYED = ("libero_goal", 8, 3)
_FIX = (
    "use the simulator's image, or make its environment anew from docker/lock/simulator.txt: docker compose"
    " build evaluate, or remove .venv-local/simulator and run ci/local evaluate"
)


class Finding(NamedTuple):
    """One thing that was looked at. `note` says what is right though not equal."""

    name: str
    ok: bool
    got: str
    need: str
    fix: str
    note: str = ""


def certify(wanted: Mapping[str, str]) -> list[Finding]:
    """All findings; the simulator may be measured with if all are `ok`. `wanted` are versions by program.

    What fails while it is looked at is a finding that is not ok. Takes half a minute on one core.
    """
    values = protocol.check(protocol.shipped("openpi").values)
    found = of_versions(wanted, versions())
    for suite, (task, number) in FRAMES.items():
        found += list(_of_suite(suite, task, number, values))
    return found


def of_versions(wanted: Mapping[str, str], there: Mapping[str, str]) -> list[Finding]:
    """A finding for each program that a protocol wants a version of."""
    return [
        Finding(f"{name} version", there.get(name) == version, str(there.get(name)), version, _FIX)
        for name, version in wanted.items()
    ]


def _of_suite(suite: str, task: int, number: int, values: protocol.Values) -> Iterator[Finding]:
    """What is looked at in one suite, in one environment."""
    try:
        env = Environment(suite, task, values)
    except Exception as error:
        yield _failed(f"{suite} scene", error)
        return
    try:
        yield _tried(
            f"{suite} golden frame", lambda: of_frame(suite, *frame(env, number), gl.renderer()["name"])
        )
        if (suite, task) == SETTLES[:2]:
            yield _tried("bowl settles on its ramekin", lambda: of_settled(settled(env, number)))
        if (suite, task, number) == REPLAYED:
            yield _tried("recorded episode succeeds", lambda: of_replay(env))
    finally:
        env.close()


def _tried(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    # A simulator of the wrong version fails in ways that nobody can list.
    except Exception as error:
        return _failed(name, error)


def _failed(name: str, error: Exception) -> Finding:
    got = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
    fix = error.fix if isinstance(error, HarnessError) else _FIX
    return Finding(name, False, " ".join(got.split())[:300], "no error", fix)


def frame(env: Environment, number: int) -> tuple[Array, Array]:
    """Both pictures, uint8 [256, 256, 3], turned, after the wait steps of an episode."""
    raw = env.wait(env.begin(number), see=True)
    image, wrist = (raw[name][::-1, ::-1] for name in (env.values.image, env.values.wrist_image))
    return image, wrist


def digest(image: Array, wrist: Array) -> str:
    return hashlib.sha256(image.tobytes() + wrist.tobytes()).hexdigest()


def small(picture: Array) -> Array:
    """uint8 [64, 64, 3]: the means of a picture's cells."""
    side = picture.shape[0] // CELLS
    cells = picture.reshape(CELLS, side, CELLS, side, 3).mean((1, 3))
    return np.rint(cells).astype(np.uint8)


def golden() -> dict[str, dict[str, str]]:
    """The digest of each suite's frame, by the renderer that drew it."""
    return dict(json.loads(GOLDEN.read_text(encoding="utf-8"))["renderers"])


def of_frame(suite: str, image: Array, wrist: Array, renderer: str) -> Finding:
    """Whether a suite's frame is one of a known renderer, or near enough to llvmpipe's."""
    name, got = f"{suite} golden frame", digest(image, wrist)
    known = [who for who, frames in golden().items() if frames.get(suite) == got]
    if known:
        return Finding(name, True, got[:16], f"the bytes that {known[0]} draws", "")
    with np.load(PICTURES, allow_pickle=False) as file:
        apart = max(
            float(np.abs(small(picture).astype(float) - file[f"{suite}/{which}"]).mean())
            for which, picture in (("image", image), ("wrist_image", wrist))
        )
    need = f"a mean difference of at most {TOLERANCE} of 255 from llvmpipe's picture"
    note = f"{renderer} drew bytes that no known renderer draws; mean difference {apart:.2f} of 255"
    ok = apart <= TOLERANCE
    return Finding(name, ok, f"{apart:.2f} of 255, {renderer}", need, "" if ok else _FIX, note if ok else "")


def settled(env: Environment, number: int) -> float:
    """The horizontal distance (mm) of bowl and ramekin after the wait steps."""
    raw = env.wait(env.begin(number), see=False)
    return float(np.linalg.norm((raw[f"{SETTLES[2]}_pos"] - raw[f"{SETTLES[3]}_pos"])[:2]) * 1000)


def of_settled(distance: float) -> Finding:
    ok = distance <= SETTLED_MM
    need = f"at most {SETTLED_MM:.0f} mm between bowl and ramekin"
    return Finding("bowl settles on its ramekin", ok, f"{distance:.1f} mm", need, "" if ok else _FIX)


def of_replay(env: Environment) -> Finding:
    """Whether a recorded episode succeeds at its step."""
    recorded = controls.recording(*REPLAYED)
    control = controls.Replay(env.values, recorded)
    driven = episode.drive(env, recorded.episode, control, None, _unheard)
    ok = driven.success and driven.steps == recorded.steps
    got = f"success at step {driven.steps}" if driven.success else f"no success in {driven.steps} steps"
    need = f"success at step {recorded.steps}"
    return Finding("recorded episode succeeds", ok, got, need, "" if ok else _FIX)


def _unheard(_sha256: str) -> Any:
    return None
