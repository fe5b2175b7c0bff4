"""The lines of a metrics.jsonl, read one by one: what is no line of metrics is counted or refused by the
reader, and costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from harness.artifacts.training import Metrics
from harness.received.files import METRICS_BYTES, open_received
from harness.units import KIB

# A line of ours has some 300 bytes.
LINE_BYTES = 64 * KIB
# More steps than any run has logged; each line takes about a KiB of memory.
MOST_LINES = 500_000


class Line(NamedTuple):
    """`number` counts from 1; `metrics` is None for a line that was torn, or is of another form, or longer
    than any of ours.
    """

    number: int
    text: bytes
    metrics: Metrics | None


def read_lines(path: Path, root: Path) -> Iterator[Line]:
    """The lines of the run's file that are not blank, up to the first 500,000.

    Raises: UnsafeFile; OSError as `open` does.
    """
    with open_received(path, root) as file:
        for number, text in enumerate(_bounded(file), 1):
            if number > MOST_LINES:
                return
            if text.strip():
                yield Line(number, text, metrics_of(text))


def metrics_of(text: bytes) -> Metrics | None:
    """What one line says."""
    if len(text) > LINE_BYTES:
        return None
    try:
        return Metrics.model_validate_json(text)
    except ValueError:
        return None


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is too long its first LINE_BYTES + 1, and the rest is passed over."""
    read, is_rest = 0, False
    while read < METRICS_BYTES and (part := file.readline(LINE_BYTES + 1)):
        read += len(part)
        if not is_rest:
            yield part
        is_rest = not part.endswith(b"\n")
