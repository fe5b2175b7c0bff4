"""One run from a log of several sessions: seams, repeated steps, and logs that mix several runs."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.analyse.lines import Records
from harness.artifacts.curve import CurveFinding, Seam

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# Within one run, `param_norm` of neighbouring logged steps differs by less than this. The released weights
# with other adapters lie 3e-4 apart.
_SAME_WEIGHTS = 5e-5
# A log of more sessions than this is no sequence of runs.
_MOST_SESSIONS = 200
# Two values of one step that differ by less than this share are the same value, rounded.
_SAME_VALUE = 1e-3
# Fewer lines than this beyond a seam are lines in another order, and not a stretch that a resume went behind.
_LEAST_LEFT_BEHIND = 3


class OneRun(NamedTuple):
    """The records of one run.

    `columns` are sorted by step. Each step is there once, with its last values. `mixed`: the log held other
    runs too.
    """

    columns: dict[str, Floats]
    seams: list[Seam]
    findings: list[CurveFinding]
    partial: list[str]
    mixed: bool


def one_run(records: Records) -> OneRun:
    """The last run of a log."""
    columns, marks, echoes = _without_echoes(records)
    steps = columns["step"]
    findings: list[CurveFinding] = []
    partial: list[str] = []
    if echoes:
        findings.append(
            CurveFinding(
                severity="info",
                code="lines-repeated",
                text=f"{echoes:,} lines are there twice, word for word; each counts once",
            )
        )
    back = np.flatnonzero(np.diff(steps) <= 0) + 1
    if len(back) > max(5, min(0.05 * len(steps), _MOST_SESSIONS)):
        return _disordered(columns, findings, partial)
    told = {i for i in marks if 0 < i < len(steps)}
    told = told if len(told) <= _MOST_SESSIONS else set()
    starts = [0, *sorted({int(i) for i in back} | told | set(_breaks_in_weights(columns)))]
    seams: list[Seam] = []
    begin = 0
    keep = np.ones(len(steps), bool)
    for start, end in zip(starts[1:], [*starts[2:], len(steps)], strict=False):  # one session: no seam
        seam = _seam(columns, begin, start, end)
        seams.append(seam)
        if seam.kind == "resume":
            partial += _leave_behind(steps, keep, begin, start, end)
        else:
            begin = start
    others = [seam for seam in seams if seam.kind == "another run"]
    if begin:
        runs = 1 + sum(seam.kind != "resume" for seam in seams)
        partial.append(
            f"the log holds {runs} runs; the answer is about the last, {len(steps) - begin:,} of"
            f" {len(steps):,} records"
        )
    if others:
        findings.append(
            CurveFinding(
                severity="error",
                code="mixed-runs",
                text=(
                    "runs with different weights are in this log: param_norm is another where the step goes"
                    " back"
                ),
                steps=[seam.step for seam in others],
                fix="give each run's log on its own",
            )
        )
    findings += _about_replays(seams)
    keep[:begin] = False
    kept = {name: values[keep] for name, values in columns.items()}
    return OneRun(_last_of_each_step(kept), seams, findings, partial, bool(others))


def _without_echoes(records: Records) -> tuple[dict[str, Floats], list[int], int]:
    """(columns of records with a step, session marks as indices into them, number of repeated records).

    A repeated record has the same values as the one before it.
    """
    known = np.isfinite(records.columns["step"])
    table = np.stack([records.columns[name] for name in ("step", "loss", "grad_norm", "param_norm")])
    same = np.zeros(len(known), bool)
    if len(known) > 1:
        pairs = (table[:, 1:] == table[:, :-1]) | (np.isnan(table[:, 1:]) & np.isnan(table[:, :-1]))
        same[1:] = pairs.all(axis=0)
    keep = known & ~same
    positions = np.cumsum(keep)
    marks = [int(positions[mark - 1]) if mark else 0 for mark in records.sessions if mark < len(known)]
    return {name: values[keep] for name, values in records.columns.items()}, marks, int((known & same).sum())


def _breaks_in_weights(columns: dict[str, Floats]) -> list[int]:
    """The indices where param_norm jumps while the steps go on: another run was appended there."""
    norm = columns["param_norm"]
    if len(norm) < 3 or not np.isfinite(norm).all() or not (norm > 0).all():
        return []
    moves = np.abs(np.diff(np.log(norm)))
    usual = float(np.median(moves))
    return [int(i) + 1 for i in np.flatnonzero((moves > 2e-4) & (moves > 200 * usual + 1e-12))][:20]


def _seam(columns: dict[str, Floats], begin: int, start: int, end: int) -> Seam:
    """The relation of the session from `start` to `end` to the run that began at `begin`."""
    steps, norms = columns["step"], columns["param_norm"]
    twice = _twice(steps, begin, start, end)
    differences = [_difference(columns["loss"][a], columns["loss"][b]) for a, b in twice]
    disagreeing = sum(difference > _SAME_VALUE for difference in differences)
    nearest = int(np.argmin(np.abs(steps[begin:start] - steps[start]))) + begin
    known = np.isfinite(norms[nearest]) and np.isfinite(norms[start])
    # Between sessions the norm may move as much as it does from one logged step to the next.
    moves = np.abs(np.diff(norms[begin:start])) if start - begin > 2 else np.zeros(1)
    usual = float(np.nanmax(moves)) if np.isfinite(moves).any() else 0.0
    other = bool(
        known and abs(norms[nearest] - norms[start]) > max(_SAME_WEIGHTS * abs(norms[nearest]), 2 * usual)
    )
    restarts = steps[start] <= steps[begin]
    kind: Literal["resume", "restart", "another run"] = (
        "another run" if other else "restart" if restarts else "resume"
    )
    return Seam(
        step=int(steps[start]),
        kind=kind,
        replayed=len(twice),
        disagreeing=disagreeing,
        largest_difference=max(differences) if differences else None,
    )


def _twice(steps: Floats, begin: int, start: int, end: int) -> list[tuple[int, int]]:
    """(index before, index after) of the steps that the session from `start` to `end` repeated.

    Of several before, the last.
    """
    order = np.argsort(steps[begin:start], kind="stable")
    before = steps[begin:start][order]
    at = np.searchsorted(before, steps[start:end], side="right") - 1
    found = np.flatnonzero((at >= 0) & (before[at] == steps[start:end]))
    return [(int(order[at[i]]) + begin, start + int(i)) for i in found]


def _difference(a: float, b: float) -> float:
    """The difference as a share of the larger value. Two values that are both not finite do not differ."""
    if not (np.isfinite(a) and np.isfinite(b)):
        return 0.0 if np.isfinite(a) == np.isfinite(b) else 1.0
    return float(abs(a - b) / (max(abs(a), abs(b)) or 1.0))


def _leave_behind(steps: Floats, keep: npt.NDArray[np.bool_], begin: int, start: int, end: int) -> list[str]:
    """Takes the lines that the resume at `start` went behind out of `keep` [N]. A sentence if it has not yet
    come past them.

    The run went on from an earlier state, so what came after that state is no part of it. Lines that fill a
    gap go behind nothing.
    """
    before = steps[begin:start][keep[begin:start]]
    again, later = before[before >= steps[start]], before[before > steps[start]]
    reached = float(steps[start:end].max())
    if len(later) < _LEAST_LEFT_BEHIND or again.min() > reached:
        return []
    keep[begin:start] &= steps[begin:start] < steps[start]
    left = later[later > reached]
    if not len(left):
        return []
    return [
        f"the resume at step {steps[start]:.0f} went behind {len(left):,} records of later steps"
        f" ({left.min():.0f} to {left.max():.0f}): they are left out"
    ]


def _last_of_each_step(columns: dict[str, Floats]) -> dict[str, Floats]:
    steps = columns["step"]
    order = np.argsort(steps, kind="stable")
    last = np.append(np.diff(steps[order]) > 0, True)
    kept: Indices = order[last]
    return {name: values[kept] for name, values in columns.items()}


def _about_replays(seams: list[Seam]) -> list[CurveFinding]:
    findings = []
    differing = [seam for seam in seams if seam.kind == "resume" and seam.disagreeing]
    if differing:
        total, replayed = (
            sum(seam.disagreeing for seam in differing),
            sum(seam.replayed for seam in differing),
        )
        findings.append(
            CurveFinding(
                severity="warning",
                code="replay-disagrees",
                text=(
                    f"{total} of {replayed} steps that were computed again after a resume have another loss:"
                    " the resume did not go on bit for bit (openpi sees its first batches again). The later"
                    " values are used"
                ),
                steps=[seam.step for seam in differing][:10],
            )
        )
    restarted = [seam for seam in seams if seam.kind == "restart"]
    if restarted:
        text = "the run was started again from its first step; what came before is left out"
        findings.append(
            CurveFinding(
                severity="warning", code="restarted", text=text, steps=[seam.step for seam in restarted][:10]
            )
        )
    return findings


def _disordered(columns: dict[str, Floats], findings: list[CurveFinding], partial: list[str]) -> OneRun:
    """The run of a log whose steps go back and forth.

    It is one run's lines in another order, or the lines of two runs that wrote at the same time.
    """
    steps, norms = columns["step"], columns["param_norm"]
    order = np.argsort(steps, kind="stable")
    repeated = np.diff(steps[order]) == 0
    apart = np.abs(np.diff(norms[order])) > _SAME_WEIGHTS * np.abs(norms[order][1:])
    losses_differ = np.abs(np.diff(columns["loss"][order])) > _SAME_VALUE * np.abs(columns["loss"][order][1:])
    mixed = bool(
        repeated.sum() > 0.3 * len(steps)
        and (apart[repeated].mean() > 0.5 or losses_differ[repeated].mean() > 0.5)
    )
    if mixed:
        text = "two runs wrote into this log at the same time: most steps are there twice, with other values"
        findings.append(
            CurveFinding(severity="error", code="mixed-runs", text=text, fix="give each run's log on its own")
        )
        partial.append(
            "the lines of several runs cannot be told apart; the last value of each step was taken"
        )
    else:
        text = (
            "the steps of this log are out of order; it was sorted by step, and of a step that occurs"
            " twice the last line counts"
        )
        findings.append(CurveFinding(severity="warning", code="steps-out-of-order", text=text))
        partial.append("the lines were not in order of steps, so sessions cannot be told apart")
    return OneRun(_last_of_each_step(columns), [], findings, partial, mixed)
