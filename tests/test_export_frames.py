"""Tests that checks and predictions of an export see what training saw: state, relative actions, mixtures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts import Dataset, DimensionStats
from harness.checkpoint.locate import Located, locate, recipe_of
from harness.data.dataset import describe, open_for
from harness.data.norm_files import read_norm_stats
from harness.errors import HarnessError
from harness.predict import agree
from harness.predict.deliver import Wish, deliver, widths_of
from harness.predict.predict import Device, Question, predict
from harness.recipe.schema import Recipe
from harness.run.directory import RunDir
from tests.support.exported import recipe_of_kind, seeded, write_checkpoint
from tests.support.mixtures import mixture, three

CPU = Device("cpu", "cpu", None, None)
STATE, RELATIVE = "model.discrete_state_input=true", "data.relative=0-2,5"


def say(_: str) -> None: ...


def of(width: int) -> DimensionStats:
    return DimensionStats(mean=[0.0] * width, std=[1.0] * width, q01=[-2.0] * width, q99=[2.0] * width)


def mixed(root: Path, *sets: str) -> Recipe:
    return mixture(*({"dataset": each} for each in three(root)), sets=("model.image_size=56", *sets))


def predicted(source: Path, recipe: Recipe, frame: int) -> np.ndarray:
    found = predict(locate(str(source)), recipe, Question(frame=frame, sampling_steps=2), CPU, say)
    return np.array(found.predicted)


@pytest.mark.parametrize("target", ["lerobot", "openpi-pytorch"])
def test_an_export_predicts_the_robots_actions_as_its_source_does(target: str, tmp_path: Path) -> None:
    recipe = recipe_of_kind("full", STATE, RELATIVE, "data.dataset=sample", "model.compute_dtype=float32")
    step = write_checkpoint(tmp_path / "5", recipe)
    made = deliver(locate(str(step)), recipe, tmp_path / "out", Wish(target, None, 2), say)
    assert made["check"]["largest"] <= made["check"]["tolerance"]
    own = recipe_of(locate(str(tmp_path / "out")), None)
    assert (own.data.relative, own.model.discrete_state_input) == (["0-2", "5"], True)
    source, written = (predicted(each, recipe, 4) for each in (step, tmp_path / "out"))
    np.testing.assert_allclose(written, source, rtol=0, atol=1e-3)
    # The state is added to relative dimensions, in the robot's units.
    plain = predicted(step, recipe_of(locate(str(step)), None, ["data.relative=null"]), 4)
    state = open_for(recipe)[1].state(4)[:7]
    wanted = np.where([True, True, True, False, False, True, False], state, 0)
    np.testing.assert_allclose(source - plain, np.broadcast_to(wanted, plain.shape), rtol=0, atol=1e-4)


def test_the_check_shows_the_prompt_with_the_state() -> None:
    given = recipe_of_kind("full", "data.dataset=sample")
    stats = {"state": of(8), "actions": of(7)}
    without, told = (
        agree.frames_of(recipe, stats, 3).batches
        for recipe in (given, recipe_of_kind("full", "data.dataset=sample", STATE))
    )
    for one, two in zip(without, told, strict=True):
        assert two["token_mask"].sum() > one["token_mask"].sum() + 8


@pytest.mark.parametrize("everywhere", [False, True])
def test_actions_that_are_not_numbers_fail_the_check_where_they_are(everywhere: bool) -> None:
    frames = agree.Frames([3, 8], [], np.zeros((2, 10, 32)))
    source = np.zeros((2, 10, 32))
    written = np.full_like(source, np.nan) if everywhere else source + 9
    written[1, 4, 2] = np.nan
    with pytest.raises(HarnessError) as caught:
        agree.compare_actions(source, written, frames, None)
    assert caught.value.code == "export-check-failed"
    where = "frame 3, step 0 of the chunk, dimension 0" if everywhere else "frame 8, step 4 of the chunk"
    assert f"a difference of nan at {where}" in str(caught.value.got)


def test_the_check_goes_through_all_datasets_of_a_mixture(tmp_path: Path) -> None:
    recipe = mixed(tmp_path)
    # Wider than any of the datasets, as a mixture's are.
    stats = {"state": of(8), "actions": of(8)}
    every = agree.frames_of(recipe, stats, 1000)
    # Datasets of 16, 30 and 9 frames, one after the other.
    assert every.indices == list(range(55))
    parts = [open_for(part)[1] for part in recipe.parts()]
    for i, part, row in ((0, 0, 0), (15, 0, 15), (16, 1, 0), (45, 1, 29), (46, 2, 0), (54, 2, 8)):
        seen = agree.frames_of(recipe.parts()[part], stats, 1000).batches[row]
        np.testing.assert_array_equal(every.batches[i]["actions"], seen["actions"])
        np.testing.assert_array_equal(every.batches[i]["tokens"], seen["tokens"])
        assert parts[part].frames > row


def test_a_mixture_is_exported_with_its_own_statistics_where_its_run_says_the_dimensions(
    tmp_path: Path,
) -> None:
    recipe = mixed(tmp_path / "data")
    run = tmp_path / "run"
    step = write_checkpoint(run / "checkpoints/5", recipe, params=seeded(recipe))
    (run / "manifest.json").write_text("{}")
    with pytest.raises(HarnessError) as caught:
        deliver(locate(str(step)), recipe, tmp_path / "out", Wish("lerobot"), say)
    assert caught.value.code == "export-mixture-differs"
    RunDir(run).write(describe(recipe))
    known = widths_of(locate(str(run)), recipe)
    assert known is not None
    assert len(set(known)) == 1
    made = deliver(locate(str(run)), recipe, tmp_path / "out", Wish("lerobot"), say)
    # An export of the export knows them too, without the run.
    assert widths_of(Located(tmp_path / "out", None, None), recipe) == known
    assert made["recipe"]["data"]["datasets"][0]["dataset"] == recipe.data.datasets[0].dataset  # type: ignore[index]
    deliver(locate(str(tmp_path / "out")), recipe, tmp_path / "jax", Wish("openpi-jax"), say)
    file = tmp_path / "jax/assets" / recipe.data.asset_id / "norm_stats.json"
    before = read_norm_stats(step / "assets" / recipe.data.asset_id / "norm_stats.json").stats
    after = read_norm_stats(file).stats
    for key in ("actions", "state"):
        np.testing.assert_allclose(after[key].q99, before[key].q99, rtol=1e-7)


def test_a_last_dimension_that_is_always_zero_is_kept(tmp_path: Path) -> None:
    recipe = recipe_of_kind("full", STATE, "data.dataset=sample")
    run = tmp_path / "run"
    step = write_checkpoint(run / "checkpoints/5", recipe)
    (run / "manifest.json").write_text("{}")
    file = step / "assets" / recipe.data.asset_id / "norm_stats.json"
    body = json.loads(file.read_text())
    for each in body["norm_stats"]["state"].values():
        each[-1] = 0.0
    file.write_text(json.dumps(body))
    RunDir(run).write(describe(recipe))
    assert RunDir(run).read(Dataset) is not None
    deliver(locate(str(run)), recipe, tmp_path / "out", Wish("lerobot"), say)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["input_features"]["observation.state"]["shape"] == [8]


def test_the_statistics_of_the_adapters_go_along_and_not_the_bases(tmp_path: Path) -> None:
    base = tmp_path / "base"
    recipe = recipe_of_kind("lora", f"weights.source={base}")
    plain = {path: value for path, value in seeded(recipe).items() if "lora" not in path}
    full = recipe_of_kind("full")
    write_checkpoint(base, full, params=plain)
    file = base / "assets" / full.data.asset_id / "norm_stats.json"
    file.write_text(file.read_text().replace("1.5", "9.5"))
    step = write_checkpoint(tmp_path / "5", recipe)
    deliver(locate(str(step)), recipe, tmp_path / "alone", Wish("openpi-jax", alone=True), say)
    wish = Wish("openpi-jax", adapters=(tmp_path / "alone",))
    deliver(Located(base, None, None), recipe, tmp_path / "out", wish, say)
    written = tmp_path / "out/assets" / recipe.data.asset_id / "norm_stats.json"
    trained = step / "assets" / recipe.data.asset_id / "norm_stats.json"
    assert written.read_bytes() == trained.read_bytes()
