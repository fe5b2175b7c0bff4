"""Tests normalization, padding, resizing and prompts, each against an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from harness.artifacts import DimensionStats
from harness.data.transforms import clean_prompt, normalize, pad_last, resize_with_pad, unnormalize
from harness.errors import HarnessError

STATS = DimensionStats(mean=[1.0, -2.0], std=[2.0, 0.0], q01=[-1.0, 3.0], q99=[3.0, 3.0])


def test_normalize_by_quantile_and_zscore() -> None:
    x = np.array([[3.0, 3.0], [1.0, 4.0]], np.float32)
    np.testing.assert_allclose(
        normalize(x, STATS, "quantile"),
        [[4 / 4.000001 * 2 - 1, -1], [2 / 4.000001 * 2 - 1, 1e6 * 2 - 1]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(normalize(x, STATS, "zscore"), [[2 / 2.000001, 5e6], [0, 6e6]], rtol=1e-6)
    assert normalize(x, STATS, "quantile").dtype == np.float32


@pytest.mark.parametrize("mode", ["quantile", "zscore"])
def test_unnormalize_inverts_normalize_and_drops_padding(mode: str) -> None:
    x = np.array([[[0.25, 3.0], [-7.0, 3.5]]], np.float32)
    padded = pad_last(normalize(x, STATS, mode), 32)
    assert padded.shape == (1, 2, 32)
    assert not padded[..., 2:].any()
    np.testing.assert_allclose(unnormalize(padded, STATS, mode), x, rtol=1e-5)


def test_statistics_of_another_dataset_are_refused() -> None:
    with pytest.raises(HarnessError) as caught:
        normalize(np.zeros((1, 3), np.float32), STATS, "quantile")
    assert caught.value.code == "stats-shape"


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(256, 256, 0, 0), (480, 640, 28, 0), (100, 50, 0, 56), (224, 224, 0, 0)],
)
def test_resize_with_pad_keeps_the_aspect(height: int, width: int, top: int, left: int) -> None:
    image = np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)
    out = resize_with_pad(image, 224)
    inner = 224 - 2 * left, 224 - 2 * top
    expected = (
        np.asarray(Image.fromarray(image).resize(inner, Image.Resampling.BILINEAR))
        if (height, width) != (224, 224)
        else image
    )
    np.testing.assert_array_equal(out[top : 224 - top, left : 224 - left], expected)
    assert out.shape == (224, 224, 3)
    assert not out[:top].any()
    assert not out[:, :left].any()


def test_a_very_long_image_keeps_a_pixel() -> None:
    assert resize_with_pad(np.full((2, 2000, 3), 255, np.uint8), 224).any()


def test_prompts_are_cleaned_as_upstream_does() -> None:
    assert clean_prompt("  put_the bowl\non the stove \n") == "put the bowl on the stove"
