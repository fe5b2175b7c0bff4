"""Reads wandb's transaction logs of a run on this disk, which `wandb sync` sends later, one after the other.

Each attempt of the run wrote one log, here called a fragment. A fragment is a log in LevelDB's form: a header
of 7 bytes, then blocks of 32 KiB of records, each with a checksum. A record is a protobuf message.
Source: wandb core/internal/transactionlog, LevelDB doc/log_format.md.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.received.files import METRICS_BYTES, UnsafeFile, read_received

_IDENT = struct.Struct("<4sHB")
_HEADER = struct.Struct("<IHB")
_BLOCK = 2**15
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def fragments(directory: Path, run_id: str) -> list[Path]:
    """The logs of one run below its directory, oldest first, one for each attempt."""
    return sorted(directory.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"))


def last_step(directory: Path, run_id: str) -> int:
    """The last step that any fragment holds values of; -1 if there is none."""
    steps = (
        record.history.step.num
        for file in fragments(directory, run_id)
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    )
    return max(steps, default=-1)


def records(file: Path) -> Iterator[Any]:
    """wandb's records, up to the end or to the first record that a killed process left unfinished.

    `wandb sync` ends there too.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    try:
        data = read_received(file, file.parent, METRICS_BYTES)
    except (OSError, UnsafeFile):
        return
    for body in _bodies(data):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(body)
        except DecodeError:
            return
        yield record


def _bodies(data: bytes) -> Iterator[bytes]:
    if len(data) < _IDENT.size or _IDENT.unpack_from(data)[0] != b":W&B":
        return
    at, parts = _IDENT.size, b""
    while at + _HEADER.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER.size:
            at += left
            continue
        checksum, length, kind = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + _HEADER.size + length]
        whole = len(body) == length and zlib.crc32(body, zlib.crc32(bytes([kind]))) == checksum
        if not whole or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            return
        at += _HEADER.size + length
        parts = body if kind in (_FULL, _FIRST) else parts + body
        if kind in (_FULL, _LAST):
            yield parts
