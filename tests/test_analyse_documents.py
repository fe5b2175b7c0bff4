"""Tests whole documents that hold a curve, and lines that a collector of logs has wrapped."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from harness.analyse.curve import analyse
from harness.artifacts import Curve

COUNT = 60
STEPS = [100 * (i + 1) for i in range(COUNT)]
LOSSES = [0.1 + 0.9 * math.exp(-i / 15) for i in range(COUNT)]
PAIRS = list(zip(STEPS, LOSSES, strict=True))
TABLE = (
    '<table border="1">\n<thead><tr style="text-align: left;">\n<th>Step</th>\n<th>Training Loss</th>\n'
    "<th>Validation Loss</th></tr></thead><tbody>\n"
    + "".join(f"<tr>\n<td>{s}</td>\n<td>{v:.6f}</td><td>5.0</td>\n</tr>\n" for s, v in PAIRS)
    + "</tbody></table><p>"
)


def look(text: str) -> Curve:
    return analyse("-", stdin=text.encode())


def check(curve: Curve, *, held_out: int | None = None) -> None:
    assert (curve.points, curve.verdict) == (COUNT, "learning")
    assert (curve.first_step, curve.last_step) == (STEPS[0], STEPS[-1])
    assert curve.series.loss[-1] == pytest.approx(LOSSES[-1], abs=1e-3)
    assert (curve.held_out.points if curve.held_out else None) == held_out


def notebook(**output: Any) -> dict[str, Any]:
    cell = {"cell_type": "code", "source": ["trainer.train()"], "outputs": [output]}
    return {"cells": [{"cell_type": "markdown", "source": ["# loss"]}, cell], "nbformat": 4}


DOCUMENTS: dict[str, Any] = {
    "columns": {"step": STEPS, "loss": LOSSES, "note": "mine"},
    "a history within": {"args": {"lr": 1e-4}, "history": {"step": STEPS, "train_loss": LOSSES}},
    "records within": {"run": "a", "history": [{"_step": s, "train/loss": v} for s, v in PAIRS]},
    "pandas": {"step": dict(enumerate(STEPS)), "loss": dict(enumerate(LOSSES))},
    "pandas split": {"columns": ["step", "loss"], "data": [[s, v] for s, v in PAIRS]},
    "MLflow": {"metrics": [{"key": "train_loss", "value": v, "step": s} for s, v in PAIRS]},
    "Comet": {"metrics": [{"metricName": "loss", "metricValue": str(v), "step": s} for s, v in PAIRS]},
    "ClearML": {"loss": {"train": {"name": "train", "x": STEPS, "y": LOSSES}}},
    "a notebook's print": notebook(text=[f"step {s} loss {v:.4f}\n" for s, v in PAIRS]),
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_of_json(name: str, indent: int | None) -> None:
    check(look(json.dumps(DOCUMENTS[name], indent=indent)))


def test_the_table_of_a_page_and_of_a_notebook() -> None:
    shown = notebook(output_type="display_data", data={"text/html": TABLE.splitlines(keepends=True)})
    for text in (TABLE, "<html><body>" + TABLE, json.dumps(shown, indent=1)):
        check(look(text), held_out=COUNT)


def test_the_history_of_keras_has_no_step() -> None:
    curve = look(json.dumps({"loss": LOSSES, "val_loss": LOSSES}))
    assert (curve.points, curve.last_step, curve.verdict) == (COUNT, COUNT, "learning")
    assert curve.held_out is not None
    assert "steps-counted" in {finding.code for finding in curve.findings}


def test_a_loss_that_is_null_to_the_end_is_lost_and_one_between_others_is_a_gap() -> None:
    steps = list(range(COUNT + 9))
    assert look(json.dumps({"step": steps, "loss": LOSSES + [None] * 9})).verdict == "diverged"
    gaps = [value for loss in LOSSES for value in (loss, None)]
    curve = look(json.dumps({"step": list(range(2 * COUNT)), "loss": gaps}))
    assert (curve.points, curve.verdict) == (COUNT, "learning")


def test_a_record_with_a_value_within_is_a_line() -> None:
    rows = [json.dumps({"metrics": {"loss": v}, "step": s}) + "\n" for s, v in PAIRS]
    check(look("".join(rows)))


def test_lines_that_docker_keeps_are_what_the_program_wrote() -> None:
    def kept(line: str) -> str:
        record = {"log": line, "stream": "stderr", "time": "2026-01-01T00:00:00.1Z"}
        return json.dumps(record, separators=(",", ":")) + "\n"

    check(look("".join(kept(json.dumps({"step": s, "loss": v}) + "\n") for s, v in PAIRS)))
    bars = (kept(f"\r 10%|# | {s}/6000 [00:10<50:00,  1.00it/s]") for s in STEPS)
    lines = (kept(f"{{'loss': {v:.4f}, 'epoch': 0.5}}\n") for v in LOSSES)
    check(look("".join(bar + line for bar, line in zip(bars, lines, strict=True))))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "trainer-1  | ",
        "2026-01-01T00:00:00.123456789Z stderr F ",
        "(Worker pid=7, ip=10.0.0.1) ",
        "[rank0]:",
        "Jan 01 00:00:00 host python[12]: ",
    ],
)
def test_a_line_of_transformers_has_the_step_of_its_bar(prefix: str, after: bool) -> None:
    bars = [f"{prefix} 10%|# | {s}/6000 [00:10<50:00,  1.00it/s]\n" for s in STEPS]
    lines = [f"{prefix}{{'loss': {v:.4f}, 'epoch': 0.5}}\n" for v in LOSSES]
    pairs = zip(lines, bars, strict=True) if after else zip(bars, lines, strict=True)
    check(look("".join(a + b for a, b in pairs)))
