"""The refusals that name why a save failed, or why a step is not gone on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.received.denied import may_be_written
from harness.received.text import word
from harness.run.steps import INTERRUPTED


def save_failure(
    directory: Path, step: int | None, error: BaseException, latest: Callable[[], int | None]
) -> HarnessError:
    """The refusal "not-writable" or "save-failed" for `error`, which is any error but a full disk.

    `latest` finds the newest whole step.
    """
    text = str(error)
    if isinstance(error, PermissionError) or "Read-only file system" in text or "Permission denied" in text:
        return HarnessError(
            "not-writable",
            f"cannot write the checkpoint of step {step} in {directory}",
            need="a directory that this user may write",
            fix=f"{may_be_written(directory)}; in compose set HARNESS_UID and HARNESS_GID to your own ids",
        )
    return HarnessError(
        "save-failed",
        f"the checkpoint of step {step} was not saved: {text[:300] or type(error).__name__}",
        need=f"a working disk at {directory}",
        fix=f"check the disk, then go on with --resume from step {latest()}",
    )


def no_space(text: str) -> bool:
    """Whether a library's message tells of a full disk, or of a user's exhausted quota."""
    return any(words in text for words in ("No space left", "ENOSPC", "Disk quota exceeded"))


def disk_full(directory: Path, step: int | None, *, got: str | None, need: str | None) -> HarnessError:
    return HarnessError(
        "disk-full",
        f"no space for the checkpoint of step {step} in {directory}; the steps before it are whole",
        got=got and f"{got} free",
        need=need and f"{need} free",
        fix=(
            f"free space in {directory} (delete old runs, or interrupted saves:"
            f" {word(directory)}/*{INTERRUPTED}*), then go on with --resume"
        ),
    )


def under_its_name(step: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record of a step, which says what its directory's name says.

    Raises: HarnessError "checkpoint-mismatch" for a renamed step: its state would be taken for another's.
    """
    saved = record.get("step", step.name)
    if str(saved) == step.name:
        return record
    raise HarnessError(
        "checkpoint-mismatch",
        f"{step} holds another step than its name says",
        got=f"step {saved}, as its record says",
        need=f"step {step.name}",
        fix=f"mv {word(step)} {word(f'{step}.renamed')}, or give it back the name of its step",
    )
