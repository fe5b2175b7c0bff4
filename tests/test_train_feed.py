"""Tests the way of a batch to the device: Pillow's pixels, whatever the size."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import pictures, transforms
from harness.data.dataset import describe
from harness.data.loader import Loader
from harness.data.resample import weights
from harness.data.stats import compute
from harness.recipe.load import load_recipe
from harness.train.feed import feed, resize

ROWS = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    """Pixels of all values, many of them at the ends, where rounding and clipping show."""
    random = np.random.default_rng(3)
    return np.where(
        random.random(shape) < 0.3, random.choice([0, 255], shape), random.integers(0, 256, shape)
    ).astype(np.uint8)


@pytest.mark.parametrize(
    ("side", "size"), [(256, 224), (480, 224), (100, 224), (1000, 25), (225, 224), (1, 5), (5, 1)]
)
def test_equals_pillow(side: int, size: int) -> None:
    images = _noise((2, side, side, 3))
    expected = np.stack([transforms.resize_with_pad(image, size) for image in images])
    np.testing.assert_array_equal(resize(images, size), expected)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(side=st.integers(1, 90), size=st.integers(1, 70))
def test_equals_pillow_for_any_square(side: int, size: int) -> None:
    images = _noise((1, side, side, 3))
    np.testing.assert_array_equal(resize(images, size)[0], transforms.resize_with_pad(images[0], size))


@pytest.mark.parametrize(
    ("stored", "travels"),
    [((256, 256), True), ((240, 320), False), ((448, 448), True), ((449, 449), False), ((200, 200), True)],
)
def test_only_what_the_device_resizes_as_well_travels_as_stored(
    stored: tuple[int, int], travels: bool
) -> None:
    class Data:
        def image(self, _i: int, _feature: str) -> np.ndarray:
            return _noise((*stored, 3))

    found = pictures.Pictures(Data(), 224, 0).get([0, 1], "cam", resized=False)  # type: ignore[arg-type]
    assert found.shape[1:3] == (stored if travels else (224, 224))


@pytest.mark.parametrize(("before", "after"), [(256, 224), (640, 224), (50, 224), (7, 5)])
def test_weights_are_of_pixels_that_exist_and_sum_to_one(before: int, after: int) -> None:
    index, weight = weights(before, after)
    assert index.min() >= 0
    assert index.max() < before
    assert np.abs(weight.sum(axis=1) - (1 << 22)).max() <= weight.shape[1]


def test_the_step_gets_what_the_loader_would_have_resized() -> None:
    recipe = load_recipe("smoke")
    dataset = describe(recipe)
    loader = Loader(recipe, dataset, compute(recipe, dataset), batch_size=4, seed=1)
    with closing(loader.iterate(2, resized=False)) as batches:
        stored = next(batches)
    assert {image.shape for image in stored["images"].values()} == {(4, 256, 256, 3)}
    inputs, expected = feed(stored, ROWS, 224), loader.batch(2)
    assert inputs.keys() == {"images", "tokens", "token_mask", "actions"}
    for camera, image in expected["images"].items():
        np.testing.assert_array_equal(inputs["images"][camera], image)
    np.testing.assert_array_equal(inputs["actions"], expected["actions"])


FOUR = """
import numpy as np, jax
from harness.data.transforms import resize_with_pad
from harness.train.feed import feed, resize
from harness.train.sharding import Layout
rows = Layout(jax.devices(), 2).rows
images = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3)).astype(np.uint8)
tokens = {"tokens": images[:, 0, 0], "token_mask": images[:, 0, 0] > 9}
inputs = feed({"images": {"cam": images}, **tokens, "actions": images[:, 0]}, rows, 35)
found = inputs["images"]["cam"]
assert found.sharding.is_equivalent_to(rows, 4), found.sharding
assert [shard.data.shape for shard in found.addressable_shards] == [(2, 35, 35, 3)] * 4
assert (np.asarray(found) == np.stack([resize_with_pad(image, 35) for image in images])).all()
program = resize.lower(jax.device_put(images, rows), 35, rows).compile().as_text()
assert not any(word in program for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
"""


def test_every_device_resizes_its_own_rows() -> None:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-c", FOUR],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
