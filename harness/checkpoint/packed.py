"""Bounds how much packed bytes unpack to, from their headers, because a few bytes can stand for any amount.

tensorstore unpacks all of a chunk before it checks whether the chunk is as large as it should be.
Source: zstd, doc/zstd_compression_format.md 0.4.3 (RFC 8878); c-blosc 1.21, README_CHUNK_FORMAT.rst.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import numpy as np

from harness.units import KIB, MIB

_FRAME = 0xFD2FB528
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_BLOCK_BYTES = 128 * KIB
_RAW, _RLE, _COMPRESSED = 0, 1, 2
# A compressed block counts as a full one, though encoders also cut smaller ones. If the bound exceeds this
# slack, the frames are unpacked to be counted.
_SLACK_BYTES = 32 * MIB
_WINDOW_BYTES = 128 * MIB
_BLOSC_HEADER_BYTES = 16


def check_packed(file: BinaryIO, length: int, codec: str | None, expected_bytes: int) -> None:
    """Refuses the `length` bytes at the file's position if they unpack to more than `expected_bytes`.

    The position is lost.

    Raises: ValueError.
    """
    check_length(length, expected_bytes)
    if codec == "blosc":
        header = file.read(min(length, _BLOSC_HEADER_BYTES))
        most = struct.unpack_from("<I", header, 4)[0] if len(header) == _BLOSC_HEADER_BYTES else 0
    elif codec == "zstd":
        start = file.tell()
        most = zstd_most(file, length)
        if most > 2 * expected_bytes + _SLACK_BYTES:
            file.seek(start)
            most = _counted(file.read(length), expected_bytes)
        else:
            most = min(most, expected_bytes)
    elif codec is None:
        most = length
    else:
        raise ValueError(f"packed by {codec}, which Orbax does not write")
    check_unpacked(most, expected_bytes)


def check_length(length: int, expected_bytes: int) -> None:
    """Refuses `length` packed bytes if they are more than `expected_bytes` need. Raises: ValueError."""
    if length > expected_bytes + expected_bytes // 8 + 64 * KIB:
        raise ValueError(f"{length} bytes are stored for {expected_bytes}")


def check_unpacked(most: int, expected_bytes: int) -> None:
    """Refuses what unpacks to `most` bytes if they are more than `expected_bytes`. Raises: ValueError."""
    if most > expected_bytes:
        raise ValueError(f"a chunk of {expected_bytes} bytes unpacks to at least {most}")


def zstd_most(file: BinaryIO, length: int) -> int:
    """An upper bound of the bytes that the zstd frames in the next `length` bytes unpack to.

    Raises: ValueError if they are not frames, or a frame needs a window of more than 128 MiB.
    """
    end, most = file.tell() + length, 0
    while file.tell() < end:
        (magic,) = struct.unpack("<I", _exactly(file, 4))
        if magic in _SKIPPABLE:
            file.seek(struct.unpack("<I", _exactly(file, 4))[0], io.SEEK_CUR)
        elif magic == _FRAME:
            most += _frame_most(file, end)
        else:
            raise ValueError("no zstd frame")
    if file.tell() > end:
        raise ValueError("a zstd frame is cut off")
    return most


def _frame_most(file: BinaryIO, end: int) -> int:
    (descriptor,) = _exactly(file, 1)
    single, dictionary, sized = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3], descriptor >> 6
    window = 0 if single else _window(_exactly(file, 1)[0])
    _exactly(file, dictionary)
    size_bytes = (single, 2, 4, 8)[sized]
    size = int.from_bytes(_exactly(file, size_bytes), "little") + (256 if size_bytes == 2 else 0)
    most = 0
    while True:
        header = int.from_bytes(_exactly(file, 3), "little")
        kind, block = header >> 1 & 3, header >> 3
        if kind == _RAW:
            most, skip = most + block, block
        elif kind == _RLE:
            most, skip = most + block, 1
        elif kind == _COMPRESSED:
            most, skip = most + _BLOCK_BYTES, block
        else:
            raise ValueError("a zstd block of a reserved kind")
        file.seek(skip, io.SEEK_CUR)
        if file.tell() > end:
            raise ValueError("a zstd frame is cut off")
        if header & 1:
            break
    _exactly(file, 4 if descriptor & 4 else 0)
    # A frame in one segment asks for all of its size at once, whatever its blocks hold.
    if max(window, min(size, 2**63) if single else 0) > max(_WINDOW_BYTES, 2 * most):
        raise ValueError("a zstd frame asks for more memory than its data needs")
    return most


def _window(byte: int) -> int:
    base = 1 << (10 + (byte >> 3))
    return base + base // 8 * (byte & 7)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError("a zstd frame is cut off")
    return data


def _counted(data: bytes, limit: int) -> int:
    """The number of bytes that the frames unpack to; counting ends above `limit`."""
    import pyarrow as pa

    total, piece = 0, np.empty(MIB, np.uint8)
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            while total <= limit and (count := stream.readinto(piece)):
                total += count
    except OSError as error:
        raise ValueError(f"no zstd frame: {error}") from error
    return total
