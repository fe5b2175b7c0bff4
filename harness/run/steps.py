"""The checkpoint directory of a run: its layout, whole steps, the newest step, interrupted saves.

Save, status, inspect, resume and the supervisor use only this module for it. It reads only names. It imports
neither JAX nor Orbax, so a process that holds no GPU can use it.

    <checkpoints>/<step>/_CHECKPOINT_METADATA         written when the save is finished
                        /params, /train_state         Orbax items: `_METADATA`, and arrays in `manifest.ocdbt`
                        /assets/<asset_id>/norm_stats.json
                        /harness/*.json               what the harness writes beside them
    <checkpoints>/<step>.orbax-checkpoint-tmp…        a save under way, or one whose process died

Source: orbax-checkpoint 0.11.13 and 0.12.8; openpi src/openpi/training/checkpoints.py, commit 15a9616.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.artifacts import NormStats
from harness.artifacts.plan import Backend
from harness.errors import HarnessError
from harness.received.denied import may_all_be_read

COMMIT = "_CHECKPOINT_METADATA"
# Part of the name of every directory that is being written, or was being written when its process died.
INTERRUPTED = ".orbax-checkpoint-tmp"

PARAMS, TRAIN_STATE, ASSETS, HARNESS = "params", "train_state", "assets", "harness"
TREES = (PARAMS, TRAIN_STATE)
USUAL_ITEMS = (ASSETS, PARAMS, TRAIN_STATE)
# The file that marks an Orbax item, and the file that marks arrays stored in OCDBT.
METADATA, OCDBT_MANIFEST = "_METADATA", "manifest.ocdbt"
# openpi's file name, which the run's own file has too.
NORM_STATS = NormStats.FILE
RECORD = f"{HARNESS}/record.json"
DIGESTS = f"{HARNESS}/digests.json"
EXPORT = f"{HARNESS}/export.json"
# Written if `params` hold only trained parameters: names the weights that hold the rest.
BASE = f"{HARNESS}/base.json"

# The files of a finished save. openpi writes none of our files, and may store its arrays in another way.
_MARKS: dict[Backend, tuple[str, ...]] = {
    "ours": (COMMIT, RECORD, *(f"{item}/{name}" for item in TREES for name in (METADATA, OCDBT_MANIFEST))),
    "openpi": (COMMIT,),
}
# A save writes all the time. A save that has been silent for so many seconds has stopped.
QUIET_S = 60
# JavaScript and JSON readers represent no larger integers exactly.
_MOST_STEPS = 2**53
_DIGITS = re.compile(r"[0-9]{1,20}")


def step_number(name: str) -> int | None:
    """The step in a directory's name; None for any other name.

    Orbax may write the number with leading zeros.
    """
    number = int(name) if _DIGITS.fullmatch(name) else _MOST_STEPS
    return number if number < _MOST_STEPS else None


def step_directories(checkpoints: Path) -> list[tuple[int, Path]]:
    """Step and directory of every step, whole or not, ascending.

    Links are left out, because a link may lead to another run.
    """
    return [(step, path) for step, path in _numbered(checkpoints) if not path.is_symlink()]


def _numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    entries = checkpoints.iterdir() if checkpoints.is_dir() else []
    numbered = [(step, path) for path in entries if (step := step_number(path.name)) is not None]
    return sorted((step, path) for step, path in numbered if path.is_dir())


def missing(step: Path, backend: Backend = "ours") -> list[str]:
    """The files of a finished save of `backend` that `step` lacks, by their names below it."""
    return [name for name in _MARKS[backend] if not (step / name).is_file()]


def is_whole(step: Path, backend: Backend = "ours") -> bool:
    """True if `step` is a finished save of `backend`."""
    return not missing(step, backend)


def is_own(step: Path, backend: Backend = "ours") -> bool:
    """True if a run may resume from a directory of this name, if it is whole.

    The name must be the plain number. For our own trainer it must not be a link; openpi's Orbax follows
    links.
    """
    return step.name == str(step_number(step.name)) and (backend == "openpi" or not step.is_symlink())


def whole_steps(checkpoints: Path, backend: Backend = "ours") -> list[int]:
    """The steps from which a run can resume, ascending. Step N lies in the directory called N.

    Raises: HarnessError "checkpoint-unreadable" if one may not be read.
    """
    try:
        return [
            step for step, path in _numbered(checkpoints) if is_own(path, backend) and is_whole(path, backend)
        ]
    except PermissionError as error:
        raise unreadable(checkpoints, error) from error


def unreadable(path: Path, error: BaseException) -> HarnessError:
    """The refusal of a checkpoint below `path`, a part of which may not be read."""
    return HarnessError(
        "checkpoint-unreadable",
        f"{getattr(error, 'filename', None) or path} cannot be read:"
        f" {getattr(error, 'strerror', None) or error}",
        got=f"uid {os.getuid()}",
        need="read permission on the whole checkpoint (in compose: HARNESS_UID and HARNESS_GID)",
        fix=may_all_be_read(path),
    )


def newest_step(checkpoints: Path, backend: Backend = "ours") -> int | None:
    """The last of `whole_steps`; None if there is none."""
    return max(whole_steps(checkpoints, backend), default=None)


def steps_taken(step: int, backend: Backend = "ours") -> int:
    """Number of steps that the state saved as `step` has taken.

    openpi names it by the last step done, counted from 0: the state in `19` has taken 20.
    Source: openpi scripts/train.py `main`, commit 15a9616.
    """
    return step + 1 if backend == "openpi" else step


def resumes_after(checkpoints: Path, backend: Backend = "ours") -> int:
    """Number of steps that a resume has behind it.

    0 if it starts anew, as openpi does if `0` is the only step.
    """
    steps = whole_steps(checkpoints, backend)
    return steps_taken(steps[-1], backend) if steps and steps != [0] else 0


def is_interrupted(name: str) -> bool:
    """True if `name` is that of a save that is under way, or was never finished."""
    return INTERRUPTED in name


def interrupted_step(name: str) -> int | None:
    """The step of an interrupted save; None if its name does not contain it."""
    number = _DIGITS.match(name)
    return step_number(number[0]) if number else None


def interrupted_saves(checkpoints: Path) -> list[Path]:
    """The paths with the name of an interrupted save, sorted by name."""
    entries = checkpoints.iterdir() if checkpoints.is_dir() else []
    return sorted(path for path in entries if is_interrupted(path.name))
