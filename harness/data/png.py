"""A PNG reader without Pillow, for checking any PNG and decoding the PNGs that LeRobot writes.

Its pixels equal Pillow's, in less than half of the time. It decodes only files that leave no room for
interpretation: 8-bit RGB, not interlaced, only the chunks header, data and end, every checksum right. ISA-L
inflates the data and FFmpeg undoes the filters. Pillow gets every other file, and reports what is wrong with
it.
"""

from __future__ import annotations

import struct
import threading
from typing import NamedTuple

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Bit depth 8, colour type RGB, deflate, the standard filters, not interlaced.
_PLAIN = bytes([8, 2, 0, 0, 0])
# Length and kind of the last chunk, and its checksum.
_END = struct.pack(">I4sI", 0, b"IEND", 0xAE426082)
# The largest block that deflate stores without compressing it.
_STORED = 65535
# A codec holds state, so every thread has its own.
_LOCAL = threading.local()


class Chunk(NamedTuple):
    kind: bytes
    start: int
    end: int


class Damaged(ValueError):
    """An error in a PNG's structure."""


def is_png(data: bytes) -> bool:
    return data[:8] == _SIGNATURE


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height that a PNG claims.

    Raises: Damaged.
    """
    if not is_png(data) or data[12:16] != b"IHDR" or len(data) < 33:
        raise Damaged("it has no header")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def is_deep_grey(data: bytes) -> bool:
    """True if a PNG has one channel of 16 bits, as depth images have."""
    return data[24:26] == bytes([16, 0])


def chunks(data: bytes) -> list[Chunk]:
    """Every chunk of a PNG with its position in `data`. The picture is not decoded.

    Raises: Damaged if a chunk is cut off, a checksum is wrong, or the picture's data or the end is missing.
    """
    from isal import isal_zlib

    size_of(data)
    at, found, view = 8, list[Chunk](), memoryview(data)
    while not found or found[-1].kind != b"IEND":
        if at + 12 > len(data):
            raise Damaged(f"it ends after {len(data)} bytes without its last chunk")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise Damaged(f"it ends after {len(data)} bytes, inside a chunk {kind!r} of {length}")
        if isal_zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise Damaged(f"the checksum of its chunk {kind!r} at byte {at} is wrong")
        found.append(Chunk(kind, at + 8, end - 4))
        at = end
    if not any(chunk.kind == b"IDAT" for chunk in found):
        raise Damaged("it has no picture data")
    return found


def decode_plain(data: bytes, most_pixels: int) -> np.ndarray | None:
    """The picture, uint8 [H, W, 3]; None if this module does not decode it.

    It decodes complete PNGs of the plain kind, of at most `most_pixels`.
    """
    if not is_png(data) or data[24:29] != _PLAIN:
        return None
    width, height = size_of(data)
    if not 0 < width * height <= most_pixels:
        return None
    try:
        found = chunks(data)
    except Damaged:
        return None
    if len(data) != found[-1].end + 4 or any(kind not in (b"IHDR", b"IDAT", b"IEND") for kind, _, _ in found):
        return None
    deflated = b"".join([data[start:end] for kind, start, end in found if kind == b"IDAT"])
    rows = _inflate(deflated, height * (3 * width + 1))
    # The first byte of each row is its filter type, of which there are five.
    if rows is None or max(rows[:: 3 * width + 1]) > 4:
        return None
    return _unfilter(data[:33], rows, deflated[-4:], (width, height))


def _inflate(deflated: bytes, size: int) -> bytes | None:
    """Exactly `size` inflated bytes, or None.

    Never more than `size` + 1 bytes are made, so a small file cannot fill the memory.
    """
    from isal import isal_zlib

    inflater = isal_zlib.decompressobj()
    try:
        found: bytes = inflater.decompress(deflated, size + 1)
    except isal_zlib.IsalError:  # type: ignore[misc]  # its stub gives an instance, not the class
        return None
    return found if len(found) == size and inflater.eof and not inflater.unused_data else None


def _unfilter(header: bytes, rows: bytes, adler: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """The picture, uint8 [H, W, 3], from filtered rows; None if FFmpeg cannot decode them.

    FFmpeg gets the rows as a PNG of uncompressed deflate blocks.
    """
    import av

    codec = getattr(_LOCAL, "codec", None)
    if codec is None:
        codec = _LOCAL.codec = av.CodecContext.create("png", "r")
        codec.thread_count = 1
    packet = av.Packet(_stored_png(header, rows, adler))
    # Otherwise FFmpeg adds the picture to the previous one.
    packet.is_keyframe = True
    try:
        frames = codec.decode(packet)
    except av.FFmpegError:
        _LOCAL.codec = None
        return None
    if (
        len(frames) != 1
        or frames[0].format.name != "rgb24"
        or (frames[0].width, frames[0].height) != size
        or frames[0].is_corrupt
    ):
        _LOCAL.codec = None
        return None
    # [H, W, 3]
    image: np.ndarray = frames[0].to_ndarray()
    return image


def _stored_png(header: bytes, rows: bytes, adler: bytes) -> bytes:
    """A PNG whose rows are stored without compression.

    FFmpeg checks no chunk's checksum, so the data's checksum stays 0. `adler` is the checksum of the rows in
    the original file.
    """
    view = memoryview(rows)
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for at in range(0, len(rows), _STORED):
        block = view[at : at + _STORED]
        parts += [struct.pack("<BHH", at + _STORED >= len(rows), len(block), len(block) ^ 0xFFFF), block]
    length = sum(map(len, parts)) + len(adler)
    return b"".join([header, struct.pack(">I4s", length, b"IDAT"), *parts, adler, bytes(4), _END])
