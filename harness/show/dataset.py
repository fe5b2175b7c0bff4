"""The dataset and its statistics as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group
from rich.text import Text

from harness.artifacts import Comparison, Dataset, LeftOut, NormStats, Statistic
from harness.show.rows import Cells, finding_rows, rows_table
from harness.units import format_bytes

_MOST_RUNS = 10


def _mixture_table(dataset: Dataset) -> Group:
    """The datasets of a mixture with their shares of the samples, and what is said of all of them."""
    table = Cells("mixture", ("dataset", "share", "episodes", "frames", "epochs"))
    whole = sum(dataset.shares)
    for one, share in zip(dataset.members, dataset.shares, strict=True):
        seen = share / whole * dataset.trained / one.trained
        table.row(
            one.source + (f" @ {one.revision}" if one.revision else ""),
            f"{100 * share / whole:.4g} %",
            f"{one.episodes:,}{left_out(one.left_out)}",
            f"{one.frames:,}",
            f"{seen:.3g}",
        )
    rows = [
        ("all", f"{dataset.episodes:,} episodes, {dataset.frames:,} frames, {len(dataset.tasks)} tasks"),
        ("epochs", "how often a dataset's frames are seen while as many samples as frames are drawn"),
        *(("held out", f"{one.source}: {_held_out(one)}") for one in dataset.members if one.held_out),
        ("prompt", _prompt(dataset)),
        ("size", format_bytes(dataset.total_bytes)),
        ("sha256", dataset.sha256),
    ]
    found = [("finding", text) for text in dataset.findings]
    found += [("finding", f"{one.source}: {text}") for one in dataset.members for text in one.findings]
    return Group(table, rows_table("", rows + found))


def dataset_table(dataset: Dataset) -> Group:
    """Counts, features and hash of a dataset."""
    if dataset.members:
        return _mixture_table(dataset)
    rows = [
        ("source", dataset.source + (f" @ {dataset.revision}" if dataset.revision else "")),
        ("format", f"LeRobot {dataset.format_version}, {dataset.fps:g} fps"),
        ("episodes", f"{dataset.episodes:,}{left_out(dataset.left_out)}"),
        ("frames", f"{dataset.frames:,}"),
        *([("held out", _held_out(dataset))] if dataset.held_out else []),
        (
            "tasks",
            f"{len(dataset.tasks)}: "
            + "; ".join(dataset.tasks[:5])
            + (" …" if len(dataset.tasks) > 5 else ""),
        ),
        (
            "features",
            ", ".join(f"{name} {feature.dtype}{feature.shape}" for name, feature in dataset.features.items()),
        ),
        ("prompt", _prompt(dataset)),
        ("size", format_bytes(dataset.total_bytes)),
        ("sha256", dataset.sha256),
    ]
    return rows_table("dataset", rows + [("finding", text) for text in dataset.findings])


def left_out(what: LeftOut | None) -> str:
    """What the recipe leaves out, behind the number of what it reads."""
    if what is None:
        return ""
    shown = ", ".join(map(str, what.episodes[:_MOST_RUNS]))
    more = f" and {len(what.episodes) - _MOST_RUNS:,} more" if len(what.episodes) > _MOST_RUNS else ""
    return f" (left out: {shown}{more}, {what.frames:,} frames)"


def _held_out(dataset: Dataset) -> str:
    shown = ", ".join(map(str, dataset.held_out[:20])) + (" …" if len(dataset.held_out) > 20 else "")
    left = "" if dataset.trained_frames is None else f"; {dataset.trained_frames:,} frames are trained on"
    return f"{len(dataset.held_out)} episodes: {shown}{left}"


def _prompt(dataset: Dataset) -> str:
    if dataset.longest_prompt_tokens is None:
        return (
            f"length unknown, computed with {dataset.prompt_tokens} tokens:"
            f" {dataset.unknown.get('longest_prompt_tokens', 'not known')}"
        )
    return f"longest {dataset.longest_prompt_tokens} tokens, computed with {dataset.prompt_tokens}"


def stats_table(stats: NormStats) -> Group:
    """Mean, spread and quantiles of every dimension. Below them each fault of a dimension, with its fix."""
    title = (
        f"statistics of {stats.frames:,} frames, horizon {stats.action_horizon}"
        if stats.given is None
        else f"given statistics: {stats.given.form}, {stats.given.source}, sha256 {stats.given.sha256[:16]}"
    )
    table = Cells(title, ("dimension", "mean", "std", "q01", "q99"))
    for key, one in stats.norm_stats.items():
        for i in range(len(one.mean)):
            table.row(
                f"{key}[{i}]", *(f"{values[i]:.4f}" for values in (one.mean, one.std, one.q01, one.q99))
            )
    found = [
        row
        for each in stats.findings
        for row in finding_rows(f"{each.key}[{each.dimension}]", each.problem, "yellow", fix=each.fix)
    ]
    return Group(table, rows_table("", found))


def comparison_table(comparison: Comparison) -> Group:
    """The range of our data under their statistics, then our statistics beside theirs."""
    findings = [Text(text) for text in comparison.findings]
    return Group(
        *([_reach_table(comparison)] if comparison.reach else []), _differences_table(comparison), *findings
    )


def _reach_table(comparison: Comparison) -> Cells:
    """Every dimension of our data, normalized with their statistics."""
    table = Cells(
        f"this data under {comparison.form}", ("dimension", "from", "1 %", "99 %", "to", "outside -1 to 1")
    )
    for one in sorted(comparison.reach, key=lambda one: (one.key != "state", one.dimension)):
        outside = "unknown" if one.outside is None else f"{100 * one.outside:.2f} %"
        table.row(
            f"{one.key}[{one.dimension}]",
            f"{one.low:.4g}",
            f"{one.q01:.4g}",
            f"{one.q99:.4g}",
            f"{one.high:.4g}",
            outside,
        )
    return table


def _differences_table(comparison: Comparison) -> Cells:
    """Our statistics beside theirs, dimension by dimension.

    The last column is the dimension's largest difference, as a share of our q99 - q01.
    """
    names: tuple[Statistic, ...] = ("mean", "std", "q01", "q99")
    table = Cells(f"ours → {comparison.path}", ("dimension", *names, "of the spread"))
    found = {(d.key, d.dimension, d.statistic): d for d in comparison.differences}
    for key, dimension in sorted(
        {(d.key, d.dimension) for d in comparison.differences}, key=lambda pair: (pair[0] != "state", pair[1])
    ):
        cells = [found.get((key, dimension, name)) for name in names]
        there = [cell for cell in cells if cell is not None]
        shares = [cell.share for cell in there if cell.share is not None]
        equal = all(cell.ours == cell.theirs for cell in there)
        largest = (
            f"{100 * max(shares):.2f} %" if shares else "equal" if equal else "differs; ours has no spread"
        )
        table.row(
            f"{key}[{dimension}]",
            *("" if cell is None else f"{cell.ours:.4f} → {cell.theirs:.4f}" for cell in cells),
            largest,
        )
    for whose, lacking in (("only ours", comparison.only_ours), ("only theirs", comparison.only_theirs)):
        for group, count in lacking.items():
            if count:
                table.row(group, f"{count} more dimensions are {whose}")
    return table
