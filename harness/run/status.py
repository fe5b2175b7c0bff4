"""Reads a run's status from its files alone, so that any shell can ask, also about a run that died."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harness.artifacts import Artifact, Manifest, Memory, Metrics, Plan, Status
from harness.artifacts.held_out import HeldOutLine, read_held_out
from harness.artifacts.plan import Backend
from harness.errors import HarnessError
from harness.received.denied import may_all_be_read
from harness.received.files import stays, there
from harness.recipe.load import load_recipe
from harness.run.directory import RECIPE, RunDir, runs_root
from harness.run.evaluations import EVALUATIONS, judgements, sentence
from harness.run.lock import LOCK, holder, last_host
from harness.run.state import Standing
from harness.run.steps import newest_step, steps_taken
from harness.run.tail import Tail, finite, read_tail
from harness.units import format_seconds

A = TypeVar("A", bound=Artifact)


def newest_run() -> RunDir:
    """The run under the runs root that was written to last.

    Raises: HarnessError "run-missing".
    """
    root = runs_root()
    # A link may lead anywhere; whoever means it names it.
    runs = [
        (written, path)
        for path in (root.iterdir() if root.is_dir() else [])
        if not path.name.startswith(".")
        # Evaluations that belong to no run.
        and path.name != EVALUATIONS
        and (written := _written(path)) is not None
    ]
    if not runs:
        raise HarnessError(
            "run-missing",
            f"there is no run in {root}",
            need="a run directory",
            fix="harness status RUN, or harness train --recipe smoke",
        )
    return RunDir(max(runs)[1])


def _written(run: Path) -> float | None:
    """When a directory was last written to; None for what is none, or may not be listed."""
    try:
        if run.is_symlink() or not run.is_dir():
            return None
        return max(child.lstat().st_mtime for child in (run, *run.iterdir()))
    except OSError:
        return None


class Read(NamedTuple):
    """Files of a run that a caller has read. Without a `tail` the end of metrics.jsonl is read."""

    manifest: Manifest | None
    plan: Plan | None
    tail: Tail | None


def read_status(run: RunDir, *, now: float | None = None, read: Read | None = None) -> Status:
    """The run's status at time `now` (by default the clock's time).

    What `read` holds is not read again, and its problems are not found again.

    Raises: HarnessError "run-missing" if the directory does not exist or holds no file of a run;
    "run-unreadable".
    """
    check_is_run(run)
    problems: list[str] = []
    manifest, plan, known = read or (
        read_or_tell(run, Manifest, problems),
        read_or_tell(run, Plan, problems),
        None,
    )
    memory = read_or_tell(run, Memory, problems)
    tail, held_out = known or _tail(run, problems), _held_out(run, problems)
    name, steps = _recipe(run, manifest, problems)
    chosen = (manifest.plan if manifest else None) or (plan.chosen if plan else None)
    backend = plan.backend if plan else manifest.backend if manifest else "ours"
    last, step, step_s, data_s = tail.last, tail.step, tail.step_s, tail.data_s
    age_s = tail.age_s(time.time() if now is None else now)
    (process, owner), saved = _lock(run.path, problems), saved_step(run, backend, problems)
    logged, step = step, step if process else _done(step, saved, backend, problems)
    every = last.mean_of_steps or 1 if last else 1
    standing = Standing(process, owner, logged, step, steps, saved, age_s, step_s, every, run.checkpoints)
    state, reason = standing.state()
    expected = chosen.seconds_per_step if chosen else None
    left = None if steps is None or state not in ("running", "silent", "preparing") else steps - step
    return Status(
        run=str(run.path),
        recipe=name,
        state=state,
        reason=reason,
        step=step,
        steps=steps,
        saved_step=saved,
        loss=finite(last.loss) if last else None,
        grad_norm=finite(last.grad_norm) if last else None,
        learning_rate=finite(last.learning_rate) if last else None,
        held_out_loss=None if held_out is None else held_out.mean_loss,
        held_out_step=None if held_out is None else held_out.step,
        step_s=step_s,
        expected_step_s=expected,
        data_s=data_s,
        **_eta(left, step_s, expected if plan is not None and plan.calibrated else None),
        last_line_time=finite(last.time) if last else None,
        last_line_age_s=age_s,
        process=process,
        evaluation=next((sentence(each) for each in reversed(judgements(run.path))), None),
        losses=tail.losses(),
        losses_since_step=tail.lines[0].step if tail.lines else None,
        predicted_bytes=memory.predicted_bytes if memory else _planned(chosen),
        peak_bytes=memory.peak_bytes if memory else None,
        limit_bytes=memory.limit_bytes if memory else plan.usable_bytes if plan else None,
        findings=problems + _pace(step_s, expected, data_s) + _sense(tail.not_finite()),
        unknown=_unknown(steps, memory, last, expected),
    )


def _eta(left: int | None, step_s: float | None, calibrated_s: float | None) -> dict[str, Any]:
    """Seconds for the steps that are left, and whose pace that is.

    A cost model alone promises nothing to a person. What their card was measured to do does, until the run
    has a pace of its own.
    """
    if left is None or (step_s is None and calibrated_s is None):
        return {}
    if step_s is not None:
        return {"eta_s": left * step_s, "eta_by": "run"}
    return {"eta_s": left * (calibrated_s or 0.0), "eta_by": "calibration"}


def check_is_run(run: RunDir) -> None:
    """Refuses a path that is not a run.

    Raises: HarnessError "run-missing", "run-unreadable".
    """
    try:
        entries = {path.name for path in run.path.iterdir()}
    except FileNotFoundError as error:
        raise _missing(run, "it does not exist") from error
    except NotADirectoryError as error:
        raise _missing(run, "a file") from error
    except OSError as error:
        raise HarnessError(
            "run-unreadable",
            f"{run.path} cannot be read: {error.strerror}",
            got=f"uid {os.getuid()}",
            need="a run directory that this user may read",
            fix=may_all_be_read(run.path),
        ) from error
    if not entries & {RECIPE, Manifest.FILE, Plan.FILE, run.metrics.name, LOCK}:
        raise _missing(run, ", ".join(sorted(entries)[:6]) or "an empty directory")


def _tail(run: RunDir, problems: list[str]) -> Tail:
    try:
        tail = read_tail(run.metrics)
    except (OSError, HarnessError) as error:
        problems.append(f"{run.metrics.name} cannot be read: {why(error)}")
        return Tail([], True, 0)
    if tail.unreadable:
        problems.append(f"{tail.unreadable} lines of {run.metrics.name} are torn or of another form")
    return tail


def _held_out(run: RunDir, problems: list[str]) -> HeldOutLine | None:
    """The line of the last measured save."""
    try:
        found = read_held_out(run.held_out, run.path)
    except (OSError, HarnessError) as error:
        problems.append(f"{run.held_out.name} cannot be read: {why(error)}")
        return None
    if found is None:
        return None
    if found.unreadable:
        problems.append(f"{found.unreadable} lines of {run.held_out.name} are torn or of another form")
    last = max(found.lines, key=lambda line: line.time, default=None)
    if last is not None and last.mean_loss is None:
        problems.append(f"the held-out loss of step {last.step} is not finite")
    return last


def saved_step(run: RunDir, backend: Backend, problems: list[str]) -> int | None:
    """Number of steps that the newest whole checkpoint has taken. Reads names only.

    None if there is no whole checkpoint, or if the checkpoints lie outside the run.
    """
    checkpoints = run.checkpoints
    try:
        if not checkpoints.is_dir():
            return None
        if not stays(run.path, checkpoints):
            problems.append(f"{checkpoints.name} is a link that leads out of the run; it was not followed")
            return None
        newest = newest_step(checkpoints, backend)
    except (OSError, RuntimeError, HarnessError) as error:
        problems.append(f"{checkpoints.name} cannot be read: {error}")
        return None
    return None if newest is None else steps_taken(newest, backend)


def _lock(run: Path, problems: list[str]) -> tuple[str | None, str | None]:
    """The process that holds the run, and the machine of the process that last held it."""
    try:
        return holder(run), last_host(run)
    except HarnessError as error:
        problems.append(f"{LOCK} cannot be used: {error.what}")
        return None, None


def _done(logged: int, saved: int | None, backend: Backend, problems: list[str]) -> int:
    """Number of steps that are done, by the log and by the newest checkpoint."""
    if saved is None or saved <= logged:
        return logged
    # openpi logs only some steps. Ours logs all of them before it saves.
    if backend != "openpi":
        problems.append(
            f"the log has {logged:,} steps, and the checkpoint {saved:,}: lines of metrics.jsonl are lost"
        )
    return saved


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


def _sense(bad: list[int]) -> list[str]:
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


def read_or_tell(run: RunDir, kind: type[A], problems: list[str]) -> A | None:
    """The artifact; None if there is none, or if it cannot be used, which `problems` is then told."""
    try:
        return run.read(kind)
    except HarnessError as error:
        problems.append(f"{kind.FILE} cannot be used: {error.what}")
        return None


def why(error: OSError | HarnessError) -> str | None:
    """The reason that an error gives, in a few words."""
    return error.what if isinstance(error, HarnessError) else error.strerror


def _recipe(run: RunDir, manifest: Manifest | None, problems: list[str]) -> tuple[str | None, int | None]:
    """Name and number of steps of the run's recipe.

    They come from the recipe's own file, which a resume with more steps rewrites; else from the manifest.
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


def _missing(run: RunDir, got: str) -> HarnessError:
    return HarnessError(
        "run-missing",
        f"{run.path} is no run",
        got=got,
        need="a run directory, such as runs/smoke-001",
        fix="ls runs; harness status runs/NAME",
    )
