"""TensorBoard's event files as lines of JSON: one line for the scalars of a step.

A file is records of: length (uint64), a checksum, an Event, a checksum. An Event is a protobuf message.

Source: tensorflow/core/lib/io/record_writer.h; tensorflow/core/util/event.proto;
tensorflow/core/framework/summary.proto and tensor.proto.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator

_HEAD = 8 + 4
# A larger event holds pictures or graphs, and no scalar is behind them in it.
_MOST_BYTES = 1 << 20
_FLOAT, _DOUBLE = 1, 2
_VERSION = b"brain.Event:"
Field = int | bytes


def begins_events(head: bytes) -> bool:
    """True if these are the first bytes of an event file: its first event names the format."""
    return _VERSION in head[_HEAD : _HEAD + 64]


def event_lines(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """A line of JSON for events of one step that follow each other: `step`, `_timestamp`, each scalar.

    PyTorch writes an event for each scalar. `read` returns as many bytes as it is asked for, fewer at the
    end.

    Raises: EOFError for a file that is cut off within a record; ValueError, struct.error for other bytes.
    """
    step, time = 0, 0.0
    held: dict[str, float] = {}
    try:
        for event in _events(read):
            at, when, found = _scalars(event)
            if held and found and (at != step or held.keys() & found.keys()):
                yield _line(step, time, held)
                held = {}
            if found:
                step, time = at, time if held else when
                held |= found
    except (EOFError, ValueError, struct.error):
        if held:
            yield _line(step, time, held)
        raise
    if held:
        yield _line(step, time, held)


def _line(step: int, time: float, scalars: dict[str, float]) -> bytes:
    return json.dumps({"step": step, "_timestamp": time, **scalars}).encode() + b"\n"


def _events(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The bytes of each event. Empty for a large one."""
    while head := read(_HEAD):
        if len(head) < _HEAD:
            raise EOFError
        left = int.from_bytes(head[:8], "little") + 4
        data = b""
        if left <= _MOST_BYTES:
            data, left = read(left), 0
            if len(data) < int.from_bytes(head[:8], "little"):
                raise EOFError
        while left:
            passed = len(read(min(left, _MOST_BYTES)))
            if not passed:
                raise EOFError
            left -= passed
        yield data[:-4]


def _scalars(event: bytes) -> tuple[int, float, dict[str, float]]:
    """(the step, the time in seconds, the scalars by their tags)."""
    step, time = 0, 0.0
    scalars: dict[str, float | None] = {}
    for number, value in fields(event):
        if number == 1 and isinstance(value, bytes):
            time = struct.unpack("<d", value)[0]
        elif number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            scalars |= dict(_scalar(one) for _, one in fields(value) if isinstance(one, bytes))
    return step, time, {tag: value for tag, value in scalars.items() if value is not None}


def _scalar(summary: bytes) -> tuple[str, float | None]:
    """(the tag, its scalar). None if it holds something else."""
    tag, found = "", None
    for number, value in fields(summary):
        if number == 1 and isinstance(value, bytes):
            tag = value.decode(errors="replace")
        elif number == 2 and isinstance(value, bytes):
            found = struct.unpack("<f", value)[0]
        elif number == 8 and isinstance(value, bytes):
            found = _of_tensor(value)
    return tag, found


def _of_tensor(tensor: bytes) -> float | None:
    parts = list(fields(tensor))
    kind = next((value for number, value in parts if number == 1), None)
    form = {_FLOAT: "<f", _DOUBLE: "<d"}.get(kind) if isinstance(kind, int) else None
    if form is None:
        return None
    # The bytes of the array, or the list of its floats or doubles.
    for number, value in parts:
        if number in (4, 5, 6) and isinstance(value, bytes) and len(value) == struct.calcsize(form):
            return float(struct.unpack(form, value)[0])
    return None


def fields(message: bytes) -> Iterator[tuple[int, Field]]:
    """(number, value) of each field of a protobuf message.

    Raises: ValueError for other bytes.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(message):
            raise ValueError("no protobuf message")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("no protobuf message")
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, at
