"""Consent to downloads: sources that the user named, and with --fetch also those that a file names.

The consent is kept in environment variables, so that the processes of a run inherit it: HARNESS_OFFLINE,
which the user may set too, and HARNESS_MAY_FETCH, which only this module writes.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError
from harness.received.text import one_line
from harness.units import format_bytes

OFFLINE = "HARNESS_OFFLINE"
_MAY_FETCH = "HARNESS_MAY_FETCH"
_ON = ("1", "true", "yes", "on")
# Both contain a blank, so neither can be an address or a hub id.
_EVERYTHING, _SHIPPED = "what any file names", "named by a shipped recipe:"


class Named(NamedTuple):
    """The origin of a source's name. `by` is the file that names it; None if the user named it.

    `local` is the option for giving a local copy; `bytes` the claimed size.
    """

    by: str | None = None
    local: str = ""
    bytes: int | None = None


def begin() -> None:
    """Clears the consent given to the command that started this one: each command has its own."""
    os.environ.pop(_MAY_FETCH, None)


def hear(*, fetch: bool, offline: bool) -> None:
    """Records the user's consent from a command's --fetch and --offline.

    The environment's HARNESS_OFFLINE counts as --offline.

    Raises: HarnessError "fetch-and-offline".
    """
    if fetch and (offline or is_offline()):
        raise HarnessError(
            "fetch-and-offline",
            "--fetch asks for the network, and --offline (or HARNESS_OFFLINE) forbids it",
            fix="give one of the two",
        )
    if fetch:
        _grant(_EVERYTHING)
    if offline or is_offline():
        # Settings for libraries that would use the network by themselves.
        os.environ |= {OFFLINE: "1", "HF_HUB_OFFLINE": "1"}
        if os.environ.get("WANDB_MODE") != "disabled":
            os.environ["WANDB_MODE"] = "offline"


def grant(*sources: str | None) -> None:
    """Records addresses or hub ids that the user typed. They may be fetched, also by child processes."""
    _grant(*(source.rstrip("/") for source in sources if source))


def grant_shipped(sources: Iterable[str]) -> None:
    """Records sources that the package's own recipes name.

    They may be fetched, as if the user had asked for such a recipe.
    """
    _grant(*(f"{_SHIPPED} {source.rstrip('/')}" for source in sources))


def is_offline() -> bool:
    return os.environ.get(OFFLINE, "").strip().lower() in _ON


def granted(source: str) -> bool:
    """True if the user typed `source` or gave --fetch, or if `grant_shipped` recorded it."""
    words, source = _words(), source.rstrip("/")
    return source in words or _EVERYTHING in words or f"{_SHIPPED} {source}" in words


def granted_by_name(source: str) -> bool:
    """True if the user typed `source` itself."""
    return source.rstrip("/") in _words()


def check(source: str, named: Named) -> None:
    """Refuses to fetch a missing source without the user's consent.

    Raises: HarnessError "offline", "fetch-not-asked".
    """
    size = f" ({format_bytes(named.bytes)}, as is said there)" if named.bytes else ""
    local = f"; or give a copy of your own: {named.local}" if named.local else ""
    if is_offline():
        raise HarnessError(
            "offline",
            f"{source} is not on this machine, and nothing is fetched offline",
            got=f"--offline, or {OFFLINE}={os.environ[OFFLINE]}",
            need=f"{source}{size} in the cache",
            fix=f"the same command without --offline (unset {OFFLINE}){local}",
        )
    if named.by is not None and not granted(source):
        raise HarnessError(
            "fetch-not-asked",
            f"{source}{size} is not on this machine; {named.by} names it, you did not, so nothing was fetched"
            " without --fetch",
            got=f"named by {named.by}",
            need="your word that it may be fetched, or a copy in the cache",
            fix=f"{_again()}{local}",
        )


def announce(source: str, named: Named, size_bytes: int | None) -> None:
    """Logs a warning to stderr before a download that the user did not name."""
    if named.by is not None and not granted_by_name(source):
        size = format_bytes(size_bytes) if size_bytes else "size not told"
        # Without a handler, logging writes a warning's bare text to stderr.
        logging.getLogger(__name__).warning(
            "fetching %s (%s), which %s names", one_line(source), size, one_line(named.by)
        )


def _again() -> str:
    """The typed command, with --fetch added."""
    name = Path(sys.argv[0]).name
    if name not in ("harness", "cli.py"):
        return "the same command with --fetch"
    return shlex.join(["harness", *sys.argv[1:], "--fetch"])


def _grant(*words: str) -> None:
    if words:
        os.environ[_MAY_FETCH] = json.dumps(sorted({*_words(), *words}))


def _words() -> list[str]:
    try:
        found = json.loads(os.environ.get(_MAY_FETCH, "[]"))
    except ValueError:
        return []
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []
