"""A loss curve as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group

from harness.artifacts import Curve
from harness.artifacts.curve import CurveSeries, HeldOut
from harness.received.text import one_line
from harness.show.rows import Row, finding_rows, rows_table
from harness.show.status import sparkline
from harness.units import format_seconds

_WIDTH = 60
_STYLE = {
    "learning": "bold green",
    "not learning": "bold red",
    "diverged": "bold red",
    "inconclusive": "bold yellow",
    "error": "red",
    "warning": "yellow",
}


def curve_table(curve: Curve) -> Group:
    """The verdict with its reasons and the evidence still needed, the curve, and the findings with fixes."""
    rows = [Row("verdict", curve.verdict, _STYLE[curve.verdict])]
    rows += [Row("because", reason) for reason in curve.reasons]
    rows += [Row("to be sure", need) for need in curve.needed]
    rows += [Row("partial", missing, "yellow") for missing in curve.partial]
    rows.append(
        Row(
            "log",
            f"{curve.form}, {curve.lines:,} lines, {curve.points:,} points, steps {curve.first_step:,} to"
            f" {curve.last_step:,}",
        )
    )
    if curve.read is not None and curve.read.others:
        example = f", such as {one_line(curve.read.example[:80])!r}" if curve.read.example else ""
        rows.append(
            Row("", f"{curve.read.understood:,} lines understood, {curve.read.others:,} not{example}")
        )
    rows.append(Row("loss", _line(curve.series.smooth)))
    if curve.held_out is not None:
        rows.append(Row("held-out loss", _second(curve.held_out)))
    if curve.trend is not None:
        trend = curve.trend
        slopes = (
            f"{trend.slope_per_1000_steps:+.3g} per 1,000 steps, 95 % interval {trend.slope_low:+.3g} to"
            f" {trend.slope_high:+.3g}"
        )
        rows.append(
            Row("trend", f"{slopes}; as informative as {trend.effective_points:,.0f} independent points")
        )
    learning = curve.learning
    rates = (
        f"{learning.first:.2e} to {learning.last:.2e}; {learning.full_rate_steps:,.3g} steps at the peak rate"
        f" ({learning.source})"
    )
    rows.append(Row("learning rate", rates))
    if curve.plateau_from_step is not None:
        rows.append(Row("plateau", _plateau(curve.plateau_from_step, curve.series)))
    for seam in curve.seams:
        disagreeing = f", {seam.disagreeing} of them with another loss" if seam.disagreeing else ""
        rows.append(
            Row("seam", f"{seam.kind} at step {seam.step:,}, {seam.replayed} steps replayed{disagreeing}")
        )
    rows.append(Row("pace", _pace(curve)))
    rows += [Row("reference", _distance(distance.model_dump())) for distance in curve.distances]
    for finding in curve.findings:
        where = f" (steps {', '.join(f'{step:,}' for step in finding.steps)})" if finding.steps else ""
        rows += finding_rows(
            finding.severity, finding.text + where, _STYLE.get(finding.severity, ""), fix=finding.fix
        )
    return rows_table(f"loss of {curve.path}", rows)


def _line(smooth: list[float | None]) -> str:
    """The smoothed curve in one line."""
    shown = smooth[:: max(1, -(-len(smooth) // _WIDTH))]
    ends = [f"{value:.4g}" if value is not None else "nothing" for value in (smooth[0], smooth[-1])]
    return f"{sparkline(shown)}  {ends[0]} to {ends[1]}"


def _plateau(since: int, series: CurveSeries) -> str:
    """The smoothed curve from step `since` on, and what the rule says of it (see analyse.events.plateau)."""
    shown = [
        value
        for step, value in zip(series.step, series.smooth, strict=False)
        if step >= since and value is not None
    ]
    rule = "in the later half of these steps no fall can be told from noise"
    if len(shown) < 2 or not shown[0]:
        return f"from step {since:,}: {rule}"
    change = shown[-1] / shown[0] - 1
    return f"from step {since:,}: {shown[0]:.4g} to {shown[-1]:.4g} ({change:+.0%}); {rule}"


def _second(curve: HeldOut) -> str:
    ends = f"{curve.first:.4g} to {curve.last:.4g}"
    return (
        f"{sparkline(curve.loss[:: max(1, -(-len(curve.loss) // _WIDTH))])}  {ends}, lowest"
        f" {curve.lowest:.4g} at step {curve.lowest_at_step:,}"
    )


def _pace(curve: Curve) -> str:
    if curve.throughput is None:
        return f"unknown ({curve.unknown.get('throughput', 'no reason given')})"
    pace = curve.throughput
    return (
        f"{format_seconds(pace.median_step_s)} a step, slow ones {format_seconds(pace.slow_step_s)}"
        f" ({pace.source})"
    )


def _distance(distance: dict[str, object]) -> str:
    mean, low, high = distance["mean_difference"], distance["low"], distance["high"]
    if not (isinstance(mean, float) and isinstance(low, float) and isinstance(high, float)):
        return f"{distance['reference']}: {distance['answer']} ({distance['common_steps']} common steps)"
    figures = f"{100 * mean:+.1f} % on average (95 % interval {100 * low:+.1f} to {100 * high:+.1f} %)"
    return (
        f"{distance['reference']}: {distance['answer']}, {figures}, {distance['identical']} of"
        f" {distance['common_steps']} common steps identical"
    )
