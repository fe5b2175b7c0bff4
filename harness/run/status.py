"""How a run stands, from its files alone: so it can be asked from another shell, and of a run that died."""

from __future__ import annotations

import itertools
import math
import os
import socket
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from harness.artifacts import Artifact, Manifest, Memory, Metrics, Plan, Status
from harness.artifacts.metrics_lines import metrics_of
from harness.artifacts.status import State
from harness.errors import HarnessError
from harness.received.files import open_received, stays, there
from harness.received.text import word
from harness.recipe.load import load_recipe
from harness.run.directory import RECIPE, RunDir, runs_root
from harness.run.lock import LOCK, holder, last_host
from harness.units import MIB, format_seconds

A = TypeVar("A", bound=Artifact)

# The end of metrics.jsonl that is read: some twenty thousand lines.
TAIL_BYTES = 4 * MIB
RECENT = 20
POINTS = 60
# A process may write nothing for this many of its steps, and at least this long: saving, a resume's compile.
SILENT_STEPS, SILENT_S = 20, 120.0
_COMMIT = "_CHECKPOINT_METADATA"


class Tail(NamedTuple):
    """The readable lines at the end of metrics.jsonl; `whole`: they are all of it."""

    lines: list[Metrics]
    whole: bool
    unreadable: int


def newest_run() -> RunDir:
    """The run that was written to last, under the runs root.

    Raises: HarnessError "run-missing".
    """
    root = runs_root()
    runs = (
        [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if root.is_dir()
        else []
    )
    if not runs:
        raise HarnessError(
            "run-missing",
            f"there is no run in {root}",
            need="a run directory",
            fix="harness status RUN, or harness train --recipe smoke",
        )
    return RunDir(
        max(runs, key=lambda path: max(child.lstat().st_mtime for child in (path, *path.iterdir())))
    )


def read_status(run: RunDir, *, now: float | None = None) -> Status:
    """How the run stands at `now` (the clock's time by default).

    Raises: HarnessError "run-missing" when the directory is not there or holds no file of a run;
    "run-unreadable".
    """
    now = time.time() if now is None else now
    problems: list[str] = []
    try:
        there = {path.name for path in run.path.iterdir()}
    except FileNotFoundError as error:
        raise _missing(run, "it does not exist") from error
    except OSError as error:
        raise HarnessError(
            "run-unreadable",
            f"{run.path} cannot be read: {error.strerror}",
            got=f"uid {os.getuid()}",
            need="a run directory that this user may read",
            fix=f"chmod -R u+rX {word(run.path)}, or run as the user who wrote it",
        ) from error
    if not there & {RECIPE, Manifest.FILE, Plan.FILE, run.metrics.name, LOCK}:
        raise _missing(run, ", ".join(sorted(there)[:6]) or "an empty directory")
    manifest, plan, memory = (
        _read(run, Manifest, problems),
        _read(run, Plan, problems),
        _read(run, Memory, problems),
    )
    try:
        tail = read_tail(run.metrics)
    except (OSError, HarnessError) as error:
        problems.append(f"{run.metrics.name} cannot be read: {_why(error)}")
        tail = Tail([], True, 0)
    if tail.unreadable:
        problems.append(f"{tail.unreadable} lines of {run.metrics.name} are torn or of another form")
    name, steps = _recipe(run, manifest, problems)
    chosen = (manifest.plan if manifest else None) or (plan.chosen if plan else None)
    last = tail.lines[-1] if tail.lines else None
    step = last.step + 1 if last else 0
    recent = tail.lines[-RECENT:]
    step_s = _median(
        [
            line.step_s
            for line in (recent[1:] if tail.whole and len(recent) == len(tail.lines) > 1 else recent)
        ]
    )
    age_s = None if last is None or not math.isfinite(last.time) else max(0.0, now - last.time)
    (process, owner), saved = _lock(run.path, problems), saved_step(run, problems)
    if saved is not None and plan is not None and plan.backend == "openpi":
        # openpi names a checkpoint by the last step done, counted from 0; and it logs some steps only.
        saved += 1
        step = max(step, saved) if not process else step
    every = last.mean_of_steps or 1 if last else 1
    state, reason = (
        _living(process, step, steps, age_s, step_s, every)
        if process
        else _gone(run, owner, step, steps, saved, age_s, step_s)
    )
    expected = chosen.seconds_per_step if chosen else None
    going = state in ("running", "silent", "preparing")
    data_s = _median([line.data_s for line in recent if line.data_s is not None])
    return Status(
        run=str(run.path),
        recipe=name,
        state=state,
        reason=reason,
        step=step,
        steps=steps,
        saved_step=saved,
        loss=_finite(last.loss) if last else None,
        grad_norm=_finite(last.grad_norm) if last else None,
        learning_rate=_finite(last.learning_rate) if last else None,
        step_s=step_s,
        expected_step_s=expected,
        data_s=data_s,
        eta_s=step_s * (steps - step) if going and step_s is not None and steps is not None else None,
        last_line_time=_finite(last.time) if last else None,
        last_line_age_s=age_s,
        process=process,
        losses=_points(tail.lines),
        losses_since_step=tail.lines[0].step if tail.lines else None,
        predicted_bytes=memory.predicted_bytes if memory else _planned(chosen),
        peak_bytes=memory.peak_bytes if memory else None,
        limit_bytes=memory.limit_bytes if memory else plan.usable_bytes if plan else None,
        findings=problems + _pace(step_s, expected, data_s) + _sense(tail.lines),
        unknown=_unknown(steps, memory, last, expected),
    )


def _living(
    process: str, step: int, steps: int | None, age_s: float | None, step_s: float | None, every: int
) -> tuple[State, str]:
    """What a process does that holds the run; it logs a line `every` so many steps."""
    if age_s is None:
        return "preparing", f"{process} holds the run; nothing is logged yet"
    said = f"the last line was written {format_seconds(age_s)} ago"
    if age_s > _patience(step_s, every) and (steps is None or step < steps):
        return "silent", f"{process} holds the run, yet {said}; a step takes {format_seconds(step_s)}"
    return "running", f"{process} holds the run; {said}"


def _gone(
    run: RunDir,
    owner: str | None,
    step: int,
    steps: int | None,
    saved: int | None,
    age_s: float | None,
    step_s: float | None,
) -> tuple[State, str]:
    """How it ended, when no process holds the run; `owner` is the machine that last did."""
    said = "nothing is logged" if age_s is None else f"the last line was written {format_seconds(age_s)} ago"
    if owner is None and age_s is not None and age_s < _patience(step_s) and (steps is None or step < steps):
        return "unknown", f"{said}; the run has no lock, so whether a process is there cannot be told"
    elsewhere = (
        f"; it was locked on {owner}, whose locks may not reach this machine"
        if owner not in (None, socket.gethostname())
        else ""
    )
    kept = saved is not None or _any_entry(run.checkpoints)
    if steps is not None and step >= steps and ((saved or 0) >= steps or not kept):
        found: tuple[State, str] = (
            "finished",
            f"all {steps:,} steps are logged; {said}" + ("" if kept else "; there is no checkpoint"),
        )
    elif age_s is None and saved is None:
        found = ("died" if owner else "stopped", f"no process holds the run, and {said}{elsewhere}")
    elif saved is not None and saved >= step:
        found = (
            "stopped",
            f"no process holds the run; it is saved up to its last step, {step:,}; {said}{elsewhere}",
        )
    else:
        lost = (
            f"the last whole checkpoint is of step {saved:,}"
            if saved is not None
            else "it saved no checkpoint"
        )
        found = (
            "died",
            (
                f"no process holds the run, and what it did up to step {step:,} was not saved: {lost};"
                f" {said}{elsewhere}"
            ),
        )
    return found


def _any_entry(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(folder.iterdir())
    except OSError:
        return False


def _patience(step_s: float | None, every: int = 1) -> float:
    return max(SILENT_S, (SILENT_STEPS + every - 1) * (step_s or 0.0))


def read_tail(path: Path) -> Tail:
    """The end of a metrics.jsonl; no line when there is no file.

    When a step is there twice, the later line counts.
    """
    if not there(path):
        return Tail([], True, 0)
    with open_received(path, path.parent) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read(TAIL_BYTES)
    whole = size <= TAIL_BYTES
    parts = text.split(b"\n")[0 if whole else 1 :]
    rows: dict[int, Metrics] = {}
    unreadable = 0
    for part in parts:
        if not part.strip():
            continue
        line = metrics_of(part)
        if line is None:
            unreadable += 1
        else:
            rows[line.step] = line
    return Tail([rows[step] for step in sorted(rows)], whole, unreadable)


def saved_step(run: RunDir, problems: list[str]) -> int | None:
    """The newest step whose save was finished, by names alone; of checkpoints that lie elsewhere, none."""
    checkpoints = run.checkpoints
    try:
        if not checkpoints.is_dir():
            return None
        if not stays(run.path, checkpoints):
            problems.append(f"{checkpoints.name} is a link that leads out of the run; it was not followed")
            return None
        steps = [
            int(path.name)
            for path in checkpoints.iterdir()
            if path.name.isdecimal() and (path / _COMMIT).is_file()
        ]
    except (OSError, RuntimeError) as error:
        problems.append(f"{checkpoints.name} cannot be read: {error}")
        return None
    return max(steps, default=None)


def _lock(run: Path, problems: list[str]) -> tuple[str | None, str | None]:
    """(who holds the run, the machine of who last did)."""
    try:
        return holder(run), last_host(run)
    except HarnessError as error:
        problems.append(f"{LOCK} cannot be used: {error.what}")
        return None, None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _points(lines: list[Metrics]) -> list[float | None]:
    """Mean losses of at most POINTS stretches of equal length; None where one is not finite."""
    count = min(POINTS, len(lines))
    cuts = [len(lines) * i // count for i in range(count + 1)] if count else []
    return [_finite(sum(line.loss for line in lines[a:b]) / (b - a)) for a, b in itertools.pairwise(cuts)]


def _pace(step_s: float | None, expected: float | None, data_s: float | None) -> list[str]:
    found = []
    if step_s and expected and step_s > 2 * expected:
        found.append(
            f"a step takes {format_seconds(step_s)}, {step_s / expected:.1f} times what the plan expects"
            f" ({format_seconds(expected)})"
        )
    if step_s and data_s and data_s > 0.2 * step_s:
        found.append(
            f"{data_s / step_s:.0%} of a step is waiting for data: more loader workers"
            " (HARNESS_LOADER_WORKERS) or a faster disk"
        )
    return found


def _sense(lines: list[Metrics]) -> list[str]:
    bad = [line.step for line in lines if not (math.isfinite(line.loss) and math.isfinite(line.grad_norm))]
    return [f"{len(bad)} logged steps are not finite, the first of them step {bad[0]}"] if bad else []


def _unknown(
    steps: int | None, memory: Memory | None, last: Metrics | None, expected: float | None
) -> dict[str, str]:
    unknown = {}
    if steps is None:
        unknown["steps"] = f"there is no readable {RECIPE} and no readable {Manifest.FILE}"
    if memory is None:
        unknown["peak_bytes"] = f"there is no {Memory.FILE}"
    elif memory.peak_bytes is None:
        unknown["peak_bytes"] = memory.unknown.get("peak_bytes", "the allocator does not tell")
    if last is None:
        unknown["loss"] = "no step is logged"
    if expected is None:
        unknown["expected_step_s"] = "the plan has no expectation"
    return unknown


def _read(run: RunDir, kind: type[A], problems: list[str]) -> A | None:
    try:
        return run.read(kind)
    except HarnessError as error:
        problems.append(f"{kind.FILE} cannot be used: {error.what}")
        return None


def _why(error: OSError | HarnessError) -> str | None:
    return error.what if isinstance(error, HarnessError) else error.strerror


def _recipe(run: RunDir, manifest: Manifest | None, problems: list[str]) -> tuple[str | None, int | None]:
    """(name, steps) of the run's recipe: its own file, which a resume with more steps writes again, else the
    manifest's.
    """
    path = run.path / RECIPE
    if there(path):
        try:
            recipe = load_recipe(str(path), root=run.path)
        except HarnessError as error:
            problems.append(f"{RECIPE} cannot be used: {error.what}")
        else:
            return recipe.name, recipe.train.steps
    body = manifest.recipe if manifest else {}
    train = body.get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    return body.get("name"), steps if isinstance(steps, int) else None


def _planned(chosen: Any) -> int | None:
    if chosen is None:
        return None
    planned: int | None = chosen.host_bytes if chosen.levers.platform == "cpu" else chosen.device_bytes
    return planned


def _median(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return median(finite) if finite else None


def _missing(run: RunDir, got: str) -> HarnessError:
    return HarnessError(
        "run-missing",
        f"{run.path} is no run",
        got=got,
        need="a run directory, such as runs/smoke-001",
        fix="ls runs; harness status runs/NAME",
    )
