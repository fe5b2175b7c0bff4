"""Writes metrics.jsonl, the file that always receives the metrics."""

from __future__ import annotations

import os
from pathlib import Path

from harness.artifacts import Metrics
from harness.artifacts.metrics_lines import read_lines
from harness.received.files import there
from harness.received.writing import open_to_write
from harness.run.directory import cannot_write, write_atomic


class MetricsFile:
    """metrics.jsonl: one line a step, without gaps or duplicates, also after a resume."""

    def __init__(self, path: Path, *, start_step: int) -> None:
        """Keeps the lines before `start_step`.

        A killed run may have written lines past its last checkpoint; those steps are computed again.
        """
        kept: list[str] = []
        if there(path):
            # This also drops the half line of a process that was killed while it wrote.
            lines = (
                line
                for line in read_lines(path, path.parent)
                if line.metrics is not None and line.metrics.step < start_step
            )
            kept = [line.text.decode(errors="replace").rstrip() for line in lines]
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
