"""By whose word something is fetched: what the user typed himself, and with --fetch also what a file names
that somebody else made.

The words lie in the environment, so that the processes of a run inherit them: HARNESS_OFFLINE, which the user
may set too, and HARNESS_MAY_FETCH, which only this module writes.
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
from harness.units import format_bytes

OFFLINE = "HARNESS_OFFLINE"
_MAY_FETCH = "HARNESS_MAY_FETCH"
_ON = ("1", "true", "yes", "on")
# Neither can be an address or a hub id: both have a blank.
_EVERYTHING, _SHIPPED = "what any file names", "named by a shipped recipe:"


class Named(NamedTuple):
    """Who names a source: `by` is the file, None for the user himself.

    `local` is how he gives a copy of his own; `bytes` the claimed size.
    """

    by: str | None = None
    local: str = ""
    bytes: int | None = None


def begin() -> None:
    """Forgets the words of the command that started this one: each command has its own."""
    os.environ.pop(_MAY_FETCH, None)


def hear(*, fetch: bool, offline: bool) -> None:
    """Takes the user's word from a command's --fetch and --offline; the environment's HARNESS_OFFLINE counts
    as --offline.

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
        # Libraries that would reach the network by themselves.
        os.environ |= {OFFLINE: "1", "HF_HUB_OFFLINE": "1"}
        if os.environ.get("WANDB_MODE") != "disabled":
            os.environ["WANDB_MODE"] = "offline"


def grant(*sources: str | None) -> None:
    """Notes that the user himself typed these addresses or hub ids: they may be fetched, by the processes
    that are started too.
    """
    _grant(*(source.rstrip("/") for source in sources if source))


def grant_shipped(sources: Iterable[str]) -> None:
    """Notes that these, which the recipes of the package name, may be fetched, as they may when such a recipe
    is asked for.
    """
    _grant(*(f"{_SHIPPED} {source.rstrip('/')}" for source in sources))


def is_offline() -> bool:
    return os.environ.get(OFFLINE, "").strip().lower() in _ON


def granted(source: str) -> bool:
    """Whether the user has typed `source`, or has said --fetch."""
    words, source = _words(), source.rstrip("/")
    return source in words or _EVERYTHING in words or f"{_SHIPPED} {source}" in words


def granted_by_name(source: str) -> bool:
    """Whether the user has typed `source` itself."""
    return source.rstrip("/") in _words()


def check(source: str, named: Named) -> None:
    """Refuses to fetch what is not here, unless the user's word covers it.

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
    """Says on stderr what comes next when it was not the user who named it."""
    if named.by is not None and not granted_by_name(source):
        size = format_bytes(size_bytes) if size_bytes else "size not told"
        # Without a handler of its own, logging writes a warning's bare text to stderr.
        logging.getLogger(__name__).warning("fetching %s (%s), which %s names", source, size, named.by)


def _again() -> str:
    """The command that was typed, with --fetch."""
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
