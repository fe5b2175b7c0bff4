"""Tests that certify refuses what it must, by what it sees; the simulator itself is in tests/simulator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.simulate import certify, controls, episode, gl, protocol

VALUES = protocol.check(protocol.shipped("openpi").values)


def pictures(suite: str) -> tuple[Any, Any]:
    """Pictures whose cells are the golden ones."""
    with np.load(certify.PICTURES, allow_pickle=False) as file:
        found = [file[f"{suite}/{which}"] for which in ("image", "wrist_image")]
    return tuple(each.repeat(4, 0).repeat(4, 1) for each in found)  # type: ignore[return-value]


def test_every_suite_has_a_golden_frame_of_a_known_renderer() -> None:
    assert set(certify.golden()["llvmpipe"]) == set(certify.FRAMES)
    for suite in certify.FRAMES:
        image, wrist = pictures(suite)
        assert image.shape == wrist.shape == (256, 256, 3)
        # A picture of one colour would be near to many.
        assert image.std() > 20


@pytest.mark.parametrize("suite", sorted(certify.FRAMES))
def test_an_unknown_renderer_is_let_through_within_the_tolerance_and_named(suite: str) -> None:
    image, wrist = pictures(suite)
    noisy = np.clip(image.astype(int) + np.random.default_rng(0).integers(-3, 4, image.shape), 0, 255)
    found = certify.of_frame(suite, noisy.astype(np.uint8), wrist, "NVIDIA H100 PCIe")
    assert found.ok
    assert "NVIDIA H100 PCIe" in found.note
    assert str(certify.TOLERANCE) in found.need


@pytest.mark.parametrize("suite", sorted(certify.FRAMES))
def test_another_scene_a_dark_floor_and_a_turned_picture_are_refused(suite: str) -> None:
    image, wrist = pictures(suite)
    dark = (image * 0.73).astype(np.uint8)
    other = pictures(next(name for name in certify.FRAMES if name != suite))[0]
    for first, second in (
        (dark, wrist),
        (image[::-1, ::-1], wrist),
        (image, wrist[::-1]),
        (other, wrist),
        (np.zeros_like(image), np.zeros_like(wrist)),
    ):
        found = certify.of_frame(suite, first, second, "llvmpipe")
        assert not found.ok
        assert found.fix


def test_the_bytes_of_a_known_renderer_need_no_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    image, wrist = np.zeros((2, 256, 256, 3), np.uint8)
    known = {"NVIDIA": {"libero_goal": certify.digest(image, wrist)}}
    monkeypatch.setattr(certify, "golden", lambda: known)
    found = certify.of_frame("libero_goal", image, wrist, "anything")
    assert (found.ok, found.note) == (True, "")
    assert "NVIDIA" in found.need


@pytest.mark.parametrize(
    ("distance", "ok"), [(14.53, True), (37.21, False), (62.25, False), (float("nan"), False)]
)
def test_a_bowl_that_slides_is_refused(distance: float, ok: bool) -> None:
    assert certify.of_settled(distance).ok is ok


def test_each_version_is_compared() -> None:
    wanted = {"mujoco": "3.2.3", "robosuite": "1.4.1"}
    found = certify.of_versions(wanted, {"mujoco": "3.17.0", "robosuite": "1.4.1"})
    assert [(each.ok, each.got) for each in found] == [(False, "3.17.0"), (True, "1.4.1")]


@pytest.mark.parametrize(
    ("success", "late", "ok"), [(True, 0, True), (True, 1, False), (True, -1, False), (False, 0, False)]
)
def test_a_recorded_episode_must_succeed_at_its_step(
    success: bool, late: int, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = controls.recording(*certify.REPLAYED).steps + late
    driven = episode.Driven(success, steps, "", [], "", {})
    monkeypatch.setattr(episode, "drive", lambda *_: driven)
    env: Any = SimpleNamespace(values=VALUES)
    found = certify.of_replay(env)
    assert found.ok is ok
    assert str(steps) in found.got


def test_what_fails_while_it_is_looked_at_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise TypeError("mj_fullM(): incompatible function arguments")

    monkeypatch.setattr(certify, "Environment", fails)
    monkeypatch.setattr(certify, "versions", lambda: {"mujoco": "3.2.3"})
    found = certify.certify({"mujoco": "3.2.3"})
    assert [each.ok for each in found] == [True, False, False, False, False]
    assert all("mj_fullM" in each.got for each in found[1:])


def test_a_missing_gl_library_is_named_with_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "_WORKS", {"egl": lambda: False, "osmesa": lambda: False})
    for asked in ("", "egl", "osmesa"):
        with pytest.raises(HarnessError) as caught:
            gl.choose({"MUJOCO_GL": asked})
        assert caught.value.code == "gl-missing"
        assert "libosmesa6" in caught.value.fix
    with pytest.raises(HarnessError) as caught:
        gl.choose({"MUJOCO_GL": "glfw"})
    assert "screen" in str(caught.value.got)


def test_egl_is_taken_before_osmesa_and_what_is_asked_for_before_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gl, "_WORKS", {"egl": lambda: False, "osmesa": lambda: True})
    environ: dict[str, str] = {}
    assert gl.choose(environ) == "osmesa"
    assert environ == {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}
    monkeypatch.setattr(gl, "_WORKS", {"egl": lambda: True, "osmesa": lambda: True})
    assert gl.choose({}) == "egl"
    assert gl.choose({"MUJOCO_GL": " OSMesa "}) == "osmesa"
