"""Tests what a plan and a status make of a calibration, and of one that is another's or somebody's."""

from __future__ import annotations

import contextlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import (
    Calibration,
    CalibrationStage,
    Ceilings,
    Context,
    Manifest,
    Plan,
    Product,
)
from harness.errors import HarnessError
from harness.plan import cost
from harness.plan.asked import Ask, Tools
from harness.plan.calibrated import applied, calibrated, find, recipe_of, root
from harness.plan.cards import CARDS
from harness.plan.choose import choose
from harness.received import consent
from harness.run.directory import RunDir
from harness.run.status import read_status
from harness.show.calibration import calibration_view
from harness.show.plan import plan_view
from harness.show.status import status_table
from harness.units import GIB
from tests.support.calibrating import calibration, kept, measured, stage_of, taking, target, words
from tests.support.planned import FULL, Formula
from tests.test_run_contents import HOSTILE, paths, put
from tests.test_status import held, make


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def planned(of: Any = None) -> Plan:
    """The plan of the published recipe for the card of the target, as the trainer's own room makes it."""
    machine = (of or target()).machine
    return applied(
        choose(FULL, machine, None, Ask(), inputs="0", tools=Tools(None, Formula())), FULL, machine
    )


def test_without_a_calibration_a_plan_is_what_it_was() -> None:
    machine = target().machine
    made = choose(FULL, machine, None, Ask(), inputs="0", tools=Tools(None, Formula()))
    assert applied(made, FULL, machine) == made
    assert "calibrated" not in made.model_dump_json()


def test_a_plan_is_scaled_to_what_its_card_was_measured_to_do() -> None:
    before = planned()
    kept(calibration(*taking(1.2, 1.25)))
    after = planned()
    assert before.chosen is not None
    assert after.chosen is not None
    assert before.chosen.seconds_per_step is not None
    pace = math.sqrt(1.2 * 1.25)
    assert after.chosen.seconds_per_step == pytest.approx(pace * before.chosen.seconds_per_step)
    assert after.chosen.levers == before.chosen.levers
    assert after.chosen in after.candidates
    assert after.calibrated is not None
    assert after.calibrated.pace == pytest.approx(pace)
    # Each by the other: 1.25 for 1.2, and 1.2 for 1.25.
    assert after.calibrated.error == pytest.approx(1.25 / 1.2 - 1)
    assert after.inputs != before.inputs
    said = words(plan_view(after))
    assert "1.22 times the cost model, by 2 steps measured on this card" in said
    assert "at most 4 % off" in said
    assert Plan.model_validate_json(after.model_dump_json()) == after


def test_a_card_of_this_machine_that_was_never_measured_can_be() -> None:
    unmeasured = target("NVIDIA GeForce RTX 4090")
    assert "never measured on this card; harness calibrate measures it" in words(
        plan_view(planned(unmeasured))
    )
    assert "harness calibrate" not in words(plan_view(planned()))


def test_one_step_says_nothing_of_the_error() -> None:
    kept(calibration(*taking(1.1)))
    made = planned()
    assert made.calibrated is not None
    assert made.calibrated.error is None
    assert "its error is not known from one" in words(plan_view(made))


def test_the_loader_is_no_faster_on_a_slower_card() -> None:
    levers = measured(1.0).levers
    slow = cost.seconds_per_step(FULL, levers, CARDS["h200"], 0.5, pace=0.1)
    assert slow == 256 / (cost.LOADER_SAMPLES_PER_CORE * 0.5)


def test_another_card_of_the_kind_is_named_as_one() -> None:
    kept(calibration(*taking(1.1, 1.1), uuid="GPU-of-another-machine"))
    made = planned()
    assert made.calibrated is not None
    assert made.calibrated.same_card is False
    assert "on another card of this kind" in words(plan_view(made))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"driver": "570.86"}, "its driver is 570, here 580"),
        ({"driver": None}, "its driver is not known, here 580"),
        ({"jaxlib": "0.9"}, "its jaxlib is 0.9"),
        ({"step_sha256": "abc"}, "its source of the step is abc"),
        ({"total_bytes": 80 * GIB}, "another memory"),
    ],
)
def test_a_calibration_of_something_else_is_named_and_not_used(other: dict[str, Any], says: str) -> None:
    before = planned()
    kept(calibration(*taking(2.0, 2.0), **other))
    made = planned()
    assert made.calibrated is None
    assert made.chosen == before.chosen
    assert any(says in note for note in made.notes)
    assert any("harness calibrate measures this card" in note for note in made.notes)
    assert "measured on this card" in words(plan_view(made))


def test_a_minor_version_of_the_driver_is_no_other_driver() -> None:
    kept(calibration(*taking(1.1, 1.1), driver="580.95.05"))
    assert planned().calibrated is not None


def test_the_calibration_of_another_card_says_nothing() -> None:
    kept(calibration(*taking(2.0, 2.0), card="NVIDIA GeForce RTX 4090"))
    made = planned()
    assert made.calibrated is None
    assert not any("calibration" in note for note in made.notes)


def test_what_was_marked_is_in_no_prediction() -> None:
    marked = [stage.model_copy(update={"marks": ["throttled: power brake"]}) for stage in taking(3.0)]
    kept(calibration(*taking(1.1), *(stage.model_copy(update={"name": "hot"}) for stage in marked)))
    made = planned()
    assert made.calibrated is not None
    assert (made.calibrated.steps, made.calibrated.pace) == (1, pytest.approx(1.1))
    kept(calibration(*marked))
    made = planned()
    assert made.calibrated is None
    assert any("no step that predictions can follow from" in note for note in made.notes)


def test_a_card_without_figures_is_predicted_once_it_was_calibrated() -> None:
    unlisted = target("NVIDIA H20 Special Edition of Nobody")
    assert planned(unlisted).chosen.seconds_per_step is None  # type: ignore[union-attr]
    kept(calibration(stage_of("full", measured(9.0)), of=unlisted))
    chosen = planned(unlisted).chosen
    assert chosen is not None
    assert chosen.seconds_per_step is not None
    assert "seconds_per_step" not in chosen.unknown


def test_a_context_larger_than_the_plan_keeps_is_told() -> None:
    context = CalibrationStage(name="context", state="measured", context=Context(context_bytes=2 * GIB))
    kept(calibration(*taking(1.1), context))
    assert any("the context took 2.0 GiB" in note and "--vram-gib" in note for note in planned().notes)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[1]",
        '{"schema_version": 1}',
        json.dumps({"card": "NVIDIA H200", "jax": "1", "measured": "2026-01-01", "total_bytes": 1e40}),
        json.dumps({"card": "NVIDIA H200", "jax": "1", "measured": "x" * 99}),
    ],
)
def test_a_file_from_elsewhere_that_is_none_stops_no_plan(body: str) -> None:
    (root() / "nvidia-h200-x").mkdir(parents=True)
    (root() / "nvidia-h200-x/calibration.json").write_text(body)
    (root() / "a file").write_text("no directory")
    made = planned()
    assert made.chosen is not None
    assert any("a calibration cannot be used" in note and "rm " in note for note in made.notes)


@pytest.mark.parametrize("figure", ["NaN", "Infinity", "0", "-1", "1e9", '"x"', "null"])
def test_a_step_of_no_duration_is_none(figure: str) -> None:
    body = json.loads(calibration(*taking(1.1)).model_dump_json())
    body["stages"][0]["plan"]["seconds"] = ["FIGURE"]
    (root() / "x").mkdir(parents=True)
    (root() / "x/calibration.json").write_text(json.dumps(body).replace('"FIGURE"', figure))
    made = planned()
    assert made.calibrated is None
    assert any("a calibration cannot be used" in note for note in made.notes)


@pytest.mark.parametrize(
    "strange",
    [
        {"recipe": "/etc/passwd"},
        {"recipe": "mine.yaml"},
        {"changes": {"nothing.of.it": 1}},
        {"changes": {"train": 3}},
        {"changes": {"train.trained": "everything"}},
    ],
)
def test_a_recipe_that_is_not_shipped_is_not_opened(
    strange: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    assert recipe_of(measured(1.0, **strange)) is None
    made = calibration(stage_of("full", measured(1.0, **strange)))
    assert calibrated(made, CARDS["h200"]) is None


def test_what_a_calibration_names_may_not_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a source in it, nor those of the shipped recipe that it measured."""
    machine = target().machine
    made = choose(FULL, machine, None, Ask(), tools=Tools(None, Formula()))
    granted: list[Any] = []
    monkeypatch.setattr(consent, "grant", lambda *sources: granted.extend(sources))
    strange = {"weights.source": "https://elsewhere.example/params"}
    kept(calibration(stage_of("full", measured(5.0, recipe="pi05_droid", changes=strange))))
    after = applied(made, FULL, machine)
    words(plan_view(after))
    assert after.calibrated is not None
    assert granted == []


def test_no_content_of_a_calibration_brings_a_plan_or_a_table_down() -> None:
    """One change of the file after the other, each elsewhere: it is used, or named with its fix."""
    load = stage_of("full", measured(5.0, peak_bytes=7, limit_bytes=9, predicted_s=4.0), wall_s=1.0)
    ceilings = Ceilings(products=[Product(m=1, k=2, n=3, flops_per_s=4.0, chained=5)], copy_bytes_per_s=6.0)
    other = CalibrationStage(name="ceilings", state="measured", ceilings=ceilings)
    path, chance = kept(calibration(load, other)), random.Random(0)
    whole = path.read_text()
    places = paths(json.loads(whole))
    machine = target().machine
    made = choose(FULL, machine, None, Ask(), tools=Tools(None, Formula()))
    for _ in range(120):
        changed = put(json.loads(whole), chance.choice(places), chance.choice([*HOSTILE, None]))
        path.write_text(json.dumps(changed))
        after = applied(made, FULL, machine)
        assert after.chosen is not None
        assert after.chosen.seconds_per_step is not None
        assert math.isfinite(after.chosen.seconds_per_step), changed
        words(plan_view(after))
        with contextlib.suppress(HarnessError):
            found = RunDir(path.parent).read(Calibration)
            assert found is not None
            words(calibration_view(found))


def test_a_status_goes_by_the_calibration_until_the_run_has_a_pace(tmp_path: Path) -> None:
    run = make(tmp_path, 0)
    plan = run.read(Plan)
    assert plan is not None
    with held(run):
        assert read_status(run).eta_s is None
    chosen = plan.chosen.model_copy(update={"seconds_per_step": 3.0})  # type: ignore[union-attr]
    how = calibrated(calibration(*taking(1.1, 1.2)), CARDS["h200"])
    run.write(plan.model_copy(update={"chosen": chosen, "candidates": [chosen], "calibrated": how}))
    (run.path / Manifest.FILE).unlink(missing_ok=True)
    with held(run):
        found = read_status(run)
    assert (found.eta_s, found.eta_by) == (180.0, "calibration")
    assert "by the plan, whose card was calibrated" in words(status_table(found))
    again = make(tmp_path / "b", 30)
    with held(again):
        found = read_status(again, now=0)
    assert (found.eta_s, found.eta_by) == (60.0, "run")


def test_the_newest_of_two_that_hold_is_taken() -> None:
    kept(calibration(*taking(1.1, 1.1), measured="2026-01-01", driver="580.1"))
    kept(calibration(*taking(1.3, 1.3), measured="2026-02-01", driver="580.2"))
    found = find(target().device, "580.3")
    assert found.calibration is not None
    assert found.calibration.measured == "2026-02-01"
