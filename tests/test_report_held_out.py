"""Tests that the page, the doctor, analyse and openpi's trainer know of held-out episodes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.analyse.held_out import held_out, measured
from harness.artifacts import Choice
from harness.artifacts.choice import Interval
from harness.choose.choose import choose
from harness.data.dataset import describe
from harness.data.stats import compute
from harness.doctor import content
from harness.errors import HarnessError
from harness.openpi.job import check_upstream_can
from harness.recipe.load import load_recipe
from harness.report.held_out import charts, dimension_charts
from harness.report.page import render
from harness.run.directory import RunDir
from harness.run.status import read_status
from tests.support.held_out import falling, line, run_of
from tests.support.report_run import full_run
from tests.support.situations import situation


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    directory = full_run(tmp_path / "smoke-001")
    run_of(directory.path, falling(5, 4), [20, 40])
    directory.write(choose(directory))
    return directory


def test_the_page_has_a_curve_a_mark_for_each_save_and_the_chosen_one(run: RunDir) -> None:
    page = render(run)
    section = page[page.index('id="held-out"') : page.index("What is learned")]
    assert section.count('<circle class="chosen"') == 2 + 3  # two curves, three dimensions
    assert section.count('<circle class="disk"') == 5
    assert section.count('<circle class="gone"') == 10
    assert "step 40 has the least held-out loss" in section
    assert "1, by 2.0" in section  # one of the switches comes two frames late
    assert "nan" not in section.lower().replace("finance", "")


def test_the_page_of_a_run_that_holds_nothing_out_says_so(tmp_path: Path) -> None:
    assert "No episode was held out" in render(full_run(tmp_path / "smoke-001"))


def test_a_difference_without_a_mean_is_a_save_that_is_not_compared(run: RunDir) -> None:
    """Ours write none; a choice.json may be somebody else's."""
    choice = choose(run)
    marks = [mark.model_copy(update={"worse": Interval(mean=None)}) for mark in choice.marks]
    run.write(choice.model_copy(update={"marks": marks}))
    assert render(run).count("not compared") == 3


def test_points_lie_within_the_drawing_whatever_the_values(tmp_path: Path) -> None:
    lines = [line(10, [1e30, 1.0], error=0.0), line(20, [1.0, None]), line(30, [1.0, 1.0], error=3.0)]
    found = choose(run_of(tmp_path / "run", lines, [30]))
    for chart in (*charts(found), *dimension_charts(found)):
        numbers = [float(x) for x in re.findall(r"-?[\d.]+", f"{chart.band} {chart.line}")]
        assert all(0 <= x <= 460 for x in numbers), chart


def test_status_and_analyse_read_the_last_measured_save(run: RunDir) -> None:
    status = read_status(run)
    assert status.held_out_step == 40
    assert status.held_out_loss == pytest.approx(choose(run).marks[-1].loss.mean)
    curve = measured(run.path)
    assert curve is not None
    found, lost = held_out(curve)
    assert found is not None
    assert (found.step, lost, found.lowest_at_step) == ([10, 20, 30, 40], [], 40)


def test_analyse_names_saves_that_are_not_finite(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [line(10, [1.0]), line(20, [None])], [])
    curve = measured(run.path)
    assert curve is not None
    assert held_out(curve)[1] == [20]


def test_the_doctor_names_a_holdout_that_leaves_less_than_a_batch(tmp_path: Path) -> None:
    recipe = load_recipe("smoke", ["train.holdout.episodes=6", "train.global_batch=32"])
    dataset = describe(recipe)
    (finding, *_) = content.dataset(
        situation(tmp_path, recipe=recipe, dataset=dataset, stats=compute(recipe, dataset))
    )
    assert finding.severity == "error"
    assert dataset.trained_frames in (24, 25, 26)
    assert f"{dataset.trained_frames} frames left by the 6 held-out episodes" in finding.got
    assert f"train.global_batch={dataset.trained_frames}" in finding.fix


def test_openpis_trainer_refuses_to_hold_episodes_out() -> None:
    with pytest.raises(HarnessError, match=r"train\.holdout") as refusal:
        check_upstream_can(load_recipe("pi05_libero", ["train.holdout.episodes=0.05"]))
    assert refusal.value.code == "upstream-cannot"
    assert "--set train.holdout=null" in refusal.value.fix


def test_a_choice_reads_back_as_it_was_written(run: RunDir) -> None:
    assert run.read(Choice) == choose(run)
