"""The analysis of a log: from its bytes to the verdict."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.analyse import events, findings
from harness.analyse.distance import distance
from harness.analyse.fingerprints import about_first_loss, about_weights
from harness.analyse.gradients import about_gradients
from harness.analyse.held_out import held_out, measured
from harness.analyse.learning import applied_before, applied_steps, learning_of, rate_applied
from harness.analyse.level import clipped, settle, without
from harness.analyse.lines import Records, read_records
from harness.analyse.pace import throughput
from harness.analyse.series import series_of
from harness.analyse.sessions import OneRun, one_run
from harness.analyse.source import Source, open_source
from harness.analyse.trend import MIN_POINTS, Test
from harness.analyse.verdict import Facts, judge
from harness.artifacts import Manifest
from harness.artifacts.curve import (
    Curve,
    CurveFinding,
    Distance,
    Jump,
    Learning,
    Lines,
    Spike,
    Trend,
)
from harness.errors import HarnessError
from harness.recipe.load import load_recipe, recipe_from
from harness.recipe.schema import Recipe
from harness.run.directory import RECIPE, RunDir, sha256_json
from harness.run.status import read_or_tell

Floats = npt.NDArray[np.float64]

PUBLISHED = "pi05_libero"
# The first logged steps are left out of the trend: openpi's first value is of one step while the others are
# averages, and compilers warm up.
_FIRST_SHARE = 0.02
# As a share of the negligible amount. Losses before this much learning rate are left out as well.
_BEFORE = 0.1
_NO_TIME = "the log says nothing of time: no clock, no step times, no progress bar"


class Log(NamedTuple):
    """The records of one run, and where they come from."""

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
    own, told, unusable = _recipe(log.source, recipe, overrides or [])
    columns = log.run.columns
    steps = columns["step"]
    applied = applied_steps(own, columns)
    learning = learning_of(own, columns, applied, told, counted=log.records.numbered is not None)
    found = _Trend(columns, learning, applied, log.records.decimals)
    second, lost = held_out(measured(log.source.run) or log.records.log.held_out)
    pace = throughput(log.records.columns if not log.run.mixed else columns, log.records.bars)
    still = findings.about_weights_moving(columns, learning)
    about = [
        *_about_start(log, own, told, learning, applied),
        *still,
        *findings.about_held_out(second, lost),
        *findings.about_pace(pace),
        *findings.about_events(found.spikes, found.jumps),
        *_about_end(found),
    ]
    verdict = judge(_facts(log.run, own, found, learning, still=bool(still)))
    return Curve(
        inputs=inputs_of(log.source, own, references or []),
        path=log.source.name,
        form="run" if log.source.run else log.records.form,
        recipe=own.name,
        verdict=verdict.answer,
        reasons=verdict.reasons,
        needed=verdict.needed,
        partial=[*log.source.partial, *log.records.partial, *log.run.partial, *unusable],
        lines=log.records.lines,
        points=len(steps),
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        trend=found.trend,
        learning=learning,
        plateau_from_step=found.plateau() if verdict.answer == "learning" else None,
        findings=sorted(about, key=lambda finding: ("error", "warning", "info").index(finding.severity)),
        seams=log.run.seams,
        spikes=found.spikes,
        jumps=found.jumps,
        throughput=pace,
        distances=[_distance(reference, found.steps, found.losses) for reference in references or []],
        series=series_of(columns, own, found.keep),
        held_out=second,
        read=_lines(log.records),
        unknown={} if pace else {"throughput": _NO_TIME},
    )


def _lines(records: Records) -> Lines:
    return Lines(
        understood=records.understood,
        others=records.filled - records.understood,
        example=records.strange,
    )


def _facts(run: OneRun, recipe: Recipe, found: _Trend, learning: Learning, *, still: bool) -> Facts:
    """The facts that the verdict rests on. `still`: the weights do not move."""
    steps, losses = run.columns["step"], run.columns["loss"]
    finite = np.isfinite(losses)
    lost = np.flatnonzero(finite)[-1] + 1 if finite.any() else 0
    return Facts(
        recipe=recipe,
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        first_loss=float(losses[0]),
        last_loss=float(losses[-1]),
        points=len(found.steps),
        usable=found.usable,
        learning=learning,
        trend=found.trend,
        rise=found.rise,
        p_rise=found.test.p_rise() if found.test else 1.0,
        lost_at=int(steps[lost]) if lost < len(steps) else None,
        still=still,
        mixed=run.mixed and not run.seams,
    )


def _about_start(
    log: Log, recipe: Recipe, told: str, learning: Learning, applied: Floats
) -> list[CurveFinding]:
    """The findings about the lines apart from the trend, and about the weights at the first line."""
    columns = log.run.columns
    steps, losses, norm = columns["step"], columns["loss"], columns["param_norm"][0]
    about = [
        *log.run.findings,
        *findings.about_reading(log.records, columns),
        # Only openpi and the harness log param_norm. Another trainer's log has no recipe unless one is named.
        *(
            findings.about_rates(columns, recipe)
            if told != "assumed" or columns["has_param_norm"].any()
            else []
        ),
    ]
    about += findings.about_loss(steps, losses, by_rate=rate_applied(losses, applied, learning))
    about += [*about_gradients(columns, recipe), *findings.about_weights_finite(columns)]
    if not (np.isfinite(norm) and norm > 0 and applied_before(recipe, steps[0]) < learning.negligible_below):
        return about
    weights = about_weights(recipe, float(norm), named=told != "assumed")
    # The first loss of other weights is unknown, so nothing is said about it.
    others = any(finding.code == "fingerprint-differs" for finding in weights)
    first = (
        about_first_loss(recipe, float(losses[0]), named=told != "assumed")
        if np.isfinite(losses[0]) and not others
        else []
    )
    return [*about, *weights, *first]


def inputs_of(source: Source, recipe: Recipe, references: list[str]) -> str:
    """The hash of everything that the answer was computed from."""
    return sha256_json([source.text.sha256, recipe, references])


class _Trend:
    """The trend, spikes and jumps of the finite losses of one run."""

    def __init__(
        self, columns: dict[str, Floats], learning: Learning, applied: Floats, decimals: int | None
    ) -> None:
        finite = np.isfinite(columns["loss"])
        steps, losses, applied = columns["step"][finite], columns["loss"][finite], applied[finite]
        self.steps, self.losses = steps, losses
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
            # A change of the loss before any noticeable rate was applied is no learning, but would look like
            # it.
            counts &= applied >= _BEFORE * learning.negligible_below
        self.usable = int(counts.sum())
        if self.usable >= MIN_POINTS:
            values = clipped(losses, level)[counts]
            self.test = Test(steps[counts], values, 10.0**-decimals if decimals else 0.0)
            self.rise = events.rise(steps, losses, self.test)

    @cached_property
    def trend(self) -> Trend | None:
        """The trend that was tested. None if too few losses are usable."""
        return self.test.trend() if self.test else None

    def plateau(self) -> int | None:
        return events.plateau(self.steps[self.keep], self.losses[self.keep])


def _recipe(source: Source, named: str | None, overrides: list[str]) -> tuple[Recipe, str, list[str]]:
    """(the recipe that the rates come from; how it is known: "named", "run" or "assumed"; what of the run's
    own cannot be used, and why).
    """
    if named is not None:
        return load_recipe(named, overrides), "named", []
    lost: list[str] = []
    if source.run is not None and (path := source.run / RECIPE).is_file():
        try:
            load_recipe(str(path), root=source.run)
        except HarnessError as error:
            if error.code != "recipe-invalid":
                raise
            lost.append(f"{RECIPE} cannot be used: {' '.join(error.what.split())}")
        else:
            return load_recipe(str(path), overrides, root=source.run), "run", []
    manifest = None if source.run is None else read_or_tell(RunDir(source.run), Manifest, lost)
    if manifest is not None:
        where = f"the manifest of {source.run}"
        return recipe_from(dict(manifest.recipe), overrides, where=where), "run", lost
    return load_recipe(PUBLISHED, overrides), "assumed", lost


def _about_end(found: _Trend) -> list[CurveFinding]:
    """A warning about a rise at the very end: either a spike or the beginning of a divergence."""
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
            steps=[int(step) for step in found.steps[-rise.tail :]],
        )
    ]


def _distance(reference: str, steps: Floats, losses: Floats) -> Distance:
    columns = read_log(reference).run.columns
    finite = np.isfinite(columns["loss"])
    if not len(steps):
        raise HarnessError(
            "reference-without-loss",
            f"the log has no finite loss that {reference} could be compared with",
            need="a log with a finite loss",
            fix="leave --reference out, to be told what the log shows",
        )
    if not finite.any():
        raise HarnessError(
            "reference-without-loss",
            f"{reference} has no finite loss to compare with",
            need="a log with a finite loss",
            fix="give another --reference, or leave it out",
        )
    return distance(str(Path(reference)), steps, losses, columns["step"][finite], columns["loss"][finite])
