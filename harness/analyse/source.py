"""The bytes of a log, wherever they lie: a run directory, a file, gzip or not, or standard input."""

from __future__ import annotations

import codecs
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError
from harness.rundir import METRICS

STDIN = "-"
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_78=>]")
_GZIP = b"\x1f\x8b"
_NEED = "a run directory, its metrics.jsonl, or a console log with lines like `Step 10: grad_norm=1.2, loss=0.1, param_norm=1802.4`"


class Source(NamedTuple):
    """`text` has one line a record: no carriage returns, no colours. `run` is the directory when the log is a run's own."""

    name: str
    text: bytes
    run: Path | None
    ends_whole: bool
    partial: list[str]


def open_source(path: str, stdin: bytes | None = None) -> Source:
    """The log at `path`; "-" is what came on standard input.

    Raises: HarnessError "log-missing", "log-unreadable", "log-empty", "log-binary", "run-without-metrics".
    """
    if path == STDIN:
        return _source("standard input", stdin or b"", None)
    place = Path(path)
    run = None
    try:
        if place.is_dir():
            run, place = place, place / METRICS
            if not place.is_file():
                raise HarnessError("run-without-metrics", f"{run} is a directory without {METRICS}", need=_NEED, fix="harness analyse FILE for a console log")
        elif not place.exists():
            raise HarnessError("log-missing", f"there is no {place}", need=_NEED, fix="correct the path, or pipe the log: … | harness analyse -")
        elif not place.is_file():
            raise HarnessError("log-unreadable", f"{place} is neither a file nor a directory", need=_NEED, fix=f"cat {place} | harness analyse -")
        data = place.read_bytes()
    except OSError as error:
        raise HarnessError("log-unreadable", f"cannot read {place}: {error.strerror}", need="permission to read it", fix=f"chmod u+r {place}") from error
    if run is None and place.name == METRICS and (place.parent / "recipe.yaml").is_file():
        run = place.parent
    return _source(str(path), data, run)


def _source(name: str, data: bytes, run: Path | None) -> Source:
    partial: list[str] = []
    if data.startswith(_GZIP):
        data, whole = _gunzip(data)
        partial += [] if whole else ["the gzip file is cut off or damaged: only what comes before that was read"]
    if not data.strip():
        raise HarnessError("log-empty", f"{name} is empty", got=f"{len(data)} bytes", need=_NEED, fix="give the log of a run that has started")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # What PowerShell's redirection writes.
        data = data.decode("utf-16", errors="replace").encode()
    head = data[:65_536]
    if head.count(b"\0") > len(head) // 1000 + 1 or _control_share(head) > 0.1:
        raise HarnessError("log-binary", f"{name} is not text", got=f"begins with {head[:8].hex(' ')}", need=_NEED, fix="give the text log, plain or gzipped")
    if b"\x1b" in data:
        data = _ANSI.sub(b"", data)
    if b"\r" in data:
        # A progress bar goes back to the start of its line: what it wrote there before is a line of its own.
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return Source(name, data, run, data.endswith(b"\n"), partial)


def _gunzip(data: bytes) -> tuple[bytes, bool]:
    """(what could be unpacked, whether that is all); gzip files may be several ones in a row."""
    found, rest = [], data
    while rest.startswith(_GZIP):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            for start in range(0, len(rest), 1 << 20):
                found.append(unpacker.decompress(rest[start : start + (1 << 20)]))
                if unpacker.eof:
                    rest = unpacker.unused_data + rest[start + (1 << 20) :]
                    break
            else:
                return b"".join(found), False
        except zlib.error:
            return b"".join(found), False
    return b"".join(found), not rest.strip(b"\0")


def _control_share(head: bytes) -> float:
    controls = bytes(set(range(32)) - {7, 8, 9, 10, 12, 13, 27})
    undecodable = head.decode(errors="replace").count("�")
    return (len(head) - len(head.translate(None, controls)) + undecodable) / max(1, len(head))
