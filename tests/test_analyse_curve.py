"""Tests verdicts, findings and figures on logs whose truth is known."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import optax
import pytest
from rich.console import Console

from harness.analyse import trend
from harness.analyse.curve import analyse
from harness.analyse.schedule import full_rate_steps, learning_rate
from harness.analyse.series import MAX_POINTS
from harness.artifacts import Curve
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.show.curve import curve_table
from tests.support.console_log import REPORT, falling, flat, log, steps

STEPS, FALLING, FLAT = steps(), falling(), flat()


def look(text: str, **options: object) -> Curve:
    return analyse("-", stdin=text.encode(), **options)  # type: ignore[arg-type]


def codes(curve: Curve) -> set[str]:
    return {finding.code for finding in curve.findings}


def benchmark() -> ModuleType:
    """benchmarks/analyse.py, which makes runs of known truth."""
    spec = importlib.util.spec_from_file_location(
        "benchmark_analyse", Path(__file__).parents[1] / "benchmarks/analyse.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_four_lines_of_the_report() -> None:
    curve = look(REPORT)
    assert curve.verdict == "inconclusive"
    assert curve.learning.last == pytest.approx(8e-8, rel=1e-3)
    assert curve.learning.full_rate_steps < 0.02
    assert "not-everything-was-lora" in codes(curve)
    finding = next(finding for finding in curve.findings if finding.code == "not-everything-was-lora")
    assert "3,381,303,056" in finding.text
    assert "freeze_filter" in finding.text
    assert any("4 points" in reason for reason in curve.reasons)
    assert any("8.0e-08" in reason and "noise between batches" in reason for reason in curve.reasons)
    assert any("447" in need for need in curve.needed)


@pytest.mark.parametrize("kind_offset", range(6))
def test_runs_of_known_truth(kind_offset: int) -> None:
    module = benchmark()
    rng = np.random.default_rng([7, kind_offset])
    kind = module.KINDS[kind_offset]
    made = [module.make(rng, kind) for _ in range(8)]
    wrong = [(one.about, verdict) for one in made if (verdict := module.judged(one)) not in one.right]
    assert len(wrong) <= 1, wrong


def test_flat_runs_are_called_learning_no_more_often_than_stated() -> None:
    """600 flat curves with noise of any memory: at a rate of 1 % more than 15 of them have a chance below one
    in a thousand.
    """
    rng = np.random.default_rng(3)
    called = 0
    for _ in range(600):
        count, memory = int(rng.choice([40, 80, 200])), float(rng.uniform(0, 0.7))
        noise = rng.standard_normal(count + 50)
        for i in range(1, len(noise)):
            noise[i] += memory * noise[i - 1]
        called += trend.Test(np.arange(float(count)), 1 + 0.1 * noise[50:]).p_fall() <= trend.ERROR_RATE
    assert called <= 15


def test_autocorrelation_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    white = rng.standard_normal(400)
    slow = white.copy()
    for i in range(1, 400):
        slow[i] = 0.8 * slow[i - 1] + 0.6 * white[i]
    tests = [trend.Test(np.arange(400.0), 1 + 0.1 * noise) for noise in (white, slow)]
    widths = [test.line()[1] * test.line()[2] for test in tests]
    assert widths[1] > 2 * widths[0]
    assert tests[1].trend().effective_points < tests[0].trend().effective_points / 3


def test_the_interval_holds_the_slope() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        found = trend.Test(
            np.arange(100.0), 1 - 0.002 * np.arange(100) + 0.1 * rng.standard_normal(100)
        ).trend()
        held += found.slope_low <= -2.0 <= found.slope_high
    assert held >= 52


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        (FALLING, "learning"),
        (0.1 / (1 + np.arange(300) / 10), "learning"),
        (np.maximum(0.03, 0.1 - 0.0007 * np.arange(300)) * flat(seed=5) / 0.1, "learning"),
        (FLAT, "not learning"),
        (np.full(300, 0.1), "not learning"),
        (np.where(np.arange(300) == 0, 1.0, FLAT), "not learning"),
        (np.where(np.arange(300) < 3, [0.8, 0.5, 0.3] * 100, FLAT), "not learning"),
        (np.where((np.arange(300) >= 150) & (np.arange(300) < 160), 10 * FLAT, FLAT), "not learning"),
        (np.where((np.arange(300) >= 150) & (np.arange(300) < 160), 10 * FALLING, FALLING), "learning"),
        (np.where(np.arange(300) == 299, 1.5, FALLING), "learning"),
        (FLAT * np.linspace(1, 1.3, 300), "not learning"),
        (np.where(np.arange(300) < 250, FALLING, np.nan), "diverged"),
        (np.where(np.arange(300) == 150, np.nan, FALLING), "learning"),
        (np.where(np.arange(300) == 299, np.inf, FALLING), "diverged"),
        (np.full(300, np.nan), "diverged"),
        (FALLING + np.maximum(0, np.arange(300) - 200) * 0.003, "diverged"),
        (FLAT * np.exp(np.maximum(0, np.arange(300) - 270) / 10), "diverged"),
        (np.where(np.arange(300) > 296, 2.0, FALLING), "diverged"),
    ],
)
def test_verdicts(losses: np.ndarray, verdict: str) -> None:
    curve = look(log(STEPS, losses))
    assert curve.verdict == verdict, curve.reasons
    assert curve.reasons
    assert Curve.model_validate_json(curve.model_dump_json()) == curve


def test_a_fall_while_no_rate_is_applied_is_not_learning() -> None:
    text = log(range(300), falling(), drift=0.0)
    assert look(text).verdict == "inconclusive"
    assert (
        look(text, recipe="pi05_libero", overrides=["train.optimizer.schedule.warmup_steps=10"]).verdict
        == "learning"
    )


def test_the_rates_of_the_log_count_more_than_those_of_the_recipe() -> None:
    rows = "".join(
        f"step={s} loss={v:.4f} lr=5.00e-05 grad_norm=1.2\n" for s, v in zip(range(300), FALLING, strict=True)
    )
    curve = look(rows, recipe="pi05_libero")
    assert curve.verdict == "learning"
    assert "rates-of-another-recipe" in codes(curve)
    assert curve.learning.full_rate_steps == pytest.approx(299)
    # Without param_norm it is another trainer's log, which is of no recipe unless one is named.
    assert "rates-of-another-recipe" not in codes(look(rows))
    assert "rates-of-another-recipe" in codes(look(rows.replace("\n", " param_norm=1803.77\n")))


def shown(curve: Curve) -> str:
    console = Console(file=io.StringIO(), width=400)
    console.print(curve_table(curve))
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def test_a_plateau_is_told_of_a_run_that_learned() -> None:
    losses = (0.03 + 0.07 * np.exp(-np.arange(300) / 20)) * flat(seed=3, noise=0.05) / 0.1
    curve = look(log(STEPS, losses))
    assert curve.verdict == "learning"
    assert curve.plateau_from_step is not None
    assert 3000 < curve.plateau_from_step < 12_000
    told = next(row for row in shown(curve).splitlines() if row.startswith("plateau"))
    first, last = (
        curve.series.smooth[at]
        for at in (next(i for i, s in enumerate(curve.series.step) if s >= curve.plateau_from_step), -1)
    )
    assert first is not None
    assert last is not None
    assert f"({last / first - 1:+.0%})" in told
    assert (
        look(log(STEPS, np.linspace(0.1, 0.05, 300) * flat(seed=3, noise=0.05) / 0.1)).plateau_from_step
        is None
    )


def test_events_are_found_where_they_are() -> None:
    losses = np.where(np.arange(300) >= 200, 0.6 * FLAT, FLAT)
    losses[100:104] = [2.0, 1.0, 0.5, 0.3]
    curve = look(log(STEPS, losses, grad_norms=[300.0 if i == 77 else 1.2 for i in range(300)]))
    assert [(spike.first_step, spike.last_step) for spike in curve.spikes] == [(10_000, 10_300)]
    assert len(curve.jumps) == 1
    assert abs(curve.jumps[0].step - 20_000) <= 300
    leaps = next(finding for finding in curve.findings if finding.code == "gradient-leaps")
    assert leaps.steps == [7700]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"grad_norms": [0.0] * 300}, "gradient-zero"),
        ({"grad_norms": [float("nan")] * 150 + [1.0] * 150}, "gradient-not-finite"),
        ({"grad_norms": list(np.geomspace(0.1, 10, 300))}, "gradient-grows"),
        ({"drift": 0.0}, "weights-do-not-move"),
        ({"param_norm": 1802.386}, "fingerprint-released"),
        ({"param_norm": 1803.770}, "fingerprint-of-another-recipe"),
        ({"param_norm": 1803.1594}, "not-everything-was-lora"),
        ({"param_norm": 1700.0}, "fingerprint-differs"),
    ],
)
def test_findings(options: dict[str, object], code: str) -> None:
    assert code in codes(look(log(STEPS, FALLING, **options)))  # type: ignore[arg-type]
    assert (
        code
        not in codes(
            look(log(STEPS, FALLING, param_norm=1802.387 if code == "fingerprint-released" else 1802.386))
        )
        or code == "fingerprint-released"
    )


def test_a_fingerprint_is_that_of_the_recipe_named() -> None:
    text = log(STEPS, FALLING, param_norm=1803.770)
    assert "fingerprint-released" in codes(look(text, recipe="pi05_libero_lora"))
    finding = next(
        f for f in look(text, recipe="pi05_libero").findings if f.code == "fingerprint-of-another-recipe"
    )
    assert finding.severity == "error"


def test_pace_from_clocks_bars_and_step_times() -> None:
    lines = log(STEPS, FALLING).splitlines()

    def clock(second: int) -> str:
        return f"{second // 3600 % 24:02d}:{second % 3600 // 60:02d}:{second % 60:02d}"

    # Over midnight, with one pause of 3,000 s.
    stamped = "".join(
        f"{clock(80_000 + 70 * i + 3000 * (i > 100))}.000 [I] {line}\n" for i, line in enumerate(lines)
    )
    pace = look(stamped).throughput
    assert pace is not None
    assert pace.median_step_s == pytest.approx(0.7)
    assert pace.stalls == [(10_100, pytest.approx(3000))]
    bars = "".join(
        f"\r 1%|x| {100 * i}/30000 [{i * 50 // 60}:{i * 50 % 60:02d}<1:00:00, 2.00it/s]\r{line}\n"
        for i, line in enumerate(lines[:70])
    )
    pace = look(bars).throughput
    assert pace is not None
    assert pace.median_step_s == pytest.approx(0.5)
    assert look(log(STEPS, FALLING)).throughput is None
    assert "throughput" in look(log(STEPS, FALLING)).unknown


def test_references(tmp_path: Path) -> None:
    def write(name: str, losses: np.ndarray, every: int = 100) -> str:
        (tmp_path / name).write_text(log(steps(len(losses), every), losses))
        return str(tmp_path / name)

    references = [
        write("same", FALLING),
        write("noise", falling(seed=9)),
        write("lower", 0.8 * falling(seed=9)),
        write("sparse", falling(seed=9)[::3], 300),
        write("short", FALLING[:3]),
    ]
    distances = look(log(STEPS, FALLING), references=references).distances
    assert [distance.answer for distance in distances] == [
        "identical",
        "within noise",
        "higher",
        "within noise",
        "too little in common",
    ]
    assert distances[0].identical == 300
    assert distances[2].mean_difference == pytest.approx(0.25, abs=0.05)
    with pytest.raises(HarnessError) as error:
        look(log(STEPS, FALLING), references=[str(tmp_path / "nowhere")])
    assert error.value.code == "log-missing"


def test_the_series_is_small_and_keeps_extremes() -> None:
    losses = falling(30_000)
    losses[12_345] = 9.0
    curve = look(log(range(30_000), losses))
    assert len(curve.series.step) == len(curve.series.smooth) == MAX_POINTS
    assert max(value for value in curve.series.high if value is not None) == 9.0
    assert max(value for value in curve.series.smooth if value is not None) < 0.2
    assert len(curve.model_dump_json()) < 500_000


@pytest.mark.parametrize(
    "text",
    [
        "iter 1: reward 0.5\n" * 50,
        "hello\n",
        "step,reward\n1,2\n",
        "<p>Step 1: do this</p>",
        json.dumps({"a": 1}) + "\n",
    ],
)
def test_a_log_of_another_program(text: str) -> None:
    with pytest.raises(HarnessError) as error:
        look(text)
    assert error.value.code == "log-without-loss"


def test_tiny_logs_are_inconclusive() -> None:
    for count in range(1, 8):
        curve = look(log(steps(count, 1000), [0.3 * 0.5**i for i in range(count)]))
        assert curve.verdict == "inconclusive"
        assert curve.needed


def test_the_schedule_is_optax_s() -> None:
    for name in ("pi05_libero", "smoke"):
        schedule = load_recipe(name).train.optimizer.schedule
        first = schedule.peak / (schedule.warmup_steps + 1)
        theirs = optax.warmup_cosine_decay_schedule(
            first, schedule.peak, schedule.warmup_steps, schedule.decay_steps, schedule.end
        )
        at = np.array([0.0, 1, 4, 5, 6, 30, 59, 60, 100, 9999, 10_000, 500_000])
        assert learning_rate(schedule, at) == pytest.approx(
            [float(theirs(int(step))) for step in at], rel=5e-4
        )


def test_what_was_applied_is_the_sum_of_rates() -> None:
    schedule = load_recipe("smoke").train.optimizer.schedule
    rates = learning_rate(schedule, np.arange(60.0))
    assert full_rate_steps(schedule, np.array([0.0, 59.0]))[-1] == pytest.approx(
        (rates.sum() - rates[[0, -1]].mean()) / schedule.peak, rel=1e-3
    )


def test_a_loss_of_zero_everywhere_has_no_events() -> None:
    curve = look(log(STEPS, [0.0] * 300))
    assert (curve.jumps, curve.spikes) == ([], [])
