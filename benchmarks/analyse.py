"""harness analyse on synthetic runs whose truth is known, and on a log of a million lines.

    python benchmarks/analyse.py [--runs 200] [--seed 0] [--lines 1000000] [--flat 0] [--smoothed 0]
        [--wrong]

The confusion table has a row for each kind of run. A verdict is right when it is one that an honest reader of
that log could give who does not know the truth: a flat run is never learning; a run that falls is learning,
or inconclusive where the noise hides the fall even from a least-squares fit that knows the noise exactly (the
oracle, whose z is below 6). --flat N adds N flat runs and prints how often they are called learning, against
the stated rate. --smoothed N takes N flat curves of each length and kind of noise with memory. It prints in
how many percent the test calls them falling, and in how many its interval holds the slope of zero.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

KINDS = ("flat", "slow decline", "warm-up only", "divergence", "spike and recover", "resumed with replay")
VERDICTS = ("learning", "not learning", "diverged", "inconclusive")
ORACLE_Z = 6.0


class Made(NamedTuple):
    """A log with its truth: `right` are the verdicts that are right."""

    kind: str
    text: str
    right: tuple[str, ...]
    about: str


def noise(rng: np.random.Generator, count: int) -> tuple[np.ndarray, float, str]:
    """(noise of unit size, its long-run standard deviation, what it is)."""
    form = rng.choice(["white", "ar", "heavy", "skewed", "fading"])
    memory = float(rng.uniform(0.2, 0.9 if count >= 100 else 0.5)) if form == "ar" else 0.0
    if form == "heavy":
        values = rng.standard_t(3, count) / np.sqrt(3)
    elif form == "skewed":
        values = rng.gamma(4.0, 0.5, count) - 2.0
    else:
        values = rng.standard_normal(count + 200)
        for i in range(1, len(values)):
            values[i] = memory * values[i - 1] + np.sqrt(1 - memory**2) * values[i]
        values = values[200:]
    if form == "fading":
        values = values * np.linspace(1.5, 0.5, count)
    return values, float(np.sqrt((1 + memory) / (1 - memory))), f"{form}{f' {memory:.2f}' if memory else ''}"


def falling(rng: np.random.Generator, count: int) -> tuple[np.ndarray, str]:
    """(a curve from 1 downwards, what it is)."""
    x, fall = np.arange(count) / count, float(rng.uniform(0.15, 0.8))
    form = rng.choice(["straight", "exponential", "power", "plateau"])
    shape = {
        "straight": x,
        "exponential": (1 - np.exp(-x / 0.4)) / (1 - np.exp(-2.5)),
        "power": 1 - (1 + 30 * x) ** -0.5,
        "plateau": np.minimum(1.0, x / 0.4),
    }[str(form)]
    return 1 - fall * shape / shape[-1], f"{form} {100 * fall:.0f} %"


def make(rng: np.random.Generator, kind: str) -> Made:
    """One log of openpi's form."""
    count = int(np.exp(rng.uniform(np.log(20), np.log(30_000 if rng.random() < 0.1 else 2000))))
    every = int(rng.choice([1, 10, 100])) if kind != "warm-up only" else int(rng.choice([1, 2, 5]))
    if kind == "warm-up only":
        count = int(rng.integers(20, 400 // every))
    elif count * every < 3000:
        every = int(np.ceil(3000 / count))
    size = float(rng.uniform(0.02, 0.3))
    unit, long_run, about = noise(rng, count)
    level, shape = np.ones(count), ""
    if kind in ("slow decline", "resumed with replay") or (
        kind == "spike and recover" and rng.random() < 0.6
    ):
        level, shape = falling(rng, count)
    elif kind == "warm-up only" and rng.random() < 0.5:
        level, shape = 1 - float(rng.uniform(0.0, 0.3)) * np.arange(count) / count, "drifting"
    falls = bool(level[-1] < 0.95) and kind != "warm-up only"
    weights = (level - level.mean()) / max(1e-9, float(np.linalg.norm(level - level.mean())))
    oracle_z = float((level * weights).sum()) / (size * long_run)
    hidden = falls and oracle_z < ORACLE_Z
    right: tuple[str, ...] = ("not learning", "inconclusive")
    if falls:
        right = ("learning", "inconclusive") if hidden else ("learning",)
    loss = level * (1 + size * unit)
    if kind == "warm-up only":
        right = ("inconclusive",)
    if kind == "divergence":
        loss, shape = diverging(rng, loss)
        right = ("diverged",)
    if kind == "spike and recover":
        loss = spiked(rng, loss)
    loss = 0.1 * np.where(loss < 0.05, 0.05, loss)
    steps = np.arange(count) * every
    text = replayed(rng, steps, loss, size) if kind == "resumed with replay" else lines(rng, steps, loss)
    return Made(
        kind,
        text,
        right,
        f"{count} points every {every}, noise {100 * size:.0f} % {about},"
        f" {shape}{f', z of the oracle {oracle_z:.1f}' if falls else ''}",
    )


def diverging(rng: np.random.Generator, loss: np.ndarray) -> tuple[np.ndarray, str]:
    """A loss that blows up in its last part: a straight rise, an exponential one, or NaN."""
    count, form = len(loss), str(rng.choice(["straight", "exponential", "nan"]))
    start = int(rng.uniform(0.4, 0.8) * count)
    x = np.arange(count - start) / max(1, count - start - 1)
    out = loss.copy()
    if form == "nan":
        out[start:] = np.nan
    else:
        out[start:] *= 1 + rng.uniform(3, 20) * x if form == "straight" else np.exp(rng.uniform(1.5, 5) * x)
    return out, form


def spiked(rng: np.random.Generator, loss: np.ndarray) -> np.ndarray:
    out, count = loss.copy(), len(loss)
    for _ in range(int(rng.integers(1, 4))):
        at, lasts = (
            int(rng.integers(count // 10 + 1, max(count // 10 + 2, int(0.85 * count)))),
            float(rng.uniform(0.3, max(1.0, 0.01 * count))),
        )
        out *= 1 + np.where(
            np.arange(count) >= at,
            rng.uniform(2, 20) * np.exp(-np.maximum(0, np.arange(count) - at) / lasts),
            0,
        )
    return out


def lines(rng: np.random.Generator, steps: np.ndarray, loss: np.ndarray) -> str:
    norms = np.exp(rng.normal(0, 0.2, len(steps)))
    drift = 1802.386 + 1e-5 * steps
    rows = zip(steps, norms, loss, drift, strict=True)
    return "".join(f"Step {s}: grad_norm={g:.4f}, loss={v:.4f}, param_norm={p:.4f}\n" for s, g, v, p in rows)


def replayed(rng: np.random.Generator, steps: np.ndarray, loss: np.ndarray, size: float) -> str:
    """Two to four sessions; each begins some records before the last one ended, with other batches."""
    cuts = sorted(
        rng.choice(np.arange(len(steps) // 5, len(steps) - 2), size=int(rng.integers(1, 4)), replace=False)
    )
    text, begin = "", 0
    for cut in [*cuts, len(steps)]:
        text += lines(rng, steps[begin:cut], loss[begin:cut])
        begin = max(0, int(cut) - int(rng.integers(1, max(2, len(steps) // 10))))
        loss = np.where(
            np.arange(len(loss)) < cut, loss * (1 + 0.3 * size * rng.standard_normal(len(loss))), loss
        )
    return text


def judged(made: Made) -> str:
    from harness.analyse.curve import analyse

    return analyse("-", stdin=made.text.encode()).verdict


def accuracy(runs: int, seed: int, show_wrong: bool) -> None:
    rng = np.random.default_rng(seed)
    table: collections.Counter[tuple[str, str]] = collections.Counter()
    right = strict = 0
    for index in range(runs):
        made = make(rng, KINDS[index % len(KINDS)])
        verdict = judged(made)
        table[made.kind, verdict] += 1
        right += verdict in made.right
        strict += verdict == made.right[0]
        if show_wrong and verdict != made.right[0]:
            print(
                f"  {'WRONG' if verdict not in made.right else 'unsure'} {made.kind}: {verdict}; {made.about}"
            )
    print(f"{'':22}" + "".join(f"{verdict:>14}" for verdict in VERDICTS))
    for kind in KINDS:
        print(f"{kind:22}" + "".join(f"{table[kind, verdict]:>14}" for verdict in VERDICTS))
    print(
        f"right: {right} of {runs} ({100 * right / runs:.1f} %; must be at least 95 %); with no inconclusive"
        f" where the truth is more: {strict}"
    )


def flat_rate(runs: int, seed: int) -> None:
    from harness.analyse.trend import ERROR_RATE

    rng = np.random.default_rng([seed, 1])
    learning = sum(judged(make(rng, "flat")) == "learning" for _ in range(runs))
    print(
        f"flat runs called learning: {learning} of {runs} ({100 * learning / runs:.2f} %; stated"
        f" {100 * ERROR_RATE:g} %)"
    )


def with_memory(rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
    """Flat noise as smoothed losses have it, of any size.

    Kinds: "ar R" (autoregressive), "window W" (means of W points), "filling W" (the same, of fewer points at
    the start), "ema B" (bias-corrected, as TensorBoard's), "ema from first B" (it starts at its first value).
    """
    name, _, number = kind.rpartition(" ")
    value = float(number)
    white = rng.standard_normal(count + 1000)
    if name == "window":
        sums = np.concatenate([[0.0], np.cumsum(white)])
        return (sums[int(value) :] - sums[: -int(value)])[-count:]
    if name == "filling":
        sums, after = np.concatenate([[0.0], np.cumsum(white[:count])]), np.arange(1, count + 1)
        before = np.maximum(0, after - int(value))
        return (sums[after] - sums[before]) / (after - before)
    out, last = np.empty(len(white)), 0.0 if name != "ema from first" else white[0] / (1 - value)
    for i, one in enumerate(white):
        last = value * last + one
        out[i] = last
    if name == "ar":
        return out[-count:]
    weights = 1.0 if name == "ema from first" else (1 - value ** np.arange(1, count + 1))
    return out[:count] / weights


def smoothed(runs: int, seed: int) -> None:
    from harness.analyse.trend import ERROR_RATE, Test

    kinds = ("ar 0.0", "ar 0.5", "ar 0.8", "ar 0.95", "ar 0.98", "window 20", "filling 20", "filling 1000000")
    kinds += ("ema 0.9", "ema 0.98", "ema from first 0.9", "ema from first 0.99")
    lengths = (12, 24, 60, 128, 400, 2000)
    print(f"{'flat noise, by points':22}" + "".join(f"{length:>12,}" for length in lengths))
    for at, kind in enumerate(kinds):
        cells = []
        for length in lengths:
            rng = np.random.default_rng([seed, 2, at, length])
            called = held = 0
            for _ in range(runs):
                noise = with_memory(rng, kind, length)
                test = Test(np.arange(float(length)), 1 + 0.05 * noise / (noise.std() or 1.0))
                slope, error, reach = test.line()
                called, held = called + (test.p_fall() <= ERROR_RATE), held + (abs(slope) <= reach * error)
            cells.append(f"{100 * called / runs:.1f} / {100 * held / runs:.0f}")
        print(f"{kind:22}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def speed(count: int) -> None:
    """The whole command in a process of its own, on a log of a million lines, plain and with a progress bar
    between the records.
    """
    with tempfile.TemporaryDirectory() as directory:
        rng = np.random.default_rng(0)
        loss = 0.1 * (1 + 0.1 * rng.standard_normal(count)) * (1 - 0.5 * np.arange(count) / count)
        plain = lines(rng, np.arange(count), loss)
        records = plain.splitlines()[: count // 10]
        bar = "\r  3%|▎         | {}/{} [16:40<8:03:20,  1.00it/s]" * 8
        noisy = "".join(
            f"{bar.format(*[i, count] * 8)}\r\x1b[0m{record}\n" for i, record in enumerate(records)
        )
        for name, text in (("records", plain), ("records among a progress bar", noisy)):
            path = Path(directory) / "log.gz"
            path.write_bytes(gzip.compress(text.encode(), 1))
            count_lines = text.count("\n") + text.count("\r")
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, "-m", "harness.cli", "analyse", str(path), "--json"],
                stdout=subprocess.DEVNULL,
                check=False,
            )
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"{count_lines:,} lines, {name}: {wall:.2f} s, of processors {cpu:.2f} s, exit code"
                f" {done.returncode} (must be below 5 s a million lines)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flat", type=int, default=0)
    parser.add_argument("--smoothed", type=int, default=0)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument(
        "--wrong", action="store_true", help="print every run whose verdict is not the best one"
    )
    options = parser.parse_args()
    if options.runs:
        accuracy(options.runs, options.seed, options.wrong)
    if options.flat:
        flat_rate(options.flat, options.seed)
    if options.smoothed:
        smoothed(options.smoothed, options.seed)
    if options.lines:
        speed(options.lines)


if __name__ == "__main__":
    main()
