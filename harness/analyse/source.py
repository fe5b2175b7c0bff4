"""The text of a log from where it lies: a run directory, a file, packed or not, or standard input."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import BinaryIO, NamedTuple

from harness.analyse.nearby import how_to_read
from harness.analyse.text import HOLE, Text, utf16
from harness.analyse.unpack import PIPED, pieces
from harness.errors import HarnessError
from harness.received.denied import may_be_opened
from harness.received.files import open_received
from harness.received.text import word
from harness.run.directory import METRICS, RECIPE

STDIN = "-"
HEAD_BYTES = 65_536
_EMPTY = b"\0 \t\r\n"
# A tar archive has long runs of zeros too, and is no log. Source: POSIX, ustar's header.
_TAR, _TAR_AT = b"ustar", 257
_NEED = (
    "a run directory, its metrics.jsonl, or a console log with lines like `Step 10: grad_norm=1.2, loss=0.1,"
    " param_norm=1802.4`"
)


class Source(NamedTuple):
    """The text of a log, which can be read once.

    `run` is the directory of a run's own log. `partial` grows while the text is read.
    """

    name: str
    text: Text
    run: Path | None
    partial: list[str]


def open_source(path: str, stdin: bytes | BinaryIO | None = None) -> Source:
    """The log at `path`. "-" means standard input.

    Raises: HarnessError "log-missing", "log-unreadable", "log-empty", "log-binary", "log-archive",
    "run-without-metrics"; UnsafeFile for a run's log that leads out of the run.
    """
    if path == STDIN:
        return _source(
            PIPED,
            stdin if stdin is not None and not isinstance(stdin, bytes) else io.BytesIO(stdin or b""),
            None,
        )
    log, run = Path(path), None
    try:
        if log.is_dir():
            run, log = log, log / METRICS
            if not log.is_file():
                raise HarnessError(
                    "run-without-metrics",
                    f"{run} is a directory without {METRICS}",
                    need=_NEED,
                    fix=how_to_read(run) or "harness analyse FILE for a console log",
                )
        elif not log.exists():
            raise HarnessError(
                "log-missing",
                f"there is no {log}",
                need=_NEED,
                fix="correct the path, or pipe the log: … | harness analyse -",
            )
        elif not log.is_file():
            raise HarnessError(
                "log-unreadable",
                f"{log} is neither a file nor a directory",
                need=_NEED,
                fix=f"cat {word(log)} | harness analyse -",
            )
        # A path that a user typed may be a link. The files of a run directory must lie inside it.
        real = log if run is not None else log.resolve()
        file = open_received(real, run or real.parent)
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no path"
        raise HarnessError(
            "log-unreadable",
            f"cannot read {log}: {why}",
            need="permission to read it",
            fix=may_be_opened(log),
        ) from error
    if run is None and log.name == METRICS and (log.parent / RECIPE).is_file():
        run = log.parent
    return _source(str(path), file, run)


def _source(name: str, file: BinaryIO, run: Path | None) -> Source:
    partial: list[str] = []
    unpacked = pieces(file, name, partial)
    first: list[bytes] = []
    for piece in itertools.islice(unpacked, 64):
        first.append(piece)
        if piece.strip(_EMPTY):
            # Leading blank lines, and the hole before a log that was emptied while its program wrote on, do
            # not tell the kind of the file.
            break
    head = b"".join(first)
    if not head.strip():
        raise HarnessError(
            "log-empty",
            f"{name} is empty",
            got=f"{len(head)} bytes",
            need=_NEED,
            fix="give the log of a run that has started",
        )
    # The bytes up to the first line count, so that the text behind a long hole is looked at.
    _check_text(name, head[: len(head) - len(head.lstrip(_EMPTY)) + HEAD_BYTES])
    return Source(name, Text(itertools.chain([head], unpacked), partial), run, partial)


def _check_text(name: str, head: bytes) -> None:
    if encoding := utf16(head):
        head = head.decode(encoding, errors="replace").encode(errors="replace")
    text = head if head[_TAR_AT:].startswith(_TAR) else HOLE.sub(b"", head)
    if not text.strip() or text.count(b"\0") > len(text) // 1000 + 1 or _control_share(text) > 0.1:
        raise HarnessError(
            "log-binary",
            f"{name} is not text",
            got=f"begins with {head[:8].hex(' ')}",
            need=_NEED,
            fix="give the text log, plain or packed",
        )


def _control_share(head: bytes) -> float:
    controls = bytes(set(range(32)) - {7, 8, 9, 10, 12, 13, 27})
    undecodable = head.decode(errors="replace").count("�")
    return (len(head) - len(head.translate(None, controls)) + undecodable) / max(1, len(head))
