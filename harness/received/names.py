"""Validates names from outside before they become parts of a path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from harness.errors import HarnessError
from harness.received.text import controls

# The longest name that Linux's filesystems take.
_LONGEST_BYTES = 255
_COMMIT = re.compile(r"[0-9a-f]{40}")


def why_no_name(text: str, reserved: frozenset[str] = frozenset()) -> str | None:
    """The reason why `text` cannot be one name inside a directory; None if it can.

    `reserved` are names that have a meaning there.
    """
    refusals = (
        (not text.strip(), "it is empty"),
        (text in (".", ".."), f"{text!r} is a directory that is there already"),
        ("/" in text or "\\" in text, "it has a separator of paths"),
        (controls(text), "it has control characters"),
        (
            text != text.strip() or text.startswith(("~", "-")),
            "it begins or ends with a blank, or begins with '~' or '-'",
        ),
        (
            len(text.encode(errors="surrogatepass")) > _LONGEST_BYTES,
            f"it is longer than {_LONGEST_BYTES} bytes",
        ),
        (text in reserved, f"{text!r} has a meaning of its own there"),
    )
    return next((reason for refused, reason in refusals if refused), None)


def why_no_relative_name(text: str) -> str | None:
    """The reason why `text` cannot be names joined by "/", such as openpi's asset ids; None if it can."""
    if text.startswith("/"):
        return "it is absolute"
    return next((reason for part in text.split("/") if (reason := why_no_name(part)) is not None), None)


def below(directory: Path, name: str, key: str) -> Path:
    """The path `directory/name`. The value of `key` gives the name, which has one or more parts.

    Raises: HarnessError "name-leads-out" if the path would not lie below the directory.
    """
    if (reason := why_no_relative_name(name)) is not None:
        raise HarnessError(
            "name-leads-out",
            f"{key} is no name below {directory}: {reason}",
            got=repr(name),
            need="names joined by '/', such as physical-intelligence/libero",
            fix=f"correct {key}",
        )
    return directory / name


def is_commit(text: object) -> bool:
    """True if `text` is a full git commit hash, and so safe in a command."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def _name(text: str) -> str:
    if (reason := why_no_name(text)) is not None:
        raise ValueError(f"{text!r} is no name: {reason}")
    return text


def _relative_name(text: str) -> str:
    if (reason := why_no_relative_name(text)) is not None:
        raise ValueError(f"{text!r} is no name below a directory: {reason}")
    return text


# Types for fields of a recipe or an artifact that become parts of a path.
Name = Annotated[str, AfterValidator(_name)]
RelativeName = Annotated[str, AfterValidator(_relative_name)]
