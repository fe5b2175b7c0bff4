"""Tests that pictures and states are openpi's and LeRobot's, byte for byte where they are integers."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from openpi_client import image_tools

from harness.simulate import observation, protocol


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(256, 256, 224), (360, 360, 224), (128, 128, 224), (224, 224, 224), (240, 320, 224), (301, 97, 65)],
)
def test_a_picture_is_turned_and_resized_as_openpi_does(height: int, width: int, size: int) -> None:
    raw = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    turned = np.ascontiguousarray(raw[::-1, ::-1])
    theirs = image_tools.convert_to_uint8(image_tools.resize_with_pad(turned, size, size))
    ours = observation.picture(raw, 180, size, "pil-bilinear")
    assert ours.dtype == np.uint8
    assert ours.tobytes() == theirs.tobytes()
    assert observation.picture(turned, 0, size, "pil-bilinear").tobytes() == theirs.tobytes()


def test_bilinear_without_antialiasing_is_the_usual_one() -> None:
    """jax.image.resize without antialiasing takes the same four pixels as torch's interpolate."""
    raw = np.random.default_rng(1).integers(0, 256, (360, 360, 3), np.uint8)
    ours = observation.picture(raw, 0, 224, "bilinear").astype(float)
    theirs = jax.image.resize(raw.astype(np.float32), (224, 224, 3), "bilinear", antialias=False)
    assert np.abs(ours - np.asarray(theirs)).max() <= 0.51


def openpi_vector(quat: np.ndarray) -> np.ndarray:
    """openpi's formula in its own order of operations (15a9616, examples/libero/main.py, 199-214)."""
    w = min(1.0, max(-1.0, quat[3]))
    den = np.sqrt(1.0 - w * w)
    return np.zeros(3) if math.isclose(den, 0.0) else (quat[:3] * 2.0 * math.acos(w)) / den


def test_a_rotation_keeps_its_sign_and_may_be_longer_than_pi() -> None:
    random = np.random.default_rng(2)
    quaternions = random.normal(size=(200, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    for quat in [*quaternions, np.array([0.0, 0, 0, 1]), np.array([0.0, 0, 0, -1.0000001])]:
        before = quat.copy()
        assert observation.axis_angle(quat).tobytes() == openpi_vector(quat).tobytes()
        assert (quat == before).all()
    longest = max(np.linalg.norm(observation.axis_angle(quat)) for quat in quaternions)
    assert math.pi < longest <= 2 * math.pi


def test_the_state_has_eight_numbers_in_openpis_order() -> None:
    raw = {
        "robot0_eef_pos": np.array([0.1, 0.2, 1 / 3]),
        "robot0_eef_quat": np.array([0.5, 0.5, 0.5, 0.5]),
        "robot0_gripper_qpos": np.array([0.04, -0.04]),
    }
    state = observation.state(raw, "float64")
    assert state.dtype == np.float64
    assert (state[:3] == raw["robot0_eef_pos"]).all()
    assert (state[6:] == raw["robot0_gripper_qpos"]).all()
    single = observation.state(raw, "float32")
    assert (single == single.astype(np.float32)).all()
    np.testing.assert_allclose(single, state, rtol=1e-6)


def test_the_digest_sees_each_part() -> None:
    values = protocol.check(protocol.shipped("openpi").values)
    raw = {
        "agentview_image": np.zeros((256, 256, 3), np.uint8),
        "robot0_eye_in_hand_image": np.full((256, 256, 3), 9, np.uint8),
        "robot0_eef_pos": np.zeros(3),
        "robot0_eef_quat": np.array([0.0, 0, 0, 1]),
        "robot0_gripper_qpos": np.zeros(2),
    }
    one = observation.observation(raw, "put it there", values)
    assert one.image.shape == one.wrist_image.shape == (224, 224, 3)
    image = one.image.copy()
    image[223, 223, 2] ^= 1
    state = one.state.copy()
    state[7] = np.nextafter(state[7], 1)
    others = (
        one._replace(image=image),
        one._replace(image=one.wrist_image, wrist_image=one.image),
        one._replace(state=state),
        one._replace(prompt="put it here"),
    )
    assert len({each.sha256() for each in (one, *others)}) == 5
    assert one.sha256() == observation.observation(dict(raw), "put it there", values).sha256()
