"""The reader of metrics.jsonl, line by line.

It marks a line that is not of metrics, which its caller counts or refuses. Such a line costs no memory.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from harness.artifacts.training import Metrics
from harness.received.files import METRICS_BYTES, open_received
from harness.units import KIB

# A line of the harness has some 300 bytes.
LINE_BYTES = 64 * KIB
# More steps than any run has logged. Each line takes about a KiB of memory.
MOST_LINES = 500_000


class Line(NamedTuple):
    """One line. `number` counts from 1.

    `metrics` is None for a line that was torn, has another form, or is longer than any line of the harness.
    """

    number: int
    text: bytes
    metrics: Metrics | None


def read_lines(path: Path, root: Path, *, most: int = MOST_LINES) -> Iterator[Line]:
    """The lines of the run's file that are not blank, up to line `most`.

    Raises: UnsafeFile; OSError as `open` does.
    """
    with open_received(path, root) as file:
        for number, text in enumerate(_bounded(file), 1):
            if number > most:
                return
            if text.strip():
                yield Line(number, text, metrics_of(text))


def metrics_of(text: bytes) -> Metrics | None:
    """The metrics of one line. None if it is too long or not a line of metrics.

    An editor's byte order mark, which it sets before the first line, is passed over.
    """
    if len(text) > LINE_BYTES:
        return None
    try:
        return Metrics.model_validate_json(text.removeprefix(codecs.BOM_UTF8))
    except ValueError:
        return None


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    """Lines. Of a line that is too long: its first LINE_BYTES + 1 bytes; the rest is skipped."""
    read, is_rest = 0, False
    while read < METRICS_BYTES and (part := file.readline(LINE_BYTES + 1)):
        read += len(part)
        if not is_rest:
            yield part
        is_rest = not part.endswith(b"\n")
