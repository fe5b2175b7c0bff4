"""Limits on the tracks and samples that an mp4 claims, checked before FFmpeg builds an index.

A few bytes can claim billions of samples (one size for all, one duration for all). FFmpeg's index takes 24
bytes for each.

Source: ISO/IEC 14496-12, 8.6 to 8.8; FFmpeg libavformat/mov.c `mov_build_index`, `mov_read_trun`,
`mov_fix_index`.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from harness.units import MIB

# An hour at 1,000 frames a second; a file of LeRobot's (500 MB at most) has some 100,000.
MOST_SAMPLES = 4_000_000
MOST_TRACKS = 32
# Segments of an edit list. Each may repeat the whole track in the index.
_MOST_EDITS = 64
# All bytes that are not picture data. 16 bytes per frame is usual.
_INDEX_BYTES = 128 * MIB
_MOST_BOXES = 100_000
# Searched at any depth, because FFmpeg reads these boxes at any depth. A compressed or hidden header is
# searched as well.
_CLAIMS = re.compile(b"stsz|stz2|stts|ctts|trun|elst|trak|cmov")


def check_claims(file: BinaryIO) -> None:
    """Refuses an mp4 that claims more tracks or samples than a recording has.

    Raises: ValueError.
    """
    tracks = samples = 0
    times: dict[bytes, int] = {}
    for data in _boxes(file):
        for match in _CLAIMS.finditer(data):
            kind, at = match[0], match.end()
            tracks += kind == b"trak"
            if kind == b"cmov":
                raise ValueError("its header is compressed")
            if kind in (b"stsz", b"stz2"):
                samples += _number(data, at + 8)
            elif kind == b"trun":
                samples += _number(data, at + 4)
            elif kind == b"elst" and _number(data, at + 4) > _MOST_EDITS:
                raise ValueError(f"it claims an edit list of {_number(data, at + 4):,} parts")
            elif kind in (b"stts", b"ctts"):
                times[kind] = times.get(kind, 0) + _runs(data, at)
    most = max(samples, *times.values(), 0)
    if most > MOST_SAMPLES:
        raise ValueError(f"it claims {most:,} frames")
    if tracks > MOST_TRACKS:
        raise ValueError(f"it claims {tracks:,} tracks")


def _runs(data: bytes, at: int) -> int:
    """The number of samples in a table of runs (count, time)."""
    entries = min(_number(data, at + 4), (len(data) - at - 8) // 8)
    return sum(count for count, _ in struct.iter_unpack(">II", data[at + 8 : at + 8 + 8 * max(entries, 0)]))


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of each box of the file, except boxes of picture data.

    Raises: ValueError.
    """
    descriptor = file.fileno()
    at, size, read = 0, os.fstat(descriptor).st_size, 0
    for _ in range(_MOST_BOXES):
        if at >= size:
            return
        head = os.pread(descriptor, 16, at)
        length, kind = (int.from_bytes(head[:4], "big"), head[4:8]) if len(head) >= 8 else (0, b"")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length or size - at
        # After a box that claims too few bytes, FFmpeg continues behind its head.
        length = max(8, min(length, size - at))
        if kind != b"mdat":
            read += length
            if read > _INDEX_BYTES:
                raise ValueError(f"it has more than {_INDEX_BYTES:,} bytes that are no pictures")
            yield os.pread(descriptor, length, at)
        at += length
    raise ValueError(f"it has more than {_MOST_BOXES:,} boxes")
