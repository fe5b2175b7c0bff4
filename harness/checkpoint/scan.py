"""Lists what lies in a checkpoint directory: whole steps, interrupted saves, links that lead out.

Reads names and sizes only.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from harness.artifacts import Checkpoint, InterruptedSave, Manifest
from harness.artifacts.plan import Backend
from harness.checkpoint.elsewhere import kind_of, way_on
from harness.checkpoint.files import files_of, stray_problem
from harness.checkpoint.pytorch import refuse_pytorch
from harness.errors import HarnessError
from harness.received.files import stays
from harness.received.litter import is_litter
from harness.received.text import word
from harness.run.directory import CHECKPOINTS, MANIFEST, RunDir
from harness.run.steps import (
    COMMIT,
    HARNESS,
    INTERRUPTED,
    METADATA,
    OCDBT_MANIFEST,
    PARAMS,
    QUIET_S,
    TREES,
    USUAL_ITEMS,
    interrupted_step,
    is_interrupted,
    newest_step,
    step_number,
    unreadable,
)
from harness.units import format_seconds

# Every trainer leaves what openpi leaves, so only that is asked of a step outside a run.
ANYBODY: Backend = "openpi"


@dataclass
class Found:
    """What lies in a checkpoint directory. `items` maps an item's name to its directory."""

    root: Path
    run: Path | None = None
    steps: list[tuple[int | None, Path, dict[str, Path]]] = field(default_factory=list)
    interrupted: list[Path] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    partial: bool = False
    # The backend whose run resumes from these steps; None if they are not a run's.
    backend: Backend | None = None
    whole_sibling: int | None = None
    denied: PermissionError | None = None

    def deny(self, step: Path, error: PermissionError) -> None:
        """Notes that one step may not be read. The other steps stay in the report."""
        self.partial, self.denied = True, error
        self.findings.append(f"step {step.name} cannot be read: {error.strerror}: {error.filename}")


def find(path: Path) -> Found:
    """Everything below `path`: a run, a checkpoint directory, one step, one interrupted save, or one item.

    Raises: HarnessError "checkpoint-missing", "not-a-checkpoint", "pytorch-checkpoint", "checkpoint-empty" or
    "checkpoint-unreadable".
    """
    try:
        root = path.resolve(strict=True)
        if not root.is_dir():
            refuse_pytorch(path)
            raise _not_a_checkpoint(path, kind_of(root) or "a file", way_on(root))
        found = Found(root)
        _fill(found)
        if not any(item in items for _, _, items in found.steps for item in (*TREES, HARNESS)):
            refuse_pytorch(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise HarnessError(
            "checkpoint-missing",
            f"there is no {path}",
            fix=way_on(path) or "give a run, a checkpoint directory or a step; ls the parent directory",
        ) from error
    except (OSError, RuntimeError) as error:
        raise unreadable(path, error) from error
    if not found.steps and not found.interrupted and not found.partial:
        raise _empty(path, found)
    return found


def _fill(found: Found) -> None:
    root = found.root
    if is_interrupted(root.name):
        found.interrupted.append(root)
        found.backend = _backend_at(root.parent)
        found.whole_sibling = newest_step(root.parent, found.backend or ANYBODY)
    elif (root / METADATA).is_file() or (root / OCDBT_MANIFEST).is_file():
        found.steps.append(
            (step_number(root.parent.name), root, {PARAMS if root.name not in TREES else root.name: root})
        )
    elif (root / COMMIT).is_file() or any((root / name).is_dir() for name in TREES):
        found.run = next((parent for parent in root.parents[:2] if (parent / MANIFEST).is_file()), None)
        number = step_number(root.name)
        found.backend = None if number is None else _backend_at(root.parent)
        found.steps.append((number, root, _items(found, root)))
    else:
        if (root / CHECKPOINTS).is_dir() or (root / MANIFEST).is_file():
            found.run, root = root, root / CHECKPOINTS
        elif (root.parent / MANIFEST).is_file():
            found.run = root.parent
        found.backend = _backend_at(root)
        if root.is_dir():
            _fill_steps(found, root)


def _backend_at(directory: Path) -> Backend | None:
    """The backend that saves in `directory`; None if it is not a run's, or no manifest names one."""
    try:
        manifest = RunDir(directory.parent).read(Manifest) if directory.name == CHECKPOINTS else None
    except HarnessError:
        return None
    return None if manifest is None else manifest.backend


def _fill_steps(found: Found, directory: Path) -> None:
    for path in sorted(directory.iterdir()):
        number = step_number(path.name)
        if number is None and not is_interrupted(path.name):
            continue
        if not _inside(path, found.root):
            found.partial = True
            target = os.path.realpath(path)
            found.findings.append(
                f"{path.name} is a symlink that leads out of {found.root}, to {target}; it was not followed"
                " (inspect that path itself)"
            )
        elif not path.is_dir():
            found.findings.append(f"{path.name} is not a directory")
        elif number is None and path.is_symlink():
            found.findings.append(f"{path.name} is a symlink; it was not followed")
        elif number is None:
            found.interrupted.append(path)
        else:
            try:
                found.steps.append((number, path, _items(found, path)))
            except PermissionError as error:
                found.deny(path, error)
    found.steps.sort(key=lambda step: step[0] or 0)


def _items(found: Found, step: Path) -> dict[str, Path]:
    items = {}
    for path in sorted(step.iterdir()):
        if not _inside(path, found.root):
            found.partial = True
            target = os.path.realpath(path)
            found.findings.append(
                f"{step.name}/{path.name} is a symlink that leads out of {found.root}, to {target}; it was"
                " not followed"
            )
        elif path.is_dir() and not is_litter(path.name):
            items[path.name] = path
    return items


def _inside(path: Path, root: Path) -> bool:
    """Whether `path` lies below `root` once links are followed. A link to itself does not."""
    try:
        return stays(root, path)
    except RuntimeError:
        return False


def interrupted_save(path: Path, newest_whole: int | None) -> InterruptedSave:
    """The report on the save that was left at `path`."""
    begun_items = {child.name for child in path.iterdir() if child.is_dir()}
    missing = [f"{COMMIT}, which is written when a save is finished"] if not (path / COMMIT).is_file() else []
    for item in USUAL_ITEMS:
        begun = [name for name in begun_items if name.startswith(f"{item}{INTERRUPTED}")]
        if begun:
            missing.append(f"{item}: begun, not finished ({begun[0]})")
        elif item not in begun_items:
            missing.append(f"{item}: not begun")
    files = files_of(path)
    missing += stray_problem(files.strays)
    age_s = max(0.0, time.time() - files.newest)
    safe, reason = _safe_to_delete(path, age_s, newest_whole)
    return InterruptedSave(
        path=str(path),
        step=interrupted_step(path.name),
        missing=missing,
        age_s=age_s,
        bytes=files.nbytes,
        safe_to_delete=safe,
        reason=reason,
    )


def _safe_to_delete(path: Path, age_s: float, newest_whole: int | None) -> tuple[bool, str]:
    holder = _held_open_by(path)
    if holder is not None:
        return False, f"process {holder} has a file in it open: a save may be under way"
    if age_s < QUIET_S:
        return (
            False,
            f"written to {format_seconds(age_s)} ago: a save may be under way; look again in {QUIET_S} s",
        )
    after = (
        f"training resumes from step {newest_whole}"
        if newest_whole is not None
        else "no whole step is beside it, so training starts anew"
    )
    return (
        True,
        (
            f"nothing was written to it for {format_seconds(age_s)}, and nothing resumes from an interrupted"
            f" save; {after}"
        ),
    )


def _held_open_by(path: Path) -> int | None:
    """The pid of a visible process that has a file below `path` open, or None."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(f"{path}/"):
            return int(link.parts[2])
    return None


def _not_a_checkpoint(path: Path, got: str, fix: str | None = None) -> HarnessError:
    return HarnessError(
        "not-a-checkpoint",
        f"{path} is not a checkpoint",
        got=got,
        need="a run, a directory with numbered steps, or a step with params/",
        fix=fix or "give the directory that holds the numbered steps, or one of them",
    )


def _empty(path: Path, found: Found) -> HarnessError:
    way = None if found.run is None or (found.run / MANIFEST).is_file() else way_on(found.run)
    # Others call a directory `checkpoints` too.
    if found.run and way is None:
        saves = found.run / CHECKPOINTS
        others = sorted(child.name for child in saves.iterdir()) if saves.is_dir() else []
        return HarnessError(
            "checkpoint-empty",
            f"the run {path} has no checkpoint" if others else f"the run {path} has saved no checkpoint yet",
            got=f"no directory called by a step's number, but {', '.join(others[:6])}" if others else None,
            need="a run that reached its first save (train.save_every_steps)",
            fix=f"harness train --resume --run {word(found.run)}",
        )
    if not any(found.root.iterdir()):
        return HarnessError(
            "checkpoint-empty",
            f"{path} is empty",
            need="a directory with numbered steps",
            fix="give the directory that the trainer saved to",
        )
    below = (path for depth in ("*/*", "*/*/*") for path in found.root.glob(depth))
    nested = next(
        (path for path in below if step_number(path.name) is not None and (path / PARAMS).is_dir()), None
    )
    names = sorted(child.name for child in found.root.iterdir())
    return _not_a_checkpoint(
        path,
        f"a directory of {', '.join(names[:6])}",
        f"harness inspect {word(nested.parent)}" if nested else way_on(found.root),
    )


def delete_interrupted(found: Checkpoint) -> list[InterruptedSave]:
    """The interrupted saves of a report that were deleted: only those that it calls safe to delete.

    Raises: HarnessError "checkpoint-unreadable" if one cannot be deleted.
    """
    deleted = []
    for save in found.interrupted:
        path = Path(save.path)
        if save.safe_to_delete and is_interrupted(path.name) and not path.is_symlink():
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise unreadable(path, error) from error
            deleted.append(save)
    return deleted
