"""wandb's own file of a run (`run-ID.wandb`, also of an offline one) as lines of JSON, one for each step.

After a head of 7 bytes it is a log of LevelDB: blocks of 32 KiB with pieces of records. A piece is: a
checksum, its length (uint16), its kind. A record is a protobuf message.

Source: wandb/proto/wandb_internal.proto; LevelDB's doc/log_format.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from harness.analyse.tfevents import fields

_MARK, _FILE_HEAD = b":W&B", 7
_BLOCK, _HEAD = 32 * 1024, 7
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
# A larger record holds a configuration or a list of files.
_MOST_BYTES = 1 << 20
# The numbers of the fields: of a record, of its history, of an item of that.
_HISTORY, _ITEM, _STEP, _KEY, _NESTED, _VALUE = 2, 1, 2, 1, 2, 16


def begins_wandb(head: bytes) -> bool:
    """True if these are the first bytes of such a file."""
    return head.startswith(_MARK)


def history_lines(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """A line of JSON for each call of wandb's `log`: `_step` and each number by its name.

    `read` returns as many bytes as it is asked for, fewer at the end.

    Raises: EOFError for a file that is cut off within a record; ValueError for other bytes.
    """
    for record in _records(read):
        for number, value in fields(record):
            if number == _HISTORY and isinstance(value, bytes):
                yield _line(value)


def _records(read: Callable[[int], bytes]) -> Iterator[bytes]:
    left = _BLOCK - len(read(_FILE_HEAD))
    held: list[bytes] = []
    while True:
        if left < _HEAD:
            # What is left of a block holds zeros.
            read(left)
            left = _BLOCK
        head = read(_HEAD)
        if not head:
            return
        size, kind = int.from_bytes(head[4:6], "little"), head[6:7]
        data = read(size)
        if len(head) < _HEAD or len(data) < size:
            raise EOFError
        if size > left - _HEAD or not _WHOLE <= kind[0] <= _LAST:
            raise ValueError("no log of LevelDB")
        left -= _HEAD + size
        if kind[0] in (_WHOLE, _FIRST):
            held.clear()
        if sum(map(len, held)) <= _MOST_BYTES:
            held.append(data)
        if kind[0] in (_WHOLE, _LAST) and sum(map(len, held)) <= _MOST_BYTES:
            yield b"".join(held)


def _line(history: bytes) -> bytes:
    found: dict[str, float] = {}
    for number, value in fields(history):
        if number == _STEP and isinstance(value, bytes):
            found.setdefault("_step", next((n for _, n in fields(value) if isinstance(n, int)), 0))
        elif number == _ITEM and isinstance(value, bytes):
            name, cell = _item(value)
            if cell is not None:
                found[name] = cell
    return json.dumps(found).encode() + b"\n" if found else b""


def _item(item: bytes) -> tuple[str, float | None]:
    """(the name, its number). None if it holds something else."""
    key, nested, cell = "", [], None
    for number, value in fields(item):
        text = value.decode(errors="replace") if isinstance(value, bytes) else ""
        if number == _KEY:
            key = text
        elif number == _NESTED:
            nested.append(text)
        elif number == _VALUE:
            cell = _number(text)
    return key or "/".join(nested), cell


def _number(text: str) -> float | None:
    """The number in a value of JSON. wandb writes NaN with or without quotes."""
    text = text.strip('"')
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return None
