"""Tests the cost model against measured steps, and what a plan says of its error."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks import cost_points
from harness.artifacts import Plan
from harness.plan.cards import CARDS
from harness.plan.measured import OTHERS, OURS, Point, known_error, of_device
from harness.show.plan import plan_view
from tests.support.planned import FULL, gpu, planned, with_gpus


@pytest.mark.parametrize("point", OURS, ids=lambda point: point.name)
def test_a_step_of_ours_takes_what_was_predicted(point: Point) -> None:
    # An earlier step took longer than today's is predicted to take.
    assert point.error <= (0.05 if point.earlier else 0.15)
    assert point.gone or point.error >= -0.15
    rows = point.levers.microbatch * point.levers.accumulation_steps
    assert point.name.startswith(str(rows))


def test_the_table_has_every_point_and_says_which_program_is_not_modelled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["cost_points"])
    cost_points.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(OURS) + len(OTHERS)
    assert sum("not modelled" in line for line in lines) == len(OTHERS)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    for point in (*OURS, *OTHERS):
        assert any(point.source in line and f"{100 * point.error:+.1f} %" in line for line in lines)


@pytest.mark.parametrize("device", ["h200", "NVIDIA H200", "8 x h200", "2 hosts of 8 x NVIDIA H200"])
def test_a_card_that_was_measured_has_its_points(device: str) -> None:
    assert of_device(device) == list(OURS)


@pytest.mark.parametrize(
    "device",
    [
        "h100",
        "NVIDIA H200 NVL",
        "NVIDIA GeForce RTX 4090",
        "a card of 141 GiB",
        "cpu",
        "",
        " x h200",
        "two x h200",
    ],
)
def test_another_card_has_none(device: str) -> None:
    assert of_device(device) == []
    assert known_error(device, 1) == "cost model, never measured on this card"


def test_a_plan_says_the_error_that_is_known_for_its_card() -> None:
    told = [point for point in OURS if not point.gone]
    most = max(abs(point.error) for point in told)
    said = f"at most {100 * most:.0f} % off in {len(told)} steps measured on this card"
    assert said in _shown(gpu="h200")
    several = _shown(gpu="h200:4")
    assert said in several
    assert "never measured on several" in several
    assert ("earlier version of the step" in several) == any(point.earlier for point in OURS)
    assert "never measured on this card" in _shown(gpu="h100")
    here = with_gpus(gpu(name=CARDS["h200"].device, capability="9.0", total=140))
    assert said in _words(planned(FULL, here))


def _shown(gpu: str) -> str:
    return _words(planned(FULL, gpu=gpu))


def _words(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=400, record=True)
    console.print(plan_view(plan))
    return console.export_text()
