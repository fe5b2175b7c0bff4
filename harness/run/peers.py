"""Peers: the processes that train one run together, as one of them sees the others.

A run on one machine has one process, which is `ALONE`. `harness.train.cluster` joins several. Code that
writes a file, reads one, or decides something for all of them is given its peers and asks them. None of it
looks at the number of devices.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Protocol

from harness.errors import HarnessError
from harness.run.cluster import Member


class Peers(Protocol):
    """Process `index` of `count`. Every call is made by all of them, in the same order.

    `hosts` are the names of the machines, one a process.
    Raises, each call: HarnessError "peer-lost" if one of them is gone.
    """

    @property
    def index(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def hosts(self) -> list[str]: ...

    def barrier(self) -> None:
        """Returns when all processes have called it."""
        ...

    def gather(self, text: str) -> list[str]:
        """What each process gave, in the order of their numbers."""
        ...

    def agree(self, text: str) -> str:
        """What process 0 gave."""
        ...

    def first(self, action: Callable[[], object]) -> None:
        """Runs `action` in process 0 alone. Returns when it is done, or raises its HarnessError in all."""
        ...


class Alone:
    """The only process of a run: nothing to wait for, nothing to ask."""

    index, count = 0, 1

    @property
    def hosts(self) -> list[str]:
        return [""]

    def barrier(self) -> None: ...

    def gather(self, text: str) -> list[str]:
        return [text]

    def agree(self, text: str) -> str:
        return text

    def first(self, action: Callable[[], object]) -> None:
        action()


ALONE = Alone()


def named(index: int, hosts: Sequence[str]) -> str:
    """A process in words, with its host."""
    return f"process {index} ({hosts[index]})" if index < len(hosts) and hosts[index] else f"process {index}"


def peer_lost(indices: Sequence[int], hosts: Sequence[str], said: str) -> HarnessError:
    """The error of a process whose peer is gone: one of `indices`. `said` is what a library said of it."""
    who = " or ".join(named(index, hosts) for index in indices) or "another process of the run"
    return HarnessError(
        "peer-lost",
        f"{who} answers no more, so no step can be computed",
        got=said,
        need="all processes of the run",
        fix="look at the log of that process, then start all of them again with --resume",
    )


def peer_ended(index: int, hosts: Sequence[str], error: HarnessError) -> HarnessError:
    """The error of a process whose peer `index` has ended by `error`, and has said so."""
    return HarnessError(
        "peer-lost",
        f"{named(index, hosts)} has ended: {error.what}",
        got=f"[{error.code}] {error.got or ''}".strip(),
        need=error.need,
        fix=error.fix,
    )


def run_first(peers: Peers, action: Callable[[], object]) -> None:
    """`Peers.first`, by the peers' own `agree`."""
    failed: HarnessError | None = None
    if peers.index == 0:
        try:
            action()
        except HarnessError as error:
            failed = error
    answer = peers.agree("" if failed is None else error_as_text(failed))
    if failed is not None:
        raise failed
    if answer:
        raise error_from_text(answer)


def error_as_text(error: HarnessError) -> str:
    return json.dumps([error.code, error.what, error.got, error.need, error.fix])


def error_from_text(text: str) -> HarnessError:
    code, what, got, need, fix = json.loads(text)
    return HarnessError(code, what, got=got, need=need, fix=fix)


def peers_missing(member: Member, said: str) -> HarnessError:
    """The error of a process that does not meet the others of its run."""
    return HarnessError(
        "peers-missing",
        f"not all of the {member.processes} processes came to {member.coordinator}; nothing was started",
        got=said,
        need=f"{member.processes} processes that reach {member.coordinator}",
        fix=(
            "look at the log of each process; the host's name must resolve and its port be open on every"
            " machine, and http_proxy must not be set"
        ),
    )
