"""Tests the drawings of the report page: a prediction, and what moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import artifacts as a
from harness.report import drawings
from harness.report.page import render
from tests.support.report_run import Page, full_run


def test_prediction_is_drawn(tmp_path: Path) -> None:
    run = full_run(tmp_path / "smoke-001")
    question: dict[str, Any] = {
        "episode": 3,
        "frame": 4,
        "task": "open <b>it</b>",
        "action_horizon": 2,
        "sampling_steps": 10,
        "seed": 0,
    }
    answer: dict[str, Any] = {
        "predicted": [[0.0, 5.0], [1.0, 5.0]],
        "recorded": [[1.0, 5.0], [0.0, 5.0]],
        "is_pad": [False, True],
    }
    run.write(
        a.Prediction(
            checkpoint="x",
            step=9,
            dataset="sample",
            device="cpu",
            mean_absolute_error=[1.0, 0.0],
            **question,
            **answer,
        )
    )
    html = render(run)
    assert html.count("<polyline") == 4
    assert "open <b>it</b>" in Page(html).text
    first = drawings.prediction_panels(run.read(a.Prediction))[0]  # type: ignore[arg-type]
    assert (first.recorded, first.predicted) == ("6.0,6.0 314.0,114.0", "6.0,114.0 314.0,6.0")


def test_what_moved_is_shaded_by_how_much() -> None:
    assert drawings.shade(0.0, 1.0) == 0
    assert drawings.shade(None, 1.0) is None
    assert drawings.shade(1.0, 1.0) == drawings.SHADES
    assert drawings.shade(1e-9, 1.0) == 1
    assert drawings.shade(10**-1.5, 1.0) == drawings.SHADES // 2


def test_moved_is_on_the_page(tmp_path: Path) -> None:
    run = full_run(tmp_path / "smoke-001")
    checkpoint = run.read(a.Checkpoint)
    assert checkpoint is not None
    one = {"update_norm": 0.5, "base_norm": 1.0, "relative": 0.5, "changed": 1.0, "parameters": 4}
    blocks = [a.Movement(name="expert attention", layer=layer, **one) for layer in range(3)] + [
        a.Movement(name="time_mlp_in", **one)
    ]
    moved = a.Moved(
        against="base",
        against_step=None,
        groups=[a.Movement(name="expert", **one)],
        blocks=blocks,
        only_here=[],
        only_there=[],
        not_compared=[],
    )
    run.write(checkpoint.model_copy(update={"moved": moved}))
    html = render(run)
    assert html.count('class="s"') == 4
    assert "layer 2: 5.00e-01" in html
