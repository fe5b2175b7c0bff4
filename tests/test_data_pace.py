"""Tests the pace check: the loader's rate, and when a person is told that training waits for it."""

from __future__ import annotations

from contextlib import closing
from itertools import islice

import pytest

from harness.artifacts import Dataset
from harness.data.dataset import describe
from harness.data.loader import Loader
from harness.data.pace import WORKERS, Pace, workers_from_environment
from harness.data.stats import compute
from harness.errors import HarnessError
from harness.recipe.load import load_recipe


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return describe(load_recipe("smoke"))


def _pace(dataset: Dataset, made_s: float, batches: int = 20, size: int = 224) -> Pace:
    pace = Pace(dataset, samples=32, parallel=2, size=size)
    for _ in range(batches):
        pace.made(made_s)
    return pace


def test_samples_a_second_is_of_all_that_make_batches(dataset: Dataset) -> None:
    assert _pace(dataset, 0.5).samples_per_s == pytest.approx(128)
    assert _pace(dataset, 0.5, batches=19).samples_per_s is None


def test_tells_once_when_the_step_waits_for_the_loader(dataset: Dataset) -> None:
    """Two threads of half a second each give a batch every quarter of a second."""
    pace = _pace(dataset, 0.5)
    assert pace.bottleneck(0.3) is None
    told = pace.bottleneck(0.26)
    assert told is not None
    assert "128.0 samples" in told
    assert pace.bottleneck(0.26) is None


def test_says_nothing_before_it_knows(dataset: Dataset) -> None:
    assert _pace(dataset, 9.0, batches=3).bottleneck(0.1) is None


def test_advises_images_only_where_there_is_video(dataset: Dataset) -> None:
    video = {
        name: feature.model_copy(update={"dtype": "video"} if feature.dtype == "image" else {})
        for name, feature in dataset.features.items()
    }
    as_video = _pace(dataset.model_copy(update={"features": video}), 1.0).bottleneck(0.1)
    as_images = _pace(dataset, 1.0).bottleneck(0.1)
    assert as_video is not None
    assert as_images is not None
    assert "video" in as_video
    assert "video" not in as_images


@pytest.mark.parametrize(("size", "told"), [(224, False), (128, False), (127, True), (56, True)])
def test_advises_other_images_where_the_cores_resize_them(dataset: Dataset, size: int, told: bool) -> None:
    """The sample's are 256 × 256: the device resizes what has at most four times the pixels."""
    advice = _pace(dataset, 1.0, size=size).bottleneck(0.1)
    assert advice is not None
    assert (f"{2 * size} × {2 * size}" in advice) is told


@pytest.mark.parametrize("shape", [[480, 640, 3], [3, 480, 640]])
def test_advises_square_images_whatever_the_order_of_the_shape(dataset: Dataset, shape: list[int]) -> None:
    wide = {
        name: feature.model_copy(update={"shape": shape} if feature.dtype == "image" else {})
        for name, feature in dataset.features.items()
    }
    advice = _pace(dataset.model_copy(update={"features": wide}), 1.0).bottleneck(0.1)
    assert advice is not None
    assert "448 × 448" in advice


@pytest.mark.parametrize("workers", [0, 1])
def test_the_batches_that_are_used_are_the_ones_measured(dataset: Dataset, workers: int) -> None:
    recipe = load_recipe("smoke")
    loader = Loader(recipe, dataset, compute(recipe, dataset), batch_size=2, seed=1, workers=workers)
    with closing(loader.iterate(0)) as batches:
        assert loader.bottleneck(1e-9) is None
        found = list(islice(batches, 20))
        assert loader.bottleneck(1e9) is None
        assert loader.bottleneck(1e-9) is not None
    assert [batch["index"].tolist() for batch in found] == [
        loader.batch(step)["index"].tolist() for step in range(20)
    ]


@pytest.mark.parametrize(("text", "workers"), [(None, 0), ("", 0), ("3", 3)])
def test_workers_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str | None, workers: int
) -> None:
    monkeypatch.delenv(WORKERS, raising=False)
    if text is not None:
        monkeypatch.setenv(WORKERS, text)
    assert workers_from_environment() == workers


@pytest.mark.parametrize("text", ["-1", "many", "1.5", "100000"])
def test_what_is_no_number_of_workers_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(WORKERS, text)
    with pytest.raises(HarnessError) as caught:
        workers_from_environment()
    assert caught.value.code == "loader-workers-invalid"
