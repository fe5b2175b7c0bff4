"""What a log says about its run, from its bytes to the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.analyse import events, findings
from harness.analyse.compare import distance
from harness.analyse.fingerprints import about_first_loss, about_weights
from harness.analyse.held_out import held_out
from harness.analyse.level import block_means, clipped, settle, without
from harness.analyse.lines import Records, read_records
from harness.analyse.pace import throughput
from harness.analyse.schedule import full_rate_steps, learning_rate, thresholds
from harness.analyse.sessions import OneRun, one_run
from harness.analyse.source import Source, open_source
from harness.analyse.trend import MIN_POINTS, Test
from harness.analyse.verdict import Facts, judge
from harness.artifacts import Manifest
from harness.artifacts.curve import Curve, CurveFinding, CurveSeries, Distance, Jump, Learning, Lines, Spike
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.run.directory import RECIPE, RunDir, sha256_json

Floats = npt.NDArray[np.float64]

PUBLISHED = "pi05_libero"
MAX_POINTS = 2_000
# The first logged steps are left out of the trend: openpi's first value is of one step where the others are
# averages, and compilers warm up.
_FIRST_SHARE = 0.02
# As share of what is negligible altogether: what the loss does before that is left out as well.
_BEFORE = 0.1


class Log(NamedTuple):
    """One run's records, and where they come from."""

    source: Source
    records: Records
    run: OneRun


def read_log(path: str, stdin: bytes | BinaryIO | None = None) -> Log:
    """The log at `path`.

    Raises: HarnessError "log-without-loss" when no line is a record, and those of `open_source`.
    """
    source = open_source(path, stdin)
    records = read_records(source.text)
    if not len(records.columns["step"]):
        unread = (
            f", {records.unreadable:,} of them with a step and a loss that could not be read"
            if records.unreadable
            else ""
        )
        steps = (
            f", {records.log.impossible:,} with a step that no step can be" if records.log.impossible else ""
        )
        held = (
            f", {len(records.log.held_out[0]):,} with a held-out loss alone"
            if len(records.log.held_out[0])
            else ""
        )
        raise HarnessError(
            "log-without-loss",
            f"no line of {source.name} names a step and a training loss",
            got=(
                f"{records.lines:,} lines{unread}{steps}{held}; one of them is"
                f" {(records.strange or '')[:80]!r}"
            ),
            need=(
                "lines like `Step 10: grad_norm=1.2, loss=0.1, param_norm=1802.4`, a metrics.jsonl, or a CSV"
                " with the columns step and loss"
            ),
            fix=(
                "give the console log of openpi, LeRobot, transformers or harness train, a CSV export of its"
                " loss, or a run directory"
            ),
        )
    return Log(source, records, one_run(records))


def analyse(
    path: str,
    *,
    recipe: str | None = None,
    overrides: list[str] | None = None,
    references: list[str] | None = None,
    stdin: bytes | BinaryIO | None = None,
) -> Curve:
    """The curve, its trend, findings and verdict.

    Raises: HarnessError of `read_log` and `load_recipe`.
    """
    log = read_log(path, stdin)
    own, told = _recipe(log.source, recipe, overrides or [])
    columns = log.run.columns
    steps, losses = columns["step"], columns["loss"]
    learning = _learning(own, columns, told, counted=log.records.numbered)
    finite = np.isfinite(losses)
    found = _Trend(
        steps[finite], losses[finite], learning, _applied(own, columns)[finite], log.records.decimals
    )
    lost = np.flatnonzero(finite)[-1] + 1 if finite.any() else 0
    second = held_out(log.records.log.held_out)
    pace = throughput(log.records.columns if not log.run.mixed else columns, log.records.bars)
    still = findings.about_weights_moving(columns, learning)
    about = [
        *_about_start(log, own, told, learning),
        *still,
        *findings.about_held_out(second),
        *findings.about_pace(pace),
    ]
    about += [*findings.about_events(found.spikes, found.jumps), *_about_end(found, steps[finite])]
    trend = found.test.trend() if found.test else None
    verdict = judge(
        Facts(
            recipe=own,
            first_step=int(steps[0]),
            last_step=int(steps[-1]),
            first_loss=float(losses[0]),
            last_loss=float(losses[-1]),
            points=int(finite.sum()),
            usable=found.usable,
            learning=learning,
            trend=trend,
            rise=found.rise,
            p_rise=found.test.p_rise() if found.test else 1.0,
            lost_at=int(steps[lost]) if lost < len(steps) else None,
            still=bool(still),
            mixed=log.run.mixed and not log.run.seams,
        )
    )
    return Curve(
        inputs=inputs_of(log.source, own, references or []),
        path=log.source.name,
        form="run" if log.source.run else log.records.form,
        recipe=own.name,
        verdict=verdict.answer,
        reasons=verdict.reasons,
        needed=verdict.needed,
        partial=[*log.source.partial, *log.records.partial, *log.run.partial],
        lines=log.records.lines,
        points=len(steps),
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        trend=trend,
        learning=learning,
        plateau_from_step=found.plateau() if verdict.answer == "learning" else None,
        findings=sorted(about, key=lambda finding: ("error", "warning", "info").index(finding.severity)),
        seams=log.run.seams,
        spikes=found.spikes,
        jumps=found.jumps,
        throughput=pace,
        distances=[_distance(reference, steps[finite], losses[finite]) for reference in references or []],
        series=_series(columns, own, found),
        held_out=second,
        read=Lines(
            understood=log.records.understood,
            others=log.records.filled - log.records.understood,
            example=log.records.strange,
        ),
        unknown=(
            {}
            if pace
            else {"throughput": "the log says nothing of time: no clock, no step times, no progress bar"}
        ),
    )


def _about_start(log: Log, recipe: Recipe, told: str, learning: Learning) -> list[CurveFinding]:
    """What the lines give away beside the trend, and what the first of them says of the weights."""
    columns = log.run.columns
    steps, losses, norm = columns["step"], columns["loss"], columns["param_norm"][0]
    about = [
        *log.run.findings,
        *findings.about_reading(log.records, columns),
        *findings.about_rates(columns, recipe),
    ]
    about += findings.about_loss(steps, losses, by_rate=_rate_applied(recipe, columns, learning))
    about += [*findings.about_gradients(columns, recipe), *findings.about_weights_finite(columns)]
    if not (np.isfinite(norm) and norm > 0 and _full_rate(recipe, 0, steps[0]) < learning.negligible_below):
        return about
    weights = about_weights(recipe, float(norm), named=told != "assumed")
    # Where other weights begin is not known: nothing is said of their first loss.
    others = any(finding.code == "fingerprint-differs" for finding in weights)
    first = (
        about_first_loss(recipe, float(losses[0]), named=told != "assumed")
        if np.isfinite(losses[0]) and not others
        else []
    )
    return [*about, *weights, *first]


def inputs_of(source: Source, recipe: Recipe, references: list[str]) -> str:
    """What the answer was computed from."""
    return sha256_json([source.text.sha256, recipe, references])


class _Trend:
    """What the finite losses of one run amount to."""

    def __init__(
        self, steps: Floats, losses: Floats, learning: Learning, applied: Floats, decimals: int | None
    ) -> None:
        self._steps, self._losses = steps, losses
        self.test: Test | None = None
        self.rise: events.Rise | None = None
        self.spikes: list[Spike] = []
        self.keep = np.ones(len(losses), bool)
        self.usable = 0
        self.jumps: list[Jump] = []
        if not len(losses):
            return
        level, found = settle(losses)
        self.spikes = events.spikes(steps, losses, level, found)
        self.keep = without(found, len(losses))
        self.jumps = events.jumps(steps[self.keep], losses[self.keep])
        counts = self.keep.copy()
        counts[: max(1, int(_FIRST_SHARE * len(losses)))] = False
        if applied[-1] >= learning.negligible_below:
            # What the loss did before any rate was applied to speak of is no learning, and would pass for it.
            counts &= applied >= _BEFORE * learning.negligible_below
        self.usable = int(counts.sum())
        if self.usable >= MIN_POINTS:
            values = clipped(losses, level)[counts]
            self.test = Test(steps[counts], values, 10.0**-decimals if decimals else 0.0)
            self.rise = events.rise(steps, losses, self.test)

    def plateau(self) -> int | None:
        return events.plateau(self._steps[self.keep], self._losses[self.keep])


def _recipe(source: Source, named: str | None, overrides: list[str]) -> tuple[Recipe, str]:
    """(the recipe that the rates come from, how it is known: "named", "run" or "assumed")."""
    if named is not None:
        return load_recipe(named, overrides), "named"
    if source.run is not None and (source.run / RECIPE).is_file():
        return load_recipe(str(source.run / RECIPE), overrides, root=source.run), "run"
    if source.run is not None and (manifest := RunDir(source.run).read(Manifest)) is not None:
        from harness.recipe.load import recipe_from

        return recipe_from(dict(manifest.recipe), overrides, where=f"the manifest of {source.run}"), "run"
    return load_recipe(PUBLISHED, overrides), "assumed"


def _logged_rates(columns: dict[str, Floats]) -> Floats | None:
    rates = columns["learning_rate"]
    known = np.isfinite(rates)
    if known.mean() < 0.5 or not (rates[known] > 0).any():
        return None
    return np.interp(columns["step"], columns["step"][known], rates[known])


def _applied(recipe: Recipe, columns: dict[str, Floats]) -> Floats:
    """[N] steps at the recipe's peak rate that had been applied since the first logged step."""
    logged, peak = _logged_rates(columns), recipe.train.optimizer.schedule.peak
    applied = full_rate_steps(recipe.train.optimizer.schedule, columns["step"], logged)
    return (
        applied
        if logged is None
        else applied * max(float(logged.max()), 1e-300) / max(peak, float(logged.max()))
    )


def _full_rate(recipe: Recipe, first: float, last: float) -> float:
    return (
        float(full_rate_steps(recipe.train.optimizer.schedule, np.array([first, max(first, last)]))[-1])
        if last > first
        else 0.0
    )


def _rate_applied(recipe: Recipe, columns: dict[str, Floats], learning: Learning) -> bool:
    """Whether more than a negligible learning rate was applied before the first loss that is not finite, as
    far as the log shows.
    """
    bad = np.flatnonzero(~np.isfinite(columns["loss"]))
    if not len(bad) or not bad[0]:
        return False
    return float(_applied(recipe, columns)[bad[0]]) >= learning.negligible_below


def _learning(recipe: Recipe, columns: dict[str, Floats], told: str, *, counted: bool) -> Learning:
    logged, schedule = _logged_rates(columns), recipe.train.optimizer.schedule
    rates = learning_rate(schedule, columns["step"]) if logged is None else logged
    # Of lines that were merely counted nobody knows how many steps lie between them.
    negligible, enough = (0.0, 0.0) if counted else thresholds(recipe)
    of_recipe = {"named": "as named", "run": "the run's own", "assumed": "assumed, since none was named"}[
        told
    ]
    return Learning(
        source=(
            "rates of the log itself" if logged is not None else f"rates of recipe {recipe.name}, {of_recipe}"
        ),
        first=float(rates[0]),
        last=float(rates[-1]),
        peak=schedule.peak,
        warmup_steps=schedule.warmup_steps,
        full_rate_steps=float(_applied(recipe, columns)[-1]),
        negligible_below=negligible,
        enough_from=enough,
    )


def _about_end(found: _Trend, steps: Floats) -> list[CurveFinding]:
    """A rise at the very end, which may be a spike or the beginning of a divergence."""
    rise = found.rise
    if rise is None or rise.diverged or not 0 < rise.tail < events.EXPLODED_POINTS:
        return []
    text = (
        f"the last {rise.tail} logged point{'s' * (rise.tail > 1)} lie far above the rest: a spike, or a"
        " divergence that begins; more points will tell"
    )
    return [
        CurveFinding(
            severity="warning",
            code="spike-at-the-end",
            text=text,
            steps=[int(step) for step in steps[-rise.tail :]],
        )
    ]


def _distance(reference: str, steps: Floats, losses: Floats) -> Distance:
    columns = read_log(reference).run.columns
    finite = np.isfinite(columns["loss"])
    if not finite.any() or not len(steps):
        raise HarnessError(
            "reference-without-loss",
            f"{reference} or the log has no finite loss to compare",
            fix="give another --reference",
        )
    return distance(str(Path(reference)), steps, losses, columns["step"][finite], columns["loss"][finite])


def _series(columns: dict[str, Floats], recipe: Recipe, found: _Trend) -> CurveSeries:
    """The curve in at most MAX_POINTS stretches."""
    steps, losses = columns["step"], columns["loss"]
    count = min(len(steps), MAX_POINTS)
    edges = np.linspace(0, len(steps), count + 1).astype(int)
    rates = _logged_rates(columns)
    rates = learning_rate(recipe.train.optimizer.schedule, steps) if rates is None else rates
    finite = np.isfinite(losses)
    counts = finite.copy()
    counts[finite] = found.keep
    return CurveSeries(
        step=[int(step) for step in steps[edges[:-1]]],
        loss=_means(losses, finite, edges),
        low=_extremes(np.where(finite, losses, np.inf), edges, np.minimum),
        high=_extremes(np.where(finite, losses, -np.inf), edges, np.maximum),
        smooth=_smooth(_means(losses, counts, edges)),
        grad_norm=_means(columns["grad_norm"], np.isfinite(columns["grad_norm"]), edges),
        learning_rate=_listed(block_means(rates, count)),
    )


def _means(values: Floats, counts: npt.NDArray[np.bool_], edges: npt.NDArray[np.intp]) -> list[float | None]:
    number = np.add.reduceat(counts.astype(float), edges[:-1])
    total = np.add.reduceat(np.where(counts, values, 0.0), edges[:-1])
    return _listed(np.divide(total, number, out=np.full(len(number), np.nan), where=number > 0))


def _extremes(values: Floats, edges: npt.NDArray[np.intp], extreme: np.ufunc) -> list[float | None]:
    return _listed(extreme.reduceat(values, edges[:-1]))


def _smooth(values: list[float | None]) -> list[float | None]:
    """A Gaussian-weighted mean over a fortieth of the curve to each side; gaps have no weight."""
    held = np.array([np.nan if value is None else value for value in values])
    known = np.isfinite(held).astype(float)
    width = max(1.0, len(held) / 80)
    reach = int(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    total = np.convolve(np.pad(np.nan_to_num(held), reach), kernel, mode="valid")
    weight = np.convolve(np.pad(known, reach), kernel, mode="valid")
    return _listed(np.divide(total, weight, out=np.full(len(held), np.nan), where=weight > 1e-9))


def _listed(values: Floats) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
