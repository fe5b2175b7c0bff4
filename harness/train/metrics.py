"""Writes metrics.jsonl, the file that always receives the metrics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifacts import Metrics
from harness.artifacts.metrics_lines import read_lines
from harness.errors import HarnessError
from harness.received.files import METRICS_BYTES, there
from harness.received.writing import open_to_write
from harness.run.directory import cannot_write, write_atomic
from harness.units import format_bytes


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


class MetricsFile:
    """metrics.jsonl: one line a step, without gaps or duplicates, also after a resume.

    `repeated` is the number of lines that were there of steps that are computed again.
    """

    def __init__(self, path: Path, *, start_step: int) -> None:
        """Keeps the lines before `start_step`.

        A killed run may have written lines past its last checkpoint; those steps are computed again.
        Raises: HarnessError "file-too-large" if not all lines could be kept; UnsafeFile.
        """
        kept: list[str] = []
        self.repeated = 0
        if there(path):
            _check_size(path)
            for line in read_lines(path, path.parent, most=METRICS_BYTES):
                if line.metrics is None:
                    # Such as the half line of a process that was killed while it wrote.
                    continue
                if line.metrics.step < start_step:
                    kept.append(line.text.decode(errors="replace").rstrip())
                else:
                    self.repeated += 1
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

    def close(self) -> None:
        self._file.close()
