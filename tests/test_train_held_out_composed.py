"""Tests held-out episodes together with relative actions, given statistics, chosen episodes and mixtures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts import Dataset
from harness.choose.choose import choose
from harness.data.dataset import describe
from harness.data.given import seen, statistics
from harness.data.loader import Loader
from harness.data.stats import compute
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.report.held_out import charts, dimension_charts
from harness.run.status import read_status
from harness.show.choice import choice_table
from harness.train.held_out import HeldOutPass
from harness.train.held_out_file import values_of
from tests.support.held_out import run_of
from tests.support.held_out_pass import measured, pass_of, target
from tests.support.mixtures import mixture
from tests.support.real_runs import SMALL, harness
from tests.support.robots import aloha, write
from tests.support.session import CACHE

CAMERAS = {"base_0_rgb": "observation.images.cam_high", "left_wrist_0_rgb": None, "right_wrist_0_rgb": None}
LENIENT = "data.degenerate_dimensions=pass_through"
SAMPLE = {
    "dataset": "sample",
    "cameras": {"base_0_rgb": "image", "left_wrist_0_rgb": "wrist_image", "right_wrist_0_rgb": None},
    "state": "state",
    "actions": "actions",
}


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("robots") / "aloha", aloha())


def of_robot(robot: Path, *sets: str) -> Recipe:
    """The smoke recipe on the robot's dataset, one of whose three episodes is held out."""
    mapped = [
        f"data.dataset={robot}",
        f"data.cameras={json.dumps(CAMERAS)}",
        "data.state=observation.state",
        "data.actions=action",
        "train.holdout.episodes=[0]",
        LENIENT,
    ]
    return load_recipe("smoke", [*mapped, *sets])


def both(robot: Path, *sets: str, weights: tuple[float, float] | None = None) -> Recipe:
    """A mixture of the sample and of the robot with relative actions."""
    members = [SAMPLE, {"dataset": str(robot), "cameras": CAMERAS, "relative": ["0-5", "7-12"]}]
    if weights is not None:
        members = [one | {"weight": weight} for one, weight in zip(members, weights, strict=True)]
    return mixture(*members, sets=("train.holdout.episodes=1", LENIENT, *sets))


@pytest.mark.parametrize("spelled", [(), ("data.adapt=aloha",)])
@pytest.mark.parametrize("normalization", ["quantile", "zscore"])
def test_relative_actions_that_are_predicted_exactly_have_no_error(
    robot: Path, normalization: str, spelled: tuple[str, ...]
) -> None:
    sets = ("data.relative=[0-5, 7-12]", f"data.normalization={normalization}", *spelled)
    found = measured(pass_of(of_robot(robot, *sets), target))
    assert np.max(np.array(found.error, np.float64)) < 1e-5
    assert {switch.offset for switch in found.switches} <= {0}


def test_the_error_of_a_relative_dimension_is_in_the_robots_units(robot: Path) -> None:
    def off(one: HeldOutPass, row: int) -> np.ndarray:
        stats = one._job.stats.norm_stats["actions"]
        chunk = target(one, row).copy()
        chunk[:, [1, 6]] += 2 * 0.25 / (np.array(stats.q99) - stats.q01 + 1e-6)[[1, 6]]
        return chunk

    found = measured(pass_of(of_robot(robot, "data.relative=[0-5, 7-12]"), off))
    errors = np.array(found.error, np.float64)
    np.testing.assert_allclose(errors[:, [1, 6]], 0.25, rtol=1e-3)
    assert np.delete(errors, [1, 6], axis=1).max() < 1e-5
    # An adapted gripper is wider in the model's units than on the robot.
    adapted = measured(pass_of(of_robot(robot, "data.adapt=aloha"), off))
    assert np.allclose(np.array(adapted.error)[:, 6], 0.25 / (1.4910 + 0.6213), rtol=1e-3)


def test_the_scale_of_an_error_is_the_spread_in_the_robots_units(robot: Path) -> None:
    plain = measured(pass_of(of_robot(robot), target)).spread
    adapted = measured(pass_of(of_robot(robot, "data.adapt=aloha"), target)).spread
    assert plain == pytest.approx(adapted, rel=1e-4)


def test_no_relative_action_is_taken_for_an_odd_one(robot: Path) -> None:
    assert (
        pass_of(of_robot(robot, "data.relative=[0-5, 7-12]", "train.holdout.episodes=[1]"), target).odd()
        == []
    )


def test_an_excluded_episode_is_neither_held_out_nor_trained_on() -> None:
    for seed in range(8):
        sets = ("data.episodes.exclude=[1, 3]", "train.holdout.episodes=2", f"train.holdout.seed={seed}")
        recipe = load_recipe("smoke", [*sets, LENIENT])
        dataset = describe(recipe)
        assert len(dataset.held_out) == 2
        assert set(dataset.held_out) < {0, 2, 4, 5, 6, 7}
        loader = Loader(recipe, dataset, compute(recipe, dataset), batch_size=4, seed=1)
        data = loader.sources[0].pictures.data
        held = sum(one.length for one in data.episodes if one.index in dataset.held_out)
        assert (dataset.frames, dataset.trained_frames) == (76, 76 - held)
        trained = {data.episode_of(int(i)).index for step in range(13) for i in loader.batch(step)["index"]}
        assert trained == {0, 2, 4, 5, 6, 7} - set(dataset.held_out)
    named = load_recipe("smoke", ["data.episodes.exclude=[1]", "train.holdout.episodes=[1]"])
    with pytest.raises(HarnessError) as refusal:
        describe(named)
    assert refusal.value.code == "holdout-unknown-episode"


def test_given_statistics_are_held_against_trained_episodes_and_used_by_the_pass(tmp_path: Path) -> None:
    held = ("train.holdout.episodes=[4]", LENIENT)
    recipe = load_recipe("smoke", list(held))
    ours = compute(recipe, describe(recipe))
    body = json.loads(ours.model_dump_json())["norm_stats"]
    body["actions"]["q99"] = [value + 1 for value in body["actions"]["q99"]]
    file = tmp_path / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": body}))
    given = load_recipe("smoke", [*held, f"data.norm_stats={file}"])
    dataset = describe(given)
    assert statistics(given, dataset).frames == 87
    assert {e.index for block in seen(given, dataset) or () for e in block.episodes} == {0, 1, 2, 3, 5, 6, 7}
    found = measured(pass_of(given, target))
    assert np.max(np.array(found.error, np.float64)) < 1e-5
    plain = measured(pass_of(recipe, target))
    assert found.spread[2] == pytest.approx((plain.spread[2] or 0) + 1)


def test_each_dataset_of_a_mixture_holds_out_its_own(robot: Path) -> None:
    recipe = both(robot)
    dataset = describe(recipe)
    assert [len(one.held_out) for one in dataset.members] == [1, 1]
    assert dataset.trained_frames == sum(one.trained_frames or 0 for one in dataset.members)
    # Without weights each frame that is trained on is drawn equally often.
    assert dataset.shares[0] * dataset.members[1].trained == dataset.shares[1] * dataset.members[0].trained
    loader = Loader(recipe, dataset, compute(recipe, dataset), batch_size=4, seed=1)
    numbers = [int(i) for step in range(60) for i in loader.batch(step)["index"]]
    for part, (source, one) in enumerate(zip(loader.sources, dataset.members, strict=True)):
        data = source.pictures.data
        mine = {loader.number_of(part, i) for i in range(data.frames)}
        away = {i for i in mine if data.episode_of(i - min(mine)).index in one.held_out}
        assert away
        assert set(numbers) & mine == mine - away


def test_a_mixtures_statistics_are_those_of_the_episodes_that_are_trained_on(robot: Path) -> None:
    held = both(robot, weights=(1, 1))
    dataset = describe(held)
    members = [json.loads(one.model_dump_json()) for one in held.data.datasets or []]
    for member, one in zip(members, dataset.members, strict=True):
        member["episodes"] = {"exclude": one.held_out}
    without = mixture(*members, sets=(LENIENT,))
    one, other = compute(held, dataset), compute(without, describe(without))
    assert one.norm_stats == other.norm_stats
    assert one.frames == other.frames == dataset.trained_frames


@pytest.mark.parametrize(
    ("asked", "code"), [("[0, 4]", "holdout-unknown-episode"), ("3", "holdout-leaves-nothing")]
)
def test_the_dataset_that_cannot_hold_out_so_much_is_named(robot: Path, asked: str, code: str) -> None:
    with pytest.raises(HarnessError, match=r"data\.datasets\.1 .*aloha") as refusal:
        describe(both(robot, f"train.holdout.episodes={asked}"))
    assert refusal.value.code == code


def test_a_line_of_a_mixture_has_each_dataset_and_their_sum_by_shares(robot: Path, tmp_path: Path) -> None:
    sets = ("train.holdout={episodes: [1], frames: 13}",)
    recipe = both(robot, *sets, weights=(3, 1))
    losses = np.zeros(100)
    losses[:7], losses[7:13] = 1.0, 2.0
    one = pass_of(recipe, target, losses)
    assert one.rows.measured == 13
    assert one.rows.part[:13] == [0] * 7 + [1] * 6
    found = measured(one)
    assert [(each.share, each.episodes, len(each.spread)) for each in found.datasets] == [
        (3, 1, 7),
        (1, 1, 14),
    ]
    assert found.loss == [1.0, 2.0]
    assert found.mean_loss == pytest.approx(1.25)
    assert max(value or 0 for row in found.error for value in row) < 1e-5
    values = values_of(found)
    assert values["held_out/loss"] == pytest.approx(1.25)
    assert values[f"held_out/loss/{robot}"] == 2.0
    assert f"held_out/action_error_13/{robot}" in values

    run = run_of(tmp_path / "run", [found, found.model_copy(update={"step": 8, "loss": [0.5, 2.5]})], [4, 8])
    choice = choose(run)
    assert [mark.loss.mean for mark in choice.marks] == pytest.approx([1.25, 1.0])
    assert [[of.loss.mean for of in mark.datasets] for mark in choice.marks] == [[1.0, 2.0], [0.5, 2.5]]
    assert choice.chosen == 8
    assert choice.episodes == 2
    (run.path / "recipe.yaml").write_text("name: x\n")
    assert read_status(run).held_out_loss == pytest.approx(1.25)
    assert f"held-out loss of {robot}" in [chart.title for chart in charts(choice)]
    assert f"actions[13] of {robot}" in [chart.title for chart in dimension_charts(choice)]
    assert choice_table(choice)


def test_rows_of_a_mixture_are_those_of_each_dataset_alone(robot: Path) -> None:
    rows = pass_of(both(robot, "train.holdout.frames=8"), target).rows
    alone = pass_of(of_robot(robot, "train.holdout={episodes: 1, frames: 4}"), target).rows
    mine = [row for row, part in enumerate(rows.part) if part == 1]
    assert [rows.frames[row] for row in mine] == alone.frames
    np.testing.assert_array_equal(rows.noise[mine], alone.noise)
    switches = [each for each in rows.switches if rows.part[each.row] == 1]
    assert [(mine.index(each.row), each[1:]) for each in switches] == [
        (each.row, each[1:]) for each in alone.switches
    ]


def test_a_run_of_a_mixture_measures_each_dataset_and_fill_gives_the_same_lines(
    robot: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    members = [SAMPLE, {"dataset": str(robot), "cameras": CAMERAS, "state": "observation.state"}]
    members[1] |= {"actions": "action", "relative": ["0-5", "7-12"]}
    sets = [f"data.datasets={json.dumps(members)}", "train.holdout.episodes=1", LENIENT]
    harness(
        CACHE,
        *("train", "--recipe=smoke", "--steps=4", *SMALL, *(f"--set={one}" for one in sets)),
        *("--run", str(run)),
    )
    dataset = Dataset.model_validate_json((run / "dataset.json").read_text())
    text = (run / "held_out.jsonl").read_text()
    (line,) = map(json.loads, text.splitlines())
    assert [one["dataset"] for one in line["datasets"]] == [one.source for one in dataset.members]
    assert line["episodes"] == [number for one in dataset.members for number in one.held_out]
    manifest = json.loads((run / "manifest.json").read_text())
    assert [one["held_out"] for one in manifest["datasets"]] == [one.held_out for one in dataset.members]
    assert "held-out loss of sample" in (run / "report.html").read_text()
    (run / "held_out.jsonl").unlink()
    harness(CACHE, "choose", str(run), "--fill")
    (again,) = map(json.loads, (run / "held_out.jsonl").read_text().splitlines())
    assert {**again, "seconds": 0, "time": 0} == {**line, "seconds": 0, "time": 0}
