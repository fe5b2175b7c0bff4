"""The dataset and its statistics as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from harness.artifacts import Comparison, Dataset, NormStats, Statistic
from harness.show.rows import rows_table
from harness.units import format_bytes


def dataset_table(dataset: Dataset) -> Table:
    """Counts, features and hash of a dataset."""
    rows = [
        ("source", dataset.source + (f" @ {dataset.revision}" if dataset.revision else "")),
        ("format", f"LeRobot {dataset.format_version}, {dataset.fps:g} fps"),
        ("episodes", f"{dataset.episodes:,}"),
        ("frames", f"{dataset.frames:,}"),
        ("tasks", f"{len(dataset.tasks)}: " + "; ".join(dataset.tasks[:5]) + (" …" if len(dataset.tasks) > 5 else "")),
        ("features", ", ".join(f"{name} {feature.dtype}{feature.shape}" for name, feature in dataset.features.items())),
        ("prompt", _prompt(dataset)),
        ("size", format_bytes(dataset.total_bytes)),
        ("sha256", dataset.sha256),
    ]
    return rows_table("dataset", rows + [("finding", text) for text in dataset.findings])


def _prompt(dataset: Dataset) -> str:
    if dataset.longest_prompt_tokens is None:
        return f"length unknown, computed with {dataset.prompt_tokens} tokens: {dataset.unknown.get('longest_prompt_tokens', 'not known')}"
    return f"longest {dataset.longest_prompt_tokens} tokens, computed with {dataset.prompt_tokens}"


def stats_table(stats: NormStats) -> Table:
    """Mean, spread and quantiles of every dimension."""
    table = Table(title=f"statistics of {stats.frames:,} frames, horizon {stats.action_horizon}", title_justify="left", box=None, pad_edge=False)
    for name in ("", "mean", "std", "q01", "q99"):
        table.add_column(name, justify="right" if name else "left")
    for key, one in stats.norm_stats.items():
        for i in range(len(one.mean)):
            table.add_row(f"{key}[{i}]", *(f"{values[i]:.4f}" for values in (one.mean, one.std, one.q01, one.q99)))
    for finding in stats.findings:
        table.add_row(f"{finding.key}[{finding.dimension}]", finding.problem, "", "", finding.fix)
    return table


def comparison_table(comparison: Comparison) -> Group:
    """What our data become under their statistics, then ours beside theirs."""
    return Group(*([_reach_table(comparison)] if comparison.reach else []), _differences_table(comparison), *(Text(text) for text in comparison.findings))


def _reach_table(comparison: Comparison) -> Table:
    """Every dimension of our data, normalized with their statistics."""
    table = Table(title=f"this data under {comparison.form}", title_justify="left", box=None, pad_edge=False)
    for name in ("", "from", "1 %", "99 %", "to", "outside -1 to 1"):
        table.add_column(name, justify="right" if name else "left")
    for one in sorted(comparison.reach, key=lambda one: (one.key != "state", one.dimension)):
        outside = "unknown" if one.outside is None else f"{100 * one.outside:.2f} %"
        table.add_row(f"{one.key}[{one.dimension}]", f"{one.low:.4g}", f"{one.q01:.4g}", f"{one.q99:.4g}", f"{one.high:.4g}", outside)
    return table


def _differences_table(comparison: Comparison) -> Table:
    """Ours beside theirs, dimension by dimension; the last column is the dimension's largest difference, of our q99 - q01."""
    names: tuple[Statistic, ...] = ("mean", "std", "q01", "q99")
    table = Table(title=f"ours → {comparison.path}", title_justify="left", box=None, pad_edge=False)
    for name in ("", *names, "of the spread"):
        table.add_column(name, justify="right" if name else "left")
    found = {(d.key, d.dimension, d.statistic): d for d in comparison.differences}
    for key, dimension in sorted({(d.key, d.dimension) for d in comparison.differences}, key=lambda pair: (pair[0] != "state", pair[1])):
        cells = [found.get((key, dimension, name)) for name in names]
        there = [cell for cell in cells if cell is not None]
        shares = [cell.share for cell in there if cell.share is not None]
        equal = all(cell.ours == cell.theirs for cell in there)
        largest = f"{100 * max(shares):.2f} %" if shares else "equal" if equal else "differs; ours has no spread"
        table.add_row(f"{key}[{dimension}]", *("" if cell is None else f"{cell.ours:.4f} → {cell.theirs:.4f}" for cell in cells), largest)
    for whose, lacking in (("only ours", comparison.only_ours), ("only theirs", comparison.only_theirs)):
        for group, count in lacking.items():
            if count:
                table.add_row(group, f"{count} more dimensions are {whose}")
    return table
