"""held_out.jsonl as the trainer writes it, and the values of its lines that are shown elsewhere."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.artifacts.held_out import HeldOutLine, line_of
from harness.received.files import METRICS_BYTES, read_received, there
from harness.received.unwritable import cannot_write
from harness.received.writing import open_to_write
from harness.run.directory import write_atomic
from harness.train.metrics import set_aside


class HeldOutFile:
    """held_out.jsonl: one line a measured save. A line is appended whole, or dropped at the next start.

    `unread` is the number of whole lines of another form, such as a newer harness writes, which now lie in
    `held_out.jsonl.unread`.
    """

    def __init__(self, path: Path, *, start_step: int | None) -> None:
        """Keeps the lines up to `start_step`; None keeps all.

        A killed run may have measured saves after its last whole checkpoint; those steps are computed again.
        Raises: HarnessError "disk-full" or "not-writable"; UnsafeFile.
        """
        kept: list[bytes] = []
        unread: list[bytes] = []
        self._known: set[tuple[int, str]] = set()
        data = read_received(path, path.parent, METRICS_BYTES) if there(path) else b""
        for whole in data.splitlines(keepends=True):
            text = whole.rstrip(b"\r\n")
            line = line_of(text)
            if line is None:
                # A half line is what a process leaves that was killed while it wrote.
                unread += [text + b"\n"] if text.strip() and whole != text else []
            elif start_step is None or line.step <= start_step:
                kept.append(text + b"\n")
                self._known.add((line.step, line.rows_sha256))
        self.unread = len(unread)
        set_aside(path, unread)
        if b"".join(kept) != data:
            write_atomic(path, b"".join(kept))
        self._path = path

    def has(self, step: int, rows_sha256: str) -> bool:
        return (step, rows_sha256) in self._known

    def write(self, line: HeldOutLine) -> None:
        """Appends the line. Returns when the disk has it.

        Raises: HarnessError "disk-full" or "not-writable"; UnsafeFile.
        """
        rest = line.model_dump_json().encode() + b"\n"
        try:
            with os.fdopen(open_to_write(self._path, append=True), "r+b", buffering=0) as file:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._known.add((line.step, line.rows_sha256))


def values_of(line: HeldOutLine) -> dict[str, Any]:
    """The values of a line that wandb shows: means over the episodes, and the share of missed switches."""
    found: dict[str, float] = {}
    if line.datasets and line.mean_loss is not None:
        found["held_out/loss"] = line.mean_loss
    for name, each in _means(line):
        known = [value for value in each if value is not None]
        if len(known) == len(each):
            found[f"held_out/{name}"] = math.fsum(known) / len(known)
    if line.switches:
        missed = sum(switch.offset is None for switch in line.switches)
        found["held_out/switches_missed"] = missed / len(line.switches)
    return found


def _means(line: HeldOutLine) -> Iterator[tuple[str, list[float | None]]]:
    """Name and values of the episodes for each mean; of a mixture, of each dataset."""
    for part, one in enumerate(line.parts):
        mine, of = line.rows_of(part), f"/{one.dataset}" if line.datasets else ""
        yield f"loss{of}", line.loss[mine]
        for d in range(len(one.spread)):
            yield f"action_error_{d}{of}", [row[d] for row in line.error[mine]]
