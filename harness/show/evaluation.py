"""An evaluation as tables for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group

from harness.artifacts.evaluation import Difference, Evaluation, Rate
from harness.show.rows import Cells, Row, rows_table

_STYLES = {"reproduces": "bold green", "above": "bold green", "below": "bold red"}


def evaluation_table(evaluation: Evaluation) -> Group:
    """The rates of each suite, the differences, the verdict with its reason, and possible causes."""
    parts = [_rates(evaluation)]
    if evaluation.differences:
        parts.append(_differences(evaluation))
    return Group(*parts, rows_table("", [*_verdict(evaluation), *_facts(evaluation)]))


def _rates(evaluation: Evaluation) -> Cells:
    table = _with_suites(
        f"success of {evaluation.setting.evaluated.name}",
        ("successes", "rate", "95 %, these tasks", "tasks like these", "not measured", "missing"),
    )
    several = len(evaluation.suites) > 1
    for rate in [*evaluation.suites, *([evaluation.all] if several else [])]:
        table.row(
            rate.suite,
            f"{rate.successes:,} of {rate.measured:,}",
            "" if rate.rate is None else f"{100 * rate.rate:.2f} %",
            _range(rate.interval.low, rate.interval.high),
            _others(rate),
            rate.errors or "",
            rate.missing or "",
        )
    return table


def _with_suites(title: str, columns: tuple[str, ...]) -> Cells:
    """A table whose first column has names of suites, which are never folded."""
    table = Cells(title)
    table.show_header = True
    table.column("suite", whole=True)
    for name in columns:
        table.column(name, right=True)
    return table


def _others(rate: Rate) -> str:
    return "few tasks" if rate.others is None else _range(rate.others.low, rate.others.high)


def _differences(evaluation: Evaluation) -> Cells:
    name = evaluation.against.name if evaluation.against else ""
    table = _with_suites(
        f"ours less {name}, points", ("ours", "theirs", "difference", "interval", "pairs", "verdict")
    )
    for each in evaluation.differences:
        table.row(
            each.scope,
            f"{100 * each.ours:.2f} %",
            f"{100 * each.theirs:.2f} %",
            f"{100 * each.difference:+.2f}",
            f"{100 * each.interval.low:+.2f} to {100 * each.interval.high:+.2f}",
            _pairs(each),
            each.verdict,
            style=_STYLES.get(each.verdict, ""),
        )
    return table


def _pairs(each: Difference) -> str:
    if each.pairs is None:
        return "none"
    pairs = each.pairs
    return f"{pairs.only_ours} : {pairs.only_theirs} of {pairs.scenes:,}, p {pairs.p:.3g}"


def _verdict(evaluation: Evaluation) -> list[Row]:
    if evaluation.verdict is None:
        return [Row("verdict", "compared with nothing")]
    field = f": {evaluation.field}" if evaluation.field else ""
    return [
        Row("verdict", f"{evaluation.verdict}{field}", _STYLES.get(evaluation.verdict, "bold yellow")),
        Row("reason", evaluation.reason),
        *([Row("against", evaluation.against.source)] if evaluation.against else []),
    ]


def _facts(evaluation: Evaluation) -> list[Row]:
    setting = evaluation.setting
    programs = ", ".join(f"{name} {version}" for name, version in sorted(setting.versions.items()))
    version = "" if setting.protocol.version is None else f" version {setting.protocol.version}"
    return [
        Row("protocol", f"{setting.protocol.name}{version}"),
        Row("simulator", f"{programs}; drawn by {setting.renderer or 'an unknown renderer'}"),
        Row("interval", evaluation.interval),
        *(Row(f"why: {row.cause}", f"{row.status}: {row.says}") for row in evaluation.why),
        *(Row("note", note) for note in evaluation.notes),
    ]


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
