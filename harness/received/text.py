"""Text from outside, shown: control characters stand as escapes, so that no file can steer a terminal or
forge a line of a log.
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
# What rich writes to move the cursor and to colour: SGR, up, erase line, column, show and hide the cursor.
# Nothing that a title or a clipboard takes.
_OURS = re.compile(r"\x1b\[(?:[0-9;]{0,32}m|[0-9]{0,4}[ABCDGK]|\?25[lh])|\r")


def controls(text: str) -> bool:
    """Whether `text` has a character that a terminal would obey, newline and tab included."""
    return _ANY.search(text) is not None


def visible(text: str) -> str:
    """`text` with each control character as its escape, `\\x1b` for one. Newline and tab stay."""
    return _IN_LINES.sub(_escape, text) if _IN_LINES.search(text) else text


def one_line(text: str) -> str:
    """As `visible`, with newlines and tabs escaped too: what must not begin a line of its own."""
    return _ANY.sub(_escape, text)


def all_visible(value: Any) -> Any:
    """A JSON value with every text in it, keys too, as `visible`."""
    if isinstance(value, dict):
        return {visible(key): all_visible(child) for key, child in value.items()}
    if isinstance(value, list):
        return [all_visible(child) for child in value]
    return visible(value) if isinstance(value, str) else value


def in_json(text: str) -> str:
    """JSON text with the controls that JSON allows raw inside of strings (C1, writing direction) as `\\u`
    escapes: the value stays the same.
    """
    return _IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def for_terminal(text: str) -> str:
    """`text` as it may reach a terminal: the few sequences of our own tables and progress bars stay, all
    other controls stand as escapes.
    """
    if not _IN_LINES.search(text):
        return text
    kept, end = [], 0
    for match in _OURS.finditer(text):
        kept += [visible(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*kept, visible(text[end:])])


def word(text: str | Path) -> str:
    """`text` as one word of a shell's command: quoted where it must be, and never taken for an option."""
    return shlex.quote(f"./{text}" if str(text).startswith("-") else str(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(match[0]) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    )
