"""Tests curves of exported tables and documents, and what noise alone must not be told as."""

from __future__ import annotations

import json

import numpy as np
import pytest

from harness.analyse.curve import analyse
from harness.analyse.events import spikes
from harness.analyse.findings import about_held_out
from harness.analyse.level import settle
from harness.artifacts import Curve
from harness.artifacts.curve import HeldOut
from tests.support.console_log import flat


def look(text: str) -> Curve:
    return analyse("-", stdin=text.encode())


@pytest.mark.parametrize("count", [8, 12, 20])
def test_noise_of_few_points_is_no_spike(count: int) -> None:
    """A running median of few points goes through many of them, which says nothing of their noise."""
    at, found, seen = np.arange(count) * 100.0, 0, 0
    for seed in range(100):
        losses = flat(count, seed=seed)
        found += bool(spikes(at, losses, *settle(losses)))
        losses[count // 2] += 0.2
        seen += any(one.first_step == at[count // 2] for one in spikes(at, losses, *settle(losses)))
    assert found <= 10
    assert seen >= 80


@pytest.mark.parametrize("count", [3, 4, 5, 7, 8, 30, 300])
def test_the_noise_of_a_held_out_loss_is_no_rise(count: int) -> None:
    told = risen = 0
    for seed_ in range(40):
        generator = np.random.default_rng(seed_)
        noise = 1 + 0.08 * generator.standard_normal(count)
        for amount in (0.0, 2.0):
            rise = 1 + amount * np.maximum(0, np.arange(count) / count - 0.5)
            curve = HeldOut(
                points=count,
                first=1.0,
                last=(noise * rise)[-1],
                lowest=(noise * rise).min(),
                lowest_at_step=int((noise * rise).argmin()),
                step=list(range(count)),
                loss=list(noise * rise),
            )
            said = any(one.code == "held-out-rises" for one in about_held_out(curve, []))
            told, risen = told + (said and not amount), risen + (said and amount > 0)
    assert told <= 2
    assert risen >= (30 if count > 8 else 0)


def test_a_json_document_holds_a_record_in_each_object() -> None:
    rows = [{"loss": 1 / (1 + s / 9), "eval_loss": 2.0, "step": 300 * s} for s in range(100)]
    summary = {"step": 29_700, "train_loss": 7.0, "train_runtime": 5.0}
    state = {"best_metric": None, "global_step": 29_700, "log_history": [*rows, summary]}
    for document in (rows, state):
        for indent in (None, 1, 4):
            for end in ("", "\n"):
                curve = look(json.dumps(document, indent=indent) + end)
                assert (curve.points, curve.last_step, curve.verdict) == (100, 29_700, "learning")
                assert curve.series.loss[-1] == pytest.approx(1 / 12)
                assert curve.held_out is not None


def test_rows_of_another_curve_are_no_lost_losses() -> None:
    rows = [
        {"step": 150 * s, "loss": None, "eval_loss": 0.5, "train_runtime": None, "train_loss": None}
        if s % 20 == 19
        else {"step": 150 * s, "loss": 1 / (1 + s / 9), "eval_loss": None, "train_runtime": None}
        for s in range(200)
    ]
    summary = {"step": 29_850, "loss": None, "eval_loss": None, "train_runtime": 9.0, "train_loss": 7.0}
    curve = look(json.dumps([*rows, summary]))
    assert (curve.points, curve.verdict, curve.held_out and curve.held_out.points) == (190, "learning", 10)
    lost = look("".join(f"step {s}: loss={'nan' if s > 50 else 1.0} val_loss=0.5\n" for s in range(100)))
    assert (lost.points, lost.verdict) == (100, "diverged")


def test_a_round_first_value_does_not_make_a_table_coarse() -> None:
    rows = [f"{300 * s},{1 / (1 + s / 9)}\n" for s in range(100)]
    curve = look("step,loss\n" + "".join(rows))
    assert rows[0] == "0,1.0\n"
    assert curve.verdict == "learning"
    assert curve.trend is not None
    assert curve.trend.noise < 1e-3


def test_the_trainer_s_own_step_counts_and_not_the_calls_of_wandb_s_logger() -> None:
    rows = [
        {"_step": s, "train/loss": 1 / (1 + s / 9), "train/global_step": 300 * s, "_runtime": s}
        for s in range(100)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    table = ",".join(rows[0]) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
    for text in (lines, table, json.dumps(rows, indent=2)):
        curve = look(text)
        assert (curve.points, curve.last_step, curve.verdict) == (100, 29_700, "learning")
    alone = look(table.replace("train/global_step", "other"))
    assert (alone.points, alone.last_step) == (100, 99)


@pytest.mark.parametrize(
    "form",
    [
        "[eval] Step {s}: loss={loss:.4f}, grad_norm=1.0\n",
        "2026-01-01 10:00:00 INFO Validation | step {s} | loss {loss:.4f}\n",
        "Step {s} (val): loss={loss:.4f}\n",
        '{{"step": {s}, "loss": {loss:.4f}, "split": "val"}}\n',
    ],
)
def test_a_loss_that_is_marked_as_held_out_is_no_training_loss(form: str) -> None:
    plain = form.replace("[eval] ", "").replace("Validation", "Train").replace(" (val)", "")
    plain = plain.replace('"val"', '"train"')
    lines = []
    for s in range(100):
        lines.append(plain.format(s=100 * s, loss=1 / (1 + s / 9)))
        if s % 10 == 9:
            lines.append(form.format(s=100 * s, loss=5.0))
    curve = look("".join(lines))
    assert (curve.points, curve.verdict) == (100, "learning")
    assert max(curve.series.loss) <= 1.0
    assert curve.held_out is not None
    assert (curve.held_out.points, curve.held_out.lowest) == (10, 5.0)


def test_a_file_named_for_evaluation_and_a_value_are_no_marks() -> None:
    for form in (
        "eval.py:120 Step {s}: loss={loss:.4f}\n",
        "/data/eval/run Step {s}: loss={loss:.4f}\n",
        "Step {s}: val: 0.5, loss={loss:.4f}\n",
        "Step {s}: loss={loss:.4f}, next eval in 5 steps\n",
    ):
        curve = look("".join(form.format(s=100 * s, loss=1 / (1 + s / 9)) for s in range(100)))
        assert (curve.points, curve.verdict, curve.held_out) == (100, "learning", None)
