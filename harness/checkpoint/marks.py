"""Checks the marks of a finished save: the files beside the arrays, and what a run lacks to resume."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.artifacts.plan import Backend
from harness.checkpoint.format import DAMAGE
from harness.received.files import ARTIFACT_BYTES, MARK_BYTES, UnsafeFile, there
from harness.received.json import read_json
from harness.run.steps import (
    ASSETS,
    COMMIT,
    HARNESS,
    NORM_STATS,
    PARAMS,
    RECORD,
    TRAIN_STATE,
    is_own,
    missing,
    step_number,
    steps_taken,
)


def expected_items(step: Path, items: dict[str, Path]) -> list[str]:
    """The items that the step should have: those that its metadata names; for bare parameters only these."""
    try:
        handlers = read_json(step / COMMIT, step, MARK_BYTES)["item_handlers"]
        return sorted({*map(str, handlers), PARAMS})
    except PermissionError:
        raise
    except (OSError, UnsafeFile, *DAMAGE):
        return [PARAMS, *([ASSETS] if TRAIN_STATE in items else [])]


def missing_marks(step: Path, items: dict[str, Path]) -> list[str]:
    """The marks that a finished save leaves beside its items and that this step lacks."""
    if TRAIN_STATE not in items and not there(step / COMMIT):
        return []  # released weights: parameters alone, not a save of a trainer
    lacking = []
    try:
        commit = read_json(step / COMMIT, step, MARK_BYTES)
        if not isinstance(commit, dict) or not commit.get("commit_timestamp_nsecs"):
            lacking.append(f"{COMMIT} has no time of commit: the save was not finished")
    except FileNotFoundError:
        lacking.append(f"{COMMIT}, which is written when a save is finished")
    except PermissionError:
        raise
    except UnsafeFile as error:
        lacking.append(f"{COMMIT}: {error.what}")
    except (OSError, ValueError) as error:
        lacking.append(f"{COMMIT} is damaged ({type(error).__name__})")
    if HARNESS in items and not (step / RECORD).is_file():
        lacking.append(RECORD)
    return lacking


def missing_to_resume(step: Path, backend: Backend) -> list[str]:
    """The names that a run of `backend` lacks to resume from `step`, without COMMIT (see `missing_marks`)."""
    lacking = [name for name in missing(step, backend) if name != COMMIT]
    if not is_own(step, backend):
        lacking.append(f"a directory of its own called {step_number(step.name)}: a run resumes from no other")
    elif (saved := _saved_as(step)) not in (None, taken := steps_taken(int(step.name), backend)):
        lacking.append(f"a record of {taken} steps: it was renamed, since its record is of {saved}")
    return lacking


def _saved_as(step: Path) -> int | None:
    """The number of steps in our record; None if it has none, or cannot be read, which is told elsewhere."""
    try:
        saved = read_json(step / RECORD, step, ARTIFACT_BYTES)["step"]
    except PermissionError:
        raise
    except (OSError, UnsafeFile, *DAMAGE):
        return None
    return saved if isinstance(saved, int) else None


def damaged_statistics(assets: Path, names: Iterable[str]) -> list[str]:
    """The statistics files, among these names, that cannot be read back.

    Without statistics the step's actions have no scale.
    """
    damaged = []
    for name in sorted(name for name in names if Path(name).name == NORM_STATS):
        try:
            whole = isinstance(read_json(assets / name, assets, ARTIFACT_BYTES), dict)
        except PermissionError:
            raise
        except (OSError, UnsafeFile, ValueError):
            whole = False
        if not whole:
            damaged.append(f"{ASSETS}: {name} is damaged")
    return damaged
