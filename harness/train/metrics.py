"""Writes metrics.jsonl, the file that always receives the metrics."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifacts import Metrics
from harness.artifacts.metrics_lines import read_lines
from harness.errors import HarnessError
from harness.received.files import METRICS_BYTES, read_received, there
from harness.received.unwritable import cannot_write
from harness.received.writing import open_to_write
from harness.run.directory import write_atomic
from harness.run.watcher import Watcher
from harness.units import format_bytes

# The end of the name of the file for lines that could not be read.
UNREAD = ".unread"


def as_line(values: dict[str, Any], datasets: list[str]) -> dict[str, Any]:
    """A step's metrics as a line of the file has them.

    `datasets` are the names of a mixture's datasets. Each has its rows' mean loss; one without a row in the
    batch has none.
    """
    found: dict[str, Any] = {name: float(value) for name, value in values.items() if not np.ndim(value)}
    if not datasets:
        return found
    sums, rows = values["dataset_loss"], values["dataset_rows"]
    found["datasets"] = {
        name: float(total) / int(count)
        for name, total, count in zip(datasets, sums, rows, strict=True)
        if count
    }
    return found


def _check_size(path: Path) -> None:
    """Refuses a file beyond the reader's bound: the rest of its lines would be lost."""
    size = path.lstat().st_size
    if size > METRICS_BYTES:
        raise HarnessError(
            "file-too-large",
            f"{path} is too large to be kept over a resume; nothing was written",
            got=format_bytes(size),
            need=f"at most {format_bytes(METRICS_BYTES)}",
            fix="keep a copy of it elsewhere and leave its last lines here, then go on with --resume",
        )


def set_aside(path: Path, lines: list[bytes]) -> None:
    """Adds the lines to the file beside `path` for what could not be read there.

    What a kill let an earlier start set aside is there already, and is not added again.
    Raises: HarnessError "disk-full" or "not-writable"; UnsafeFile.
    """
    if not lines:
        return
    beside, new = path.with_name(f"{path.name}{UNREAD}"), b"".join(lines)
    try:
        before = read_received(beside, path.parent, METRICS_BYTES) if there(beside) else b""
    except OSError as error:
        raise cannot_write(beside, error) from error
    if not before.endswith(new):
        write_atomic(beside, before + new)


def tell_unread(path: Path, unread: int, watcher: Watcher) -> None:
    """Warns of the lines of `path` that were set aside."""
    if unread:
        name = path.name
        watcher.warn(f"{unread:,} lines of {name} are of another form, and now lie in {name}{UNREAD}")


class MetricsFile:
    """metrics.jsonl: one line a step, without gaps or duplicates, also after a resume.

    `repeated` is the number of lines that were there of steps that are computed again; `unread` that of whole
    lines of another form, such as a newer harness writes, which now lie in `metrics.jsonl.unread`.
    """

    def __init__(self, path: Path, *, start_step: int) -> None:
        """Keeps the lines before `start_step`.

        A killed run may have written lines past its last checkpoint; those steps are computed again.
        Raises: HarnessError "file-too-large" if not all lines could be kept; UnsafeFile.
        """
        kept: list[str] = []
        unread: list[bytes] = []
        self.repeated = 0
        if there(path):
            _check_size(path)
            for line in read_lines(path, path.parent, most=METRICS_BYTES):
                if line.metrics is None:
                    # A half line is what a process leaves that was killed while it wrote.
                    unread += [line.text.rstrip() + b"\n"] if line.text.endswith(b"\n") else []
                elif line.metrics.step < start_step:
                    kept.append(line.text.removeprefix(codecs.BOM_UTF8).decode(errors="replace").rstrip())
                else:
                    self.repeated += 1
        self.unread = len(unread)
        set_aside(path, unread)
        write_atomic(path, "".join(line + "\n" for line in kept))
        # Unbuffered, so that closing has nothing left to write that could fail a second time.
        self._path, self._file = path, os.fdopen(open_to_write(path, append=True), "r+b", buffering=0)

    def write(self, lines: list[Metrics]) -> None:
        """Writes the lines. Returns when the operating system has all of them.

        Raises: HarnessError "disk-full" or "not-writable".
        """
        rest = "".join(line.model_dump_json(exclude_none=True) + "\n" for line in lines).encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def to_disk(self) -> None:
        """Returns when the disk has what was written: the lines of a saved step stay, as the step does.

        Raises: HarnessError "disk-full" or "not-writable".
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def directory(self) -> Path | None:
        """The directory in which the open file lies now; None if it was deleted, or cannot be told."""
        try:
            now = Path(os.readlink(f"/proc/self/fd/{self._file.fileno()}"))
            return now.parent if os.path.samestat(now.stat(), os.fstat(self._file.fileno())) else None
        except OSError:
            return None

    def close(self) -> None:
        self._file.close()
