"""Shows text from outside with control characters escaped.

So no file can control a terminal or forge a line of a log.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

# C0, DEL, C1; line and paragraph separators; marks and overrides of the writing direction (Unicode
# bidirectional algorithm, UAX 9); lone surrogates.
_CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_ANY = re.compile(f"[{_CONTROLS}]")
_IN_LINES = re.compile(f"(?![\n\t])[{_CONTROLS}]")
# The sequences with which rich moves the cursor and colours text: SGR, up, erase line, column, show and hide
# the cursor. Sequences that set a title or the clipboard are not among them.
_OURS = re.compile(r"\x1b\[(?:[0-9;]{0,32}m|[0-9]{0,4}[ABCDGK]|\?25[lh])|\r")


def controls(text: str) -> bool:
    """True if `text` has a control character for a terminal, newline and tab included."""
    return _ANY.search(text) is not None


def visible(text: str) -> str:
    """`text` with each control character escaped, for example as `\\x1b`. Newline and tab stay."""
    return _IN_LINES.sub(_escape, text) if _IN_LINES.search(text) else text


def one_line(text: str) -> str:
    """`text` as `visible` gives it, with newlines and tabs escaped too, so that it stays one line."""
    return _ANY.sub(_escape, text)


def all_visible(value: Any) -> Any:
    """A JSON value with `visible` applied to every text in it, keys included."""
    if isinstance(value, dict):
        return {visible(key): all_visible(child) for key, child in value.items()}
    if isinstance(value, list):
        return [all_visible(child) for child in value]
    return visible(value) if isinstance(value, str) else value


def in_json(text: str) -> str:
    """JSON text in which raw control characters are `\\u` escapes. The value stays the same.

    JSON allows C1 controls and writing directions raw inside strings.
    """
    return _IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def for_terminal(text: str) -> str:
    """`text` for a terminal. The few sequences of our own tables and progress bars stay.

    All other control characters are escaped.
    """
    if not _IN_LINES.search(text):
        return text
    kept, end = [], 0
    for match in _OURS.finditer(text):
        kept += [visible(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*kept, visible(text[end:])])


def word(text: str | Path) -> str:
    """`text` as one word of a shell command: quoted if necessary, and never read as an option."""
    return shlex.quote(f"./{text}" if str(text).startswith("-") else str(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(match[0]) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    )
