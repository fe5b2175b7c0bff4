"""A loss curve as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.table import Table

from harness.artifacts import Curve
from harness.artifacts.curve import HeldOut
from harness.received.text import one_line
from harness.show.status import sparkline
from harness.units import format_seconds

_WIDTH = 60
_STYLE = {"learning": "bold green", "not learning": "bold red", "diverged": "bold red", "inconclusive": "bold yellow", "error": "red", "warning": "yellow"}


def curve_table(curve: Curve) -> Table:
    """The verdict with its reasons and what would make it sure, the curve, and the findings with their fixes."""
    table = Table(title=f"loss of {curve.path}", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("verdict", curve.verdict, style=_STYLE[curve.verdict])
    for reason in curve.reasons:
        table.add_row("because", reason)
    for need in curve.needed:
        table.add_row("to be sure", need)
    for missing in curve.partial:
        table.add_row("partial", missing, style="yellow")
    table.add_row("log", f"{curve.form}, {curve.lines:,} lines, {curve.points:,} points, steps {curve.first_step:,} to {curve.last_step:,}")
    if curve.read is not None and curve.read.others:
        example = f", such as {one_line(curve.read.example[:80])!r}" if curve.read.example else ""
        table.add_row("", f"{curve.read.understood:,} lines understood, {curve.read.others:,} not{example}")
    table.add_row("loss", _line(curve.series.smooth))
    if curve.held_out is not None:
        table.add_row("held-out loss", _second(curve.held_out))
    if curve.trend is not None:
        trend = curve.trend
        slopes = f"{trend.slope_per_1000_steps:+.3g} per 1,000 steps, 95 % interval {trend.slope_low:+.3g} to {trend.slope_high:+.3g}"
        table.add_row("trend", f"{slopes}; as informative as {trend.effective_points:,.0f} independent points")
    learning = curve.learning
    table.add_row("learning rate", f"{learning.first:.2e} to {learning.last:.2e}; {learning.full_rate_steps:,.3g} steps at the peak rate ({learning.source})")
    if curve.plateau_from_step is not None:
        table.add_row("plateau", f"hardly a fall since step {curve.plateau_from_step:,}")
    for seam in curve.seams:
        disagreeing = f", {seam.disagreeing} of them with another loss" if seam.disagreeing else ""
        table.add_row("seam", f"{seam.kind} at step {seam.step:,}, {seam.replayed} steps replayed{disagreeing}")
    table.add_row("pace", _pace(curve))
    for distance in curve.distances:
        table.add_row("reference", _distance(distance.model_dump()))
    for finding in curve.findings:
        where = f" (steps {', '.join(f'{step:,}' for step in finding.steps)})" if finding.steps else ""
        table.add_row(finding.severity, finding.text + where, style=_STYLE.get(finding.severity))
        if finding.fix:
            table.add_row("  fix", finding.fix)
    return table


def _line(smooth: list[float | None]) -> str:
    """The smoothed curve in one line."""
    shown = smooth[:: max(1, -(-len(smooth) // _WIDTH))]
    ends = [f"{value:.4g}" if value is not None else "nothing" for value in (smooth[0], smooth[-1])]
    return f"{sparkline(shown)}  {ends[0]} to {ends[1]}"


def _second(curve: HeldOut) -> str:
    ends = f"{curve.first:.4g} to {curve.last:.4g}"
    return f"{sparkline(curve.loss[:: max(1, -(-len(curve.loss) // _WIDTH))])}  {ends}, lowest {curve.lowest:.4g} at step {curve.lowest_at_step:,}"


def _pace(curve: Curve) -> str:
    if curve.throughput is None:
        return f"unknown ({curve.unknown.get('throughput', 'no reason given')})"
    pace = curve.throughput
    return f"{format_seconds(pace.median_step_s)} a step, slow ones {format_seconds(pace.slow_step_s)} ({pace.source})"


def _distance(distance: dict[str, object]) -> str:
    mean, low, high = distance["mean_difference"], distance["low"], distance["high"]
    if not (isinstance(mean, float) and isinstance(low, float) and isinstance(high, float)):
        return f"{distance['reference']}: {distance['answer']} ({distance['common_steps']} common steps)"
    figures = f"{100 * mean:+.1f} % on average (95 % interval {100 * low:+.1f} to {100 * high:+.1f} %)"
    return f"{distance['reference']}: {distance['answer']}, {figures}, {distance['identical']} of {distance['common_steps']} common steps identical"
