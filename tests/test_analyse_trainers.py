"""Tests logs of other trainers and exports, each with its correct values."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest
from rich.console import Console

from benchmarks import fuzz_logs, fuzz_logs_forms
from harness.analyse.curve import analyse
from harness.artifacts import Curve
from harness.errors import HarnessError
from harness.show.curve import curve_table
from tests.support.console_log import falling, flat, log, steps


def look(text: str) -> Curve:
    return analyse("-", stdin=text.encode())


def codes(curve: Curve) -> set[str]:
    return {finding.code for finding in curve.findings}


def finding(curve: Curve, code: str) -> str:
    found = next(finding for finding in curve.findings if finding.code == code)
    return f"{found.text}; {found.fix}"


def seed(name: str) -> str:
    return fuzz_logs_forms.SEEDS[name](random.Random(0))


def lerobot(**options: object) -> str:
    return fuzz_logs_forms.lerobot(random.Random(0), **options)


def tail(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if "K smpl" in line or "M smpl" in line)


def test_lerobot_s_steps_in_thousands_are_found_again() -> None:
    curve = look(lerobot())
    assert curve.series.step == list(range(200, 30_001, 200))
    assert curve.verdict == "learning"
    assert curve.series.loss[0] == pytest.approx(0.5, abs=0.05)
    assert curve.series.loss[-1] == pytest.approx(0.05, abs=0.03)
    assert curve.series.grad_norm[0] == pytest.approx(2.421)
    assert curve.series.learning_rate[0] == pytest.approx(2.5e-5)
    assert "rates-of-another-recipe" not in codes(curve)
    assert curve.learning.source == "rates of the log itself"
    assert "lines-unreadable" not in codes(curve)
    assert "200 steps" in finding(curve, "steps-rebuilt")


def test_the_tail_of_such_a_log_has_the_same_steps() -> None:
    curve = look(tail(lerobot()))
    assert curve.series.step == list(range(1000, 30_001, 200))
    assert (curve.verdict, curve.seams) == ("learning", [])
    assert not codes(curve) & {"mixed-runs", "steps-out-of-order", "steps-slow", "restarted"}
    assert curve.trend is not None
    assert curve.trend.slope_per_1000_steps == pytest.approx(-3.3e-3, abs=5e-4)


@pytest.mark.parametrize(
    ("every", "batch", "last"),
    [(100, 8, 3000), (250, 64, 200_000), (50, 4, 30_000), (333, 32, 50_000), (20_000, 64, 2_000_000)],
)
def test_any_frequency_and_batch(every: int, batch: int, last: int) -> None:
    whole = lerobot(every=every, batch=batch, steps=last)
    right = list(range(every, last + 1, every))
    assert look(whole).series.step == right
    assert (
        look("".join(tail(whole).splitlines(keepends=True)[-150:])).series.step
        == right[-min(150, len(tail(whole).splitlines())) :]
    )


def test_samples_settle_what_the_steps_do_not_say() -> None:
    """All of the last lines are step:3M."""
    whole = lerobot(every=1000, batch=256, steps=3_000_000)
    curve = look("".join(whole.splitlines(keepends=True)[-100:]))
    assert curve.series.step == list(range(2_901_000, 3_000_001, 1000))
    assert "a batch of 256" in finding(curve, "steps-rebuilt")


def test_steps_that_cannot_be_settled_are_said_to_be_so() -> None:
    rows = [f"step:{k}K loss:0.{50 - i}" for i, k in enumerate((1, 1, 1, 2, 2, 5, 9, 9, 9, 9, 10, 12))]
    curve = look("\n".join(rows) + "\n")
    assert "do not settle it" in finding(curve, "steps-rebuilt")
    assert curve.series.step == sorted(set(curve.series.step))
    labels = [1, 1, 1, 2, 2, 5, 9, 9, 9, 9, 10, 12]
    assert all(abs(step - 1000 * label) <= 500 for step, label in zip(curve.series.step, labels, strict=True))


def test_the_pace_is_lerobot_s_update_time() -> None:
    pace = look(lerobot()).throughput
    assert pace is not None
    assert pace.median_step_s == pytest.approx(0.478)
    assert pace.data_share == pytest.approx(0.038 / 0.516)
    bare = "".join(
        line.partition("ot_train.py:351 ")[2] + "\n" for line in lerobot().splitlines() if "step:" in line
    )
    pace = look(bare).throughput
    assert pace is not None
    assert (pace.median_step_s, pace.source) == (pytest.approx(0.478), "step times")


def test_a_loss_that_is_nan_in_lerobot_s_log_is_seen() -> None:
    curve = look(lerobot(steps=1000, nan=True))
    assert (curve.verdict, curve.points) == ("diverged", 5)
    assert "from step 200 to the end" in curve.reasons[0]


def test_a_second_curve_is_shown_as_one() -> None:
    curve = look(lerobot(every=20, batch=8, steps=900, evaluates=True))
    assert (curve.points, curve.verdict) == (45, "learning")
    assert curve.held_out is not None
    assert curve.held_out.step == list(range(100, 901, 100))
    assert curve.held_out.loss[0] == pytest.approx(0.121)
    assert not codes(curve) & {"lines-unreadable", "steps-out-of-order", "mixed-runs"}
    rising = look(
        "".join(
            f"step {s}: loss={1 / (1 + s / 50):.4f} val_loss={0.1 + abs(s - 100) / 1000:.4f}\n"
            for s in range(0, 400, 10)
        )
    )
    assert rising.held_out is not None
    assert (rising.held_out.lowest_at_step, rising.held_out.points) == (100, 40)
    assert "lowest at step 100" in finding(rising, "held-out-rises")
    console = Console(file=io.StringIO(), width=200)
    console.print(curve_table(curve))
    assert "held-out loss" in console.file.getvalue()


def test_states_of_a_bar_are_another_series_than_the_logger_s_lines() -> None:
    alone, teed = look(seed("pytorch")), look(seed("pytorch tee"))
    assert teed.points == alone.points == 80
    assert teed.series.step == alone.series.step
    assert "bar-left-out" in codes(teed)
    assert not codes(teed) & {"gradient-not-finite", "lines-unreadable", "steps-out-of-order"}
    assert teed.trend is not None
    assert alone.trend is not None
    assert 0.5 < teed.trend.noise / alone.trend.noise < 2


def test_a_bar_alone_is_the_series() -> None:
    curve = look(seed("accelerate bars"))
    assert (curve.points, curve.first_step, curve.last_step, curve.verdict) == (1000, 0, 999, "learning")
    assert curve.learning.source == "rates of the log itself"


@pytest.mark.parametrize("name", ["transformers", "transformers quoted", "transformers totals"])
def test_transformers_lines_get_their_step(name: str) -> None:
    curve = look(seed(name))
    assert (curve.points, curve.verdict) == (100, "learning")
    assert "rates-of-another-recipe" not in codes(curve)
    counted = name == "transformers quoted"
    assert curve.series.step == [s if counted else 10 * s for s in range(1, 101)]
    assert ("steps-counted" in codes(curve)) == counted
    assert curve.held_out is not None
    assert curve.held_out.step == [s if counted else 10 * s for s in range(20, 101, 20)]
    assert curve.series.grad_norm[0] == pytest.approx(1.25)


def test_accelerate_s_lines() -> None:
    curve = look(seed("accelerate lines"))
    assert (curve.points, curve.verdict) == (1000, "learning")
    assert curve.throughput is not None
    assert curve.throughput.median_step_s == pytest.approx(1.0)


def test_tables_of_wandb_and_tensorboard() -> None:
    curve = look(seed("wandb table"))
    assert (curve.form, curve.points, curve.verdict, curve.last_step) == ("table", 200, "learning", 19_900)
    assert curve.held_out is not None
    assert curve.held_out.points == 200
    curve = look(seed("tensorboard table"))
    assert (curve.form, curve.points, curve.verdict) == ("table", 300, "learning")
    assert curve.throughput is not None
    assert curve.throughput.median_step_s == pytest.approx(1.0)
    assert any("Value" in told for told in curve.partial)
    two = look('"Step","a - loss","b - loss"\n' + "".join(f'"{s}","{1 / (s + 1)}","5"\n' for s in range(50)))
    assert any("'b'" in told for told in two.partial)
    assert two.series.loss[0] == 1.0
    gaps = look(
        "step;loss;val_loss\n"
        + "".join(
            f"{s};{0.5 - s / 1000};{'0,25' if s % 10 == 0 else ''}\n".replace(".", ",") for s in range(100)
        )
    )
    assert (gaps.points, gaps.held_out and gaps.held_out.points) == (100, 10)


@pytest.mark.parametrize("begin", [0, 86_000])
@pytest.mark.parametrize("columns", ["_runtime", "_runtime,_timestamp", "_timestamp,_runtime"])
@pytest.mark.parametrize("form", ["table", "table of a run", "JSON"])
def test_wandb_s_runtime_gives_the_pace(form: str, columns: str, begin: int) -> None:
    """Also beyond the seconds of a day. `_timestamp` counts if both are there."""
    names = ["_step", *columns.split(","), "train/loss"]
    both = "_timestamp" in columns
    rows = [
        [s, *({"_runtime": begin + 2.5 * s, "_timestamp": 1.7e9 + 4 * s}[n] for n in names[1:-1]), loss]
        for s, loss in zip(range(0, 900, 3), falling(), strict=True)
    ]
    if form == "JSON":
        text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    else:
        head = [names[0], *(f"mine - {n}" if form == "table of a run" else n for n in names[1:])]
        text = "".join(",".join(map(str, row)) + "\n" for row in [head, *rows])
    curve = look(text)
    assert curve.points == 300
    assert curve.throughput is not None
    assert curve.throughput.source == "times of the records"
    assert curve.throughput.median_step_s == pytest.approx(4.0 if both else 2.5)
    assert curve.throughput.stalls == []


def test_notes_between_back_ticks() -> None:
    assert look(seed("notes")).points == 12


def test_a_gradient_norm_that_is_there_as_nan_is_there() -> None:
    curve = look(seed("openpi nan"))
    assert curve.verdict == "diverged"
    assert "columns-missing" not in codes(curve)
    assert "10 of 10" in finding(curve, "gradient-not-finite")
    assert "weights themselves" in finding(curve, "weights-not-finite")


@pytest.mark.parametrize(
    "text",
    [
        seed("openpi nan"),
        "Step 0: grad_norm=1.8, loss=0.9, param_norm=1803.77\n"
        + "Step 1: grad_norm=nan, loss=nan, param_norm=nan\n",
    ],
)
def test_a_loss_that_is_lost_before_any_rate_was_applied_is_not_blamed_on_the_rate(text: str) -> None:
    told = finding(look(text), "loss-not-finite")
    assert "schedule.peak" not in told
    assert told.index("weights") < told.index("devices") < told.index("data")


def test_a_loss_that_is_lost_late_is() -> None:
    assert "schedule.peak" in finding(
        look(log(steps(), np.where(np.arange(300) < 250, falling(), np.nan))), "loss-not-finite"
    )


def test_a_stall_is_named_with_its_length_and_is_no_part_of_the_pace() -> None:
    curve = look(seed("openpi bars"))
    pace = curve.throughput
    assert pace is not None
    assert pace.median_step_s == pytest.approx(6.59, rel=0.01)
    assert pace.slow_step_s == pytest.approx(6.59, rel=0.01)
    assert pace.stalls == [(2500, pytest.approx(18_000, rel=0.01))]
    assert pace.stalls_from == [2000]
    assert "5 h 00 min between steps 2,000 and 2,500" in finding(curve, "stalls")


def test_few_states_with_a_stall_between_them() -> None:
    bars = ((1004, "2:00:49"), (2004, "3:50:39"), (3004, "10:40:29"), (4004, "12:30:19"))
    text = "".join(
        f"\r 6%|# | {s}/15000 [{t}<23:48:14,  6.59s/it]14:00:49.191 [I] Deleted step 0.\nStep {s - 4}:"
        f" loss=0.0{9 - s // 1000}\n"
        for s, t in bars
    )
    for count in (2, 3, 4):
        pace = look("\n".join(text.splitlines()[: 3 * count])).throughput
        assert pace is not None
        assert pace.median_step_s == pytest.approx(6.59, rel=0.01)
        assert pace.stalls == ([(3004, pytest.approx(18_000, rel=0.01))] if count > 2 else [])


def test_other_weights_are_not_said_to_begin_where_the_released_ones_do() -> None:
    curve = look(log(steps(), falling(), param_norm=1378.0))
    assert "fingerprint-differs" in codes(curve)
    assert not codes(curve) & {"first-loss-released", "first-loss-differs"}
    assert "first-loss-released" in codes(look(log(steps(), np.where(np.arange(300) == 0, 0.1, falling()))))


def test_a_curve_that_still_falls_by_a_quarter_is_no_plateau() -> None:
    losses = 0.05 + 0.25 * np.exp(-np.arange(80) / 40)
    assert look(log(steps(80), losses * flat(80, 0.037) / 0.1)).plateau_from_step is None


def test_what_was_understood_is_said() -> None:
    curve = look("hello there\n\n" + log(steps(20), falling(20)) + "a sentence\n")
    assert curve.read is not None
    assert (curve.read.understood, curve.read.others, curve.read.example) == (20, 2, "hello there")
    with pytest.raises(HarnessError) as error:
        look("episode 1 reward 5\n" * 30)
    assert error.value.code == "log-without-loss"
    assert "30 lines" in str(error.value)
    assert "episode 1 reward 5" in str(error.value)


@pytest.mark.parametrize("step", ["-5", "1e400", "NaN", str(2**53), "18446744073709551616", "1.5", "1" * 400])
def test_a_step_that_no_step_can_be_is_left_out(step: str) -> None:
    rows = [f'{{"step":{s},"loss":0.5}}\n' for s in range(50)]
    curve = look("".join([*rows[:25], f'{{"step":{step},"loss":0.5}}\n', *rows[25:]]))
    assert (curve.points, curve.last_step) == (50, 49)
    assert codes(curve) & {"steps-impossible", "lines-unreadable"}
    with pytest.raises(HarnessError) as error:
        look(f'{{"step":{step},"loss":0.5}}\n')
    assert error.value.code == "log-without-loss"


@pytest.mark.parametrize("index", range(0, 400, 4))
def test_no_mutated_log_ends_in_a_traceback(index: int) -> None:
    _, data = fuzz_logs.case(index, 7, None)
    assert "TRACEBACK" not in fuzz_logs.judged(data, 60)
