"""Tests how verify reads and compares metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.verify.replay import compare_metrics, recorded_metrics


def metrics(loss: float, step: int = 0) -> dict[int, dict[str, float]]:
    return {step: {"loss": loss, "grad_norm": 1.0, "param_norm": 2.0, "learning_rate": 1e-4}}


@pytest.mark.parametrize(
    ("recorded", "again", "tolerance", "status"),
    [
        (metrics(1.0), metrics(1.0), 0.0, "equal"),
        (metrics(1.0), metrics(1.0 + 2**-52), 0.0, "differs"),
        (metrics(1.0), metrics(1.01), 0.02, "equal"),
        (metrics(1.0), metrics(float("nan")), 0.02, "differs"),
        (metrics(float("nan")), metrics(float("nan")), 0.0, "equal"),
        (metrics(1.0), metrics(1.0, step=5), 0.0, "cannot tell"),
    ],
)
def test_metrics_are_compared_bit_for_bit_or_within_a_tolerance(
    recorded: Any, again: Any, tolerance: float, status: str
) -> None:
    assert compare_metrics(recorded, again, start=0, tolerance=tolerance, device="cpu").status == status


def test_of_a_step_that_was_replayed_the_last_line_counts(tmp_path: Path) -> None:
    values = {"grad_norm": 1, "param_norm": 1, "learning_rate": 1, "step_s": 1, "time": 1}
    lines = [json.dumps({"step": 0, "loss": loss} | values) for loss in (3.0, 4.0)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert recorded_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == 4.0
    with pytest.raises(HarnessError) as caught:
        recorded_metrics(tmp_path / "nothing.jsonl")
    assert caught.value.code == "metrics-missing"
