"""The bytes of a packed log, one piece at a time: gzip, bzip2, xz, zip, files of TensorBoard and wandb."""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from harness.analyse.tfevents import begins_events, event_lines
from harness.analyse.wandb_file import begins_wandb, history_lines
from harness.errors import HarnessError
from harness.received.text import word
from harness.units import MIB, format_bytes

# The name of a log that comes through a pipe.
PIPED = "standard input"
PIECE_BYTES = MIB
# The most memory that an xz file may ask for. The largest preset of the xz program takes 65 MiB.
_MOST_XZ_BYTES = 128 * MIB
# A zip lists its members at its end, so one from a pipe is held in memory whole.
_MOST_PIPED_ZIP_BYTES = 64 * MIB
# Source: zlib.h, inflateInit2: 16 more than the window asks for a gzip header.
_GZIP = 16 + zlib.MAX_WBITS
_MOST_ZEROS = 16 * MIB
_EVENTS_A_PIECE = 5_000
_ZSTD = b"\x28\xb5\x2f\xfd"
_DAMAGE = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)


def pieces(file: BinaryIO, name: str, partial: list[str]) -> Iterator[bytes]:
    """The bytes of `file`, unpacked if its first bytes mark it as packed. Damage is noted in `partial`.

    Raises: HarnessError "log-archive" for an archive that has not exactly one file, "log-binary" for zstd,
    "log-unreadable" when the system cannot read its first bytes.
    """
    try:
        head = file.read(PIECE_BYTES)
    except OSError as error:
        raise HarnessError(
            "log-unreadable",
            f"cannot read {name}: {error.strerror}",
            need="a file whose bytes the system can read",
            fix="copy the log to this machine's own disk, and give the copy",
        ) from error
    if head.startswith(_ZSTD):
        raise HarnessError(
            "log-binary",
            f"{name} is packed with zstd",
            need="text, or gzip, bzip2, xz, zip",
            fix=f"zstd -dc {word(_file(name, '.zst'))} | harness analyse -",
        )
    kind = next((kind for mark, kind in _KINDS if head.startswith(mark)), None)
    if begins_events(head) or begins_wandb(head):
        kind = _lines(event_lines if begins_events(head) else history_lines)
    if kind is None:
        yield head
        try:
            yield from iter(lambda: file.read(PIECE_BYTES), b"")
        except OSError as error:
            partial.append(f"the file cannot be read to its end: {error.strerror}")
        return
    try:
        yield from kind(_Joined(head, file), name)
    except _DAMAGE:
        partial.append("the packed file is cut off or damaged: only what comes before that was read")


class _Joined(io.RawIOBase):
    """A file whose first bytes have already been read."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head, self.rest = head, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data, self._head = (
            (self._head[: len(buffer)], self._head[len(buffer) :])
            if self._head
            else (self.rest.read(len(buffer)), b"")
        )
        buffer[: len(data)] = data
        return len(data)


_Unpacker = Callable[[_Joined, str], Iterator[bytes]]


def _gzip(file: _Joined, _: str) -> Iterator[bytes]:
    """The unpacked members of a gzip file, which may have zeros between them.

    The standard library's reader takes such zeros one by one. More zeros than any tape has end the file.
    """
    member, begun, zeros = zlib.decompressobj(_GZIP), False, 0
    for data in iter(lambda: file.read(PIECE_BYTES), b""):
        rest: bytes = data
        while rest:
            if not begun:
                padding, rest = len(rest), rest.lstrip(b"\0")
                begun, zeros = bool(rest), 0 if rest else zeros + padding
                if zeros > _MOST_ZEROS:
                    return
                continue
            yield member.decompress(rest, PIECE_BYTES)
            rest = member.unused_data if member.eof else member.unconsumed_tail
            if member.eof:
                member, begun = zlib.decompressobj(_GZIP), False
    if begun:
        yield member.flush()
        raise EOFError


def _streams(begin: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> _Unpacker:
    """An unpacker of files that are one stream after another."""

    def unpacked(file: _Joined, _: str) -> Iterator[bytes]:
        stream = begin()
        while True:
            data = file.read(PIECE_BYTES) or b"" if stream.needs_input and not stream.eof else b""
            if stream.eof:
                data = stream.unused_data or file.read(PIECE_BYTES) or b""
                if not data:
                    return
                stream = begin()
            elif stream.needs_input and not data:
                raise EOFError
            yield stream.decompress(data, PIECE_BYTES)

    return unpacked


def _lines(lines_of: Callable[[Callable[[int], bytes]], Iterator[bytes]]) -> _Unpacker:
    """An unpacker of files of records, as text."""

    def unpacked(file: _Joined, _: str) -> Iterator[bytes]:
        some: list[bytes] = []
        try:
            for line in lines_of(io.BufferedReader(file, PIECE_BYTES).read):
                some.append(line)
                if len(some) == _EVENTS_A_PIECE:
                    yield b"".join(some)
                    some.clear()
        except _DAMAGE:
            # A file that is still written ends within a record.
            yield b"".join(some)
            raise
        yield b"".join(some)

    return unpacked


def _file(name: str, ending: str) -> str:
    """The log's file for a command. Of a log from a pipe none is known here."""
    return f"FILE{ending}" if name == PIPED else name


def _zip(file: _Joined, name: str) -> Iterator[bytes]:
    if file.rest.seekable():
        whole: BinaryIO = file.rest
    else:
        data = io.BufferedReader(file).read(_MOST_PIPED_ZIP_BYTES + 1)
        if len(data) > _MOST_PIPED_ZIP_BYTES:
            raise HarnessError(
                "log-archive",
                f"{name} is a zip of more than {format_bytes(_MOST_PIPED_ZIP_BYTES)} from a pipe",
                need="a zip with a path",
                fix="unzip -p FILE.zip | harness analyse -",
            )
        whole = io.BytesIO(data)
    with zipfile.ZipFile(whole) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            names = ", ".join(repr(member.filename[:80]) for member in members[:5])
            raise HarnessError(
                "log-archive",
                f"{name} holds {len(members)} files",
                got=names or "none",
                need="an archive of one log",
                fix=f"unzip -p {word(_file(name, '.zip'))} LOG_INSIDE | harness analyse -",
            )
        with archive.open(members[0]) as unpacked:
            yield from iter(lambda: unpacked.read(PIECE_BYTES // 16), b"")


_KINDS: tuple[tuple[bytes, _Unpacker], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"BZh", _streams(bz2.BZ2Decompressor)),
    (b"\xfd7zXZ\x00", _streams(lambda: lzma.LZMADecompressor(memlimit=_MOST_XZ_BYTES))),
    (b"PK\x03\x04", _zip),
)
