"""The lines of a log from its bytes: no carriage returns, no colours, each bar's state on its own line."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator

from harness.analyse.documents import records_on_lines
from harness.received.json import parse_json
from harness.units import MIB, format_bytes

# No record of a trainer is longer. A longer line is cut here.
LONGEST_LINE = 8192
# A log of a million lines has 80 MB. Bytes beyond this limit are not read, and the answer says so.
MOST_BYTES = 512 * MIB
MOST_LINES = 10_000_000
_ANSI = re.compile(rb"\x1b\[[0-9;?]*+[ -/]*+[@-~]|\x1b\][^\x07\x1b]*+(?:\x07|\x1b\\)|\x1b[@-Z\\-_78=>]")
# A machine that lost its power leaves zeros where a log's last bytes should be. So does a log that was
# emptied while its program wrote on. Binary files have shorter runs too.
HOLE = re.compile(rb"\0{32,}+")
# The marks of a JSON document of records, as against a record on each line: a list of them, or the state that
# the Trainer of transformers saves.
_LIST = re.compile(rb"[ \t\r\n]{0,200}+\[[ \t\r\n]{0,200}+\{")
# TensorBoard's JSON of one curve: [[time, step, value], ...].
_POINTS = re.compile(rb"[ \t\r\n]{0,200}+\[[ \t\r\n]{0,200}+\[[ \t\r\n]{0,200}+[-\d]")
_HISTORY, _HISTORY_WITHIN = b'"log_history"', 8192
_LOOKED_AT = 400
# Docker's own file of what a container has written.
_COLLECTED = (b'{"log":"', b'{"log": "')
# A bar's values after its rate (tqdm's postfix), followed by another program's output on the same line.
_POSTFIX_END = re.compile(rb"((?:it/s|s/it), [^\]\n]{0,500}+\])(?=[^\n])")


class Text:
    """An iterator over lists of whole lines, from pieces of bytes.

    Afterwards `tail` is the last line if it had no line end.
    """

    def __init__(self, pieces: Iterable[bytes], partial: list[str]) -> None:
        self._pieces, self._partial = pieces, partial
        self._digest = hashlib.sha256()
        self._cut = 0
        self.lines = 0
        self.tail: bytes | None = None

    @property
    def sha256(self) -> str:
        """The hash of all bytes that were read."""
        return self._digest.hexdigest()

    def stop(self, why: str) -> None:
        """Stops reading, and records the reason."""
        self._partial.append(why)

    def __iter__(self) -> Iterator[list[bytes]]:
        carry, dropping = b"", False
        for piece in self._bounded():
            begin = _first_end(piece) if dropping else 0
            if begin < 0:
                continue
            dropping = False
            data = carry + piece[begin:]
            end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
            if end:
                yield self._lines(data[:end])
            carry = data[end:]
            if self.lines > MOST_LINES:
                self.stop(f"the log has more than {MOST_LINES:,} lines: what comes after was not read")
                return self._close()
            if len(carry) > 8 * LONGEST_LINE:
                carry, dropping = carry[: LONGEST_LINE + 1], True
        if carry.strip():
            *whole, last = self._lines(carry)
            if whole:
                yield whole
            if carry.endswith(b"\r"):
                yield [last]
            else:
                self.tail = last
        self._close()

    def _close(self) -> None:
        if self._cut:
            self._partial.append(f"{self._cut:,} lines of more than {LONGEST_LINE:,} bytes were cut there")

    def _bounded(self) -> Iterator[bytes]:
        left = MOST_BYTES
        for piece in _records_on_lines(records_on_lines(_decoded(self._pieces))):
            self._digest.update(piece)
            if b"\0" in piece:
                piece = HOLE.sub(b"\n", piece)  # noqa: PLW2901
            if len(piece) > left:
                yield piece[:left]
                self._partial.append(
                    f"the log is longer than {format_bytes(MOST_BYTES)}: what comes after was not read"
                )
                return
            left -= len(piece)
            yield piece

    def _lines(self, data: bytes) -> list[bytes]:
        if data.startswith(_COLLECTED):
            data = b"".join(map(_collected, data.split(b"\n")))
        if b"\x1b" in data:
            data = _ANSI.sub(b"", data)
        if b"\r" in data:
            # A progress bar returns to the start of its line. Its earlier text there becomes a line of its
            # own.
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self.lines += data.count(b"\n") + (not data.endswith(b"\n"))
        if b"it/s" in data or b"s/it" in data:
            data = data.replace(b"it/s]", b"it/s]\n").replace(b"s/it]", b"s/it]\n")
            data = _POSTFIX_END.sub(rb"\1\n", data)
        lines = data.removesuffix(b"\n").split(b"\n")
        if max(map(len, lines)) > LONGEST_LINE:
            self._cut += sum(len(line) > LONGEST_LINE for line in lines)
            lines = [line[:LONGEST_LINE] for line in lines]
        return lines


def _collected(line: bytes) -> bytes:
    """What a program has written, from the line of JSON in which Docker keeps it."""
    try:
        record = parse_json(line)
        return str(record["log"]).encode() if line.startswith(_COLLECTED) else line + b"\n"
    except (ValueError, KeyError):
        return line + b"\n" if line else b""


def _first_end(piece: bytes) -> int:
    ends = [end for end in (piece.find(b"\n"), piece.find(b"\r")) if end >= 0]
    return min(ends, default=-1)


def utf16(head: bytes) -> str | None:
    """The encoding of a text in UTF-16, from its mark or the zeros beside plain letters. None of others."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = head[0:_LOOKED_AT:2], head[1:_LOOKED_AT:2]
    for zeros, letters, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if len(zeros) >= 8 and zeros.count(0) > 0.9 * len(zeros) and letters.count(0) == 0:
            return name
    return None


def _decoded(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """UTF-16 (from PowerShell's redirection) as UTF-8. Everything else unchanged."""
    decoder: codecs.IncrementalDecoder | None = None
    for index, piece in enumerate(pieces):
        if index == 0 and (name := utf16(piece)):
            decoder = codecs.getincrementaldecoder(name)(errors="replace")
        if decoder is None:
            yield piece
        else:
            yield decoder.decode(piece).encode(errors="replace")


def _records_on_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A JSON document of records or points with each on a line of its own. Everything else unchanged."""
    first = next(pieces, b"")
    begin = first.removeprefix(codecs.BOM_UTF8)
    saved = begin.lstrip().startswith(b"{") and _HISTORY in begin[:_HISTORY_WITHIN]
    document = saved or _LIST.match(begin) is not None
    points = _POINTS.match(begin) is not None
    for piece in itertools.chain([first], pieces):
        if points:
            flat = piece.replace(b"\r", b" ").replace(b"\n", b" ")
            yield flat.replace(b"[", b"\n").replace(b"]", b"\n")
        elif document:
            flat = piece.replace(b"\r", b" ").replace(b"\n", b" ")
            yield flat.replace(b"{", b"\n{").replace(b"}", b"}\n")
        else:
            yield piece
