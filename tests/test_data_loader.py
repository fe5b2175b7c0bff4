"""Tests the loader: the contents of a batch, and that the order depends on seed and step alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.artifacts import Dataset, NormStats
from harness.data import loader as loader_module
from harness.data.dataset import describe
from harness.data.lerobot import open_dataset
from harness.data.loader import Loader
from harness.data.stats import compute
from harness.data.tokenizer import load_tokenizer
from harness.data.transforms import normalize, resize_with_pad
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from tests.support import lerobot_writer as writer

Made = tuple[Recipe, Dataset, NormStats]


@pytest.fixture(scope="module")
def sample() -> Made:
    recipe = load_recipe("smoke")
    dataset = describe(recipe)
    return recipe, dataset, compute(recipe, dataset)


def _loader(made: Made, **options: Any) -> Loader:
    return Loader(*made, **({"batch_size": 8, "seed": 42} | options))


def _leaves(batch: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in batch.items():
        yield from (
            ((f"{key}/{camera}", image) for camera, image in value.items())
            if isinstance(value, dict)
            else ((key, value),)
        )


def _assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    left, right = dict(_leaves(a)), dict(_leaves(b))
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype
        np.testing.assert_array_equal(value, right[key], err_msg=key)


def test_a_batch_holds_what_the_dataset_has_at_its_index(sample: Made) -> None:
    _, dataset, stats = sample
    batch = _loader(sample).batch(3)
    data = open_dataset(dataset.path)
    shapes = {key: (value.dtype.name, value.shape) for key, value in _leaves(batch)}
    assert shapes == {
        "images/base_0_rgb": ("uint8", (8, 224, 224, 3)),
        "images/left_wrist_0_rgb": ("uint8", (8, 224, 224, 3)),
        "state": ("float32", (8, 32)),
        "tokens": ("int32", (8, 32)),
        "token_mask": ("bool", (8, 32)),
        "actions": ("float32", (8, 10, 32)),
        "index": ("int64", (8,)),
    }
    for n, i in enumerate(batch["index"].tolist()):
        np.testing.assert_array_equal(
            batch["images"]["left_wrist_0_rgb"][n], resize_with_pad(data.image(i, "wrist_image"), 224)
        )
        np.testing.assert_array_equal(
            batch["state"][n, :8], normalize(data.state(i), stats.norm_stats["state"], "quantile")
        )
        np.testing.assert_array_equal(
            batch["actions"][n, :, :7],
            normalize(data.action_chunk(i, 10)[0], stats.norm_stats["actions"], "quantile"),
        )
        assert batch["tokens"][n][batch["token_mask"][n]].tolist() == load_tokenizer("sample").encode(
            data.task(i)
        )
        assert not batch["tokens"][n][~batch["token_mask"][n]].any()
    assert not batch["state"][:, 8:].any()
    assert not batch["actions"][..., 7:].any()


def test_every_epoch_visits_every_frame_once_in_its_own_order(sample: Made) -> None:
    """100 frames in batches of 8: epochs end inside batches."""
    order = _loader(sample)._batches.order
    seen = [frame.number for step in range(25) for frame in order(step)]
    assert sorted(seen[:100]) == sorted(seen[100:]) == list(range(100))
    assert seen[:100] != seen[100:]
    other = _loader(sample, seed=43)._batches.order
    assert [frame.number for step in range(12) for frame in other(step)] != seen[:96]


@pytest.mark.parametrize("start", [0, 12, 1_000_000])
def test_iterating_from_any_step_gives_the_same_batches(sample: Made, start: int) -> None:
    with closing(_loader(sample).iterate(start)) as batches:
        for step, batch in zip(range(start, start + 4), batches, strict=False):
            _assert_equal(batch, _loader(sample).batch(step))


def test_another_number_of_workers_gives_the_same_batches(sample: Made) -> None:
    with closing(_loader(sample, workers=2).iterate(5)) as batches:
        found = list(islice(batches, 3))
    for step, batch in enumerate(found, 5):
        _assert_equal(batch, _loader(sample).batch(step))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_as_stored_are_resized_to_the_same_batches(sample: Made, workers: int) -> None:
    """What travels is what the dataset holds, at any step and from any number of processes."""
    with closing(_loader(sample, workers=workers).iterate(5, resized=False)) as batches:
        found = list(islice(batches, 2))
    for step, batch in enumerate(found, 5):
        for camera, images in batch["images"].items():
            assert images.shape == (8, 256, 256, 3), camera
        resized = {
            camera: np.stack([resize_with_pad(image, 224) for image in images])
            for camera, images in batch["images"].items()
        }
        _assert_equal(batch | {"images": resized}, _loader(sample).batch(step))


def test_shards_partition_the_global_batch(sample: Made) -> None:
    whole = dict(_leaves(_loader(sample).batch(7)))
    shards = [dict(_leaves(_loader(sample, shard=n, shards=4).batch(7))) for n in range(4)]
    for key, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([shard[key] for shard in shards]), value, err_msg=key)
    # Each shard knows which frames the others have, without reading them.
    np.testing.assert_array_equal(_loader(sample, shard=1, shards=4).index_of(7), whole["index"])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"batch_size": 101}, "dataset-smaller-than-batch"),
        ({"shards": 3}, "batch-not-divisible"),
        ({"shard": 2, "shards": 2}, "batch-not-divisible"),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused(sample: Made, options: dict[str, int], code: str) -> None:
    with pytest.raises(HarnessError) as caught:
        _loader(sample, **options)
    assert caught.value.code == code


def test_another_dataset_than_described_is_refused(sample: Made) -> None:
    recipe, dataset, stats = sample
    with pytest.raises(HarnessError) as caught:
        _loader((recipe, dataset.model_copy(update={"frames": 99}), stats))
    assert caught.value.code == "dataset-changed"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_arrives_as_its_own_error(tmp_path: Path, workers: int) -> None:
    root = writer.write(tmp_path, images="files")
    mapped = [
        "data.state=observation.state",
        "data.actions=action",
        "data.cameras.base_0_rgb=cam",
        "data.cameras.left_wrist_0_rgb=null",
    ]
    recipe = load_recipe("smoke", [f"data.dataset={root}", *mapped])
    dataset = describe(recipe)
    (root / "images/cam/episode_000001/frame_000002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    loader = Loader(recipe, dataset, compute(recipe, dataset), batch_size=16, seed=0, workers=workers)
    with closing(loader.iterate(0)) as batches, pytest.raises(HarnessError) as caught:
        next(batches)
    assert caught.value.code == "image-corrupt"
    assert "frame_000002" in caught.value.what or "row 2" in caught.value.what


def test_a_prompt_longer_than_the_model_takes_is_cut_and_reported(sample: Made) -> None:
    recipe, _, stats = sample
    short = recipe.model_copy(update={"model": recipe.model.model_copy(update={"prompt_tokens": 8})})
    dataset = describe(short)
    assert (dataset.longest_prompt_tokens, dataset.prompt_tokens, len(dataset.findings)) == (19, 8, 1)
    batch = _loader((short, dataset, stats)).batch(0)
    full = _loader(sample).batch(0)
    np.testing.assert_array_equal(batch["tokens"], full["tokens"][:, :8])


def test_kept_images_change_nothing(sample: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for three images, for all, and after an epoch has filled it."""
    full = _loader(sample)
    monkeypatch.setattr(loader_module, "KEPT_BYTES", 3 * 3 * 224 * 224)
    small = _loader(sample)
    monkeypatch.setattr(loader_module, "KEPT_BYTES", 0)
    none = _loader(sample)
    for step in range(14):
        _assert_equal(small.batch(step), none.batch(step))
        _assert_equal(full.batch(step), none.batch(step))
    kept = [len(each._batches.sources[0].pictures._kept) for each in (small, none, full)]
    assert kept == [3, 0, 200]


def test_processes_of_the_loader_end_when_the_trainer_is_killed(tmp_path: Path) -> None:
    """Killed, the trainer cannot tell them; left behind, they would hold memory for as long as the machine
    runs.
    """
    script = """
    import itertools, time
    from harness.data.dataset import describe
    from harness.data.loader import Loader
    from harness.data.stats import compute
    from harness.recipe.load import load_recipe
    if __name__ == "__main__":
        recipe = load_recipe("smoke")
        dataset = describe(recipe)
        for _ in Loader(recipe, dataset, compute(recipe, dataset), batch_size=4, seed=1, workers=1).iterate():
            print("ready", flush=True)
            time.sleep(600)
    """
    (tmp_path / "trains.py").write_text(textwrap.dedent(script))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
    }
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "trains.py")], stdout=subprocess.PIPE, env=environment
    ) as trainer:
        assert trainer.stdout is not None
        try:
            assert trainer.stdout.readline() == b"ready\n"
            workers = _loader_processes(trainer.pid)
        finally:
            trainer.kill()
    assert workers
    deadline = time.monotonic() + 120
    while any(_lives(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if _lives(worker)]


def _loader_processes(trainer: int) -> list[str]:
    """Its children that grain has spawned, whichever of its threads did."""
    children = [
        child
        for task in Path(f"/proc/{trainer}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _mapped(root: Path, *more: str) -> Made:
    names = ["data.actions=action", "data.cameras.base_0_rgb=cam", "data.cameras.left_wrist_0_rgb=null"]
    recipe = load_recipe("smoke", [f"data.dataset={root}", *names, *more])
    dataset = describe(recipe)
    return recipe, dataset, compute(recipe, dataset)


def test_a_dataset_without_a_state_has_batches_without_one(tmp_path: Path) -> None:
    """All else is what it is with one, in threads and in processes."""
    root = writer.write(tmp_path)
    with_state, without = _mapped(root, "data.state=observation.state"), _mapped(root, "data.state=null")
    assert list(without[2].norm_stats) == ["actions"]
    assert without[2].norm_stats["actions"] == with_state[2].norm_stats["actions"]
    expected = _loader(with_state).batch(2)
    assert expected.pop("state").shape == (8, 32)
    _assert_equal(_loader(without).batch(2), expected)


def test_a_state_that_is_wider_than_the_model_keeps_its_width(tmp_path: Path) -> None:
    """Three numbers of state, two of actions, and a model of two."""
    made = _mapped(writer.write(tmp_path), "data.state=observation.state", "model.action_dim=2")
    batch = _loader(made).batch(0)
    assert (batch["state"].shape, batch["actions"].shape) == ((8, 3), (8, 10, 2))


def test_training_asks_for_the_tokenizer_that_a_description_can_do_without(tmp_path: Path) -> None:
    made = _mapped(
        writer.write(tmp_path), "data.state=observation.state", f"data.tokenizer={tmp_path / 'nothing.model'}"
    )
    with pytest.raises(HarnessError) as caught:
        _loader(made)
    assert caught.value.code == "tokenizer-not-found"
