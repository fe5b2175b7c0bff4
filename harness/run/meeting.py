"""Meets the processes of a run before their trainers start, at the coordinator's address, without JAX.

Process 0 prepares a run: it plans, looks at the data and writes the files. That takes minutes, and JAX's own
runtime starts only after it. Until then the others hold a connection to process 0. Over it they learn which
run it is and when it is ready, or why it never will be. A connection belongs to this launch alone: no file of
an earlier one can be taken for its word, and it closes when the process at its other end dies.

A message is a line of JSON. Process 0 listens at the coordinator's port while it prepares, and leaves it to
JAX afterwards. So a port that is closed, taken, or hidden by a firewall is found before anything is computed.
As JAX's own service, it believes whoever reaches the port: see docs/security.md.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from harness.errors import HarnessError
from harness.run.cluster import Member, port_taken
from harness.run.connection import ANSWER_S, CLOSE_S, Gone, Line, words
from harness.run.peers import (
    error_as_text,
    error_from_text,
    named,
    peer_ended,
    peer_lost,
    peers_missing,
    run_first,
)

# How long the processes of a run may take to come: images are pulled, queues are long.
MEET_S = 600.0
_PULSE_S = 5.0
_SAY_EVERY_S = 30.0
_HELLO, _HEARD, _TOLD, _PULSE, _NEWS, _FAILED = "hello", "heard", "told", "pulse", "news", "failed"


class Meeting:
    """The peers of a process that has met the others; see `Peers`."""

    def __init__(self, member: Member, say: Callable[[str], None]) -> None:
        self.index, self.count = member.number, member.processes
        self.hosts: list[str] = [""] * member.processes
        # Process 0 has a connection to each other one; another process has one, to process 0.
        self.lines: dict[int, Line] = {}
        self._say, self._done = say, threading.Event()
        threading.Thread(target=self._live, daemon=True, name="tells peers that it lives").start()

    def barrier(self) -> None:
        self.gather("")

    def gather(self, text: str) -> list[str]:
        if self.index:
            self._send(0, _TOLD, text)
            return [str(each) for each in json.loads(self._hear(0))]
        found = [text, *(self._hear(index) for index in range(1, self.count))]
        self.agree(json.dumps(found))
        return found

    def agree(self, text: str) -> str:
        if self.index:
            return self._hear(0)
        for index in self.lines:
            self._send(index, _TOLD, text)
        return text

    def first(self, action: Callable[[], object]) -> None:
        run_first(self, action)

    def news(self, text: str) -> None:
        """Tells the others what process 0 is doing, for people who look at their logs."""
        for line in self.lines.values():
            with suppress(Gone):
                line.send(_NEWS, text)

    def leave(self, error: HarnessError) -> None:
        """Tells the others why this process ends."""
        for line in self.lines.values():
            with suppress(Gone):
                line.send(_FAILED, error_as_text(error))

    def close(self) -> None:
        """Ends all connections; what was sent is read first."""
        self._done.set()
        for line in self.lines.values():
            line.end()
        deadline = time.monotonic() + CLOSE_S
        for line in self.lines.values():
            line.close(deadline)

    def _send(self, index: int, kind: str, text: str) -> None:
        try:
            self.lines[index].send(kind, text)
        except Gone as gone:
            # It may have said why before it left.
            with suppress(Gone):
                self._take(index)
            raise peer_lost([index], self.hosts, str(gone)) from gone

    def _hear(self, index: int) -> str:
        try:
            return self._take(index)
        except Gone as gone:
            raise peer_lost([index], self.hosts, str(gone)) from gone

    def _take(self, index: int) -> str:
        """What a process tells next. The others end by the error of process 0, and it by theirs.

        Raises: Gone.
        """
        while True:
            kind, body = self.lines[index].receive()
            if kind == _TOLD:
                return str(body)
            if kind == _NEWS:
                self._say(f"{named(index, self.hosts)}: {body}")
            elif kind == _FAILED:
                error = error_from_text(str(body))
                raise error if index == 0 else peer_ended(index, self.hosts, error)

    def _live(self) -> None:
        while not self._done.wait(_PULSE_S):
            for line in list(self.lines.values()):
                with suppress(Gone):
                    line.send(_PULSE)


@contextmanager
def meeting(
    member: Member, host: str, say: Callable[[str], None], *, limit_s: float = MEET_S
) -> Iterator[Meeting]:
    """The peers, once every process has come. When the block ends, the port is free for JAX.

    `host` is this machine's name. An error that ends the block is told to the others.

    Raises: HarnessError "peers-missing" after `limit_s`, "peers-twice", "coordinator-port", "peer-lost".
    """
    say(f"process {member.number} of {member.processes} (by {member.by}) on {host}")
    peers = Meeting(member, say)
    try:
        (_go_to_first if member.number else _receive_others)(member, peers, say, limit_s)
        peers.hosts = peers.gather(host)
        yield peers
    except HarnessError as error:
        peers.leave(error)
        raise
    finally:
        peers.close()


def _receive_others(member: Member, peers: Meeting, say: Callable[[str], None], limit_s: float) -> None:
    """Accepts one connection of each other process."""
    with _listener(int(member.coordinator.rpartition(":")[2])) as listener:
        listener.settimeout(0.5)
        waited = _Wait(say, limit_s)
        while len(peers.lines) < member.processes - 1:
            missing = sorted(set(range(1, member.processes)) - set(peers.lines))
            those = f"process{'es' * (len(missing) > 1)} {_listed(missing)}"
            waited.tell(f"waiting for {those} at {member.coordinator}")
            if waited.too_long:
                raise peers_missing(member, f"no word of {those}")
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            _greet(Line(connection), member, peers)


def _greet(line: Line, member: Member, peers: Meeting) -> None:
    """Takes a process among the peers. Closes the connection of whoever is none.

    Raises: HarnessError "peers-twice".
    """
    try:
        kind, said = line.receive()
        number, of = (int(each) for each in said) if kind == _HELLO else (0, 0)
    except (Gone, ValueError, TypeError):
        number, of = 0, 0
    known = peers.lines.get(number)
    if of != member.processes or not 0 < number < of:
        with suppress(Gone):
            line.send(_FAILED, error_as_text(_another(member, number, of)))
        line.close()
        return
    if known is not None and known.lives():
        error = HarnessError(
            "peers-twice",
            f"two processes say that they are process {number} of {of}",
            got=f"two connections to {member.coordinator}",
            need=f"the numbers 0 to {of - 1}, each once",
            fix="let the launcher number the processes, or set JAX_PROCESS_ID to another number in each",
        )
        with suppress(Gone):
            line.send(_FAILED, error_as_text(error))
        line.close()
        raise error
    line.patient()
    peers.lines[number] = line
    with suppress(Gone):
        line.send(_HEARD)


def _go_to_first(member: Member, peers: Meeting, say: Callable[[str], None], limit_s: float) -> None:
    """Connects to process 0, which may not have started yet."""
    waited, why = _Wait(say, limit_s), ""
    while True:
        waited.tell(f"waiting for process 0 at {member.coordinator}" + (f" ({why})" if why else ""))
        if waited.too_long:
            raise peers_missing(member, why)
        try:
            line = _connected(member)
            line.send(_HELLO, [member.number, member.processes])
            kind, said = line.receive()
        except (OSError, Gone) as error:
            why = words(error) if isinstance(error, OSError) else f"what answers there: {error}"
            time.sleep(0.5)
            continue
        if kind == _FAILED:
            line.close()
            raise error_from_text(str(said))
        line.patient()
        peers.lines[0] = line
        return


def _connected(member: Member) -> Line:
    host, _, port = member.coordinator.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S)
    if connection.getsockname() == connection.getpeername():
        # Where nobody listens, TCP may connect a port of this machine with itself.
        connection.close()
        raise ConnectionRefusedError(None, "Connection refused")
    return Line(connection)


def _listener(port: int) -> socket.socket:
    """Raises: HarnessError "coordinator-port"."""
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        )
    except OSError as error:
        raise port_taken(port, error) from error


class _Wait:
    """A wait that says from time to time what it waits for."""

    def __init__(self, say: Callable[[str], None], limit_s: float) -> None:
        self._say, self._limit_s = say, limit_s
        self._begun = time.monotonic()
        self._next = self._begun

    @property
    def too_long(self) -> bool:
        return time.monotonic() - self._begun >= self._limit_s

    def tell(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            waited = now - self._begun
            self._say(text if waited < 1 else f"still {text}, {waited:.0f} s")
            self._next = now + _SAY_EVERY_S


def _another(member: Member, number: int, of: int) -> HarnessError:
    return HarnessError(
        "cluster-contradiction",
        f"process 0 at {member.coordinator} is of another run, or counts its processes otherwise",
        got=f"process {number} of {of}" if of else "no process of a run",
        need=f"process 1 to {member.processes - 1} of {member.processes}",
        fix="start all processes of a run with the same count; give each run a port of its own",
    )


def _listed(numbers: list[int]) -> str:
    some = ", ".join(map(str, numbers[:8]))
    return some if len(numbers) <= 8 else f"{some} and {len(numbers) - 8} more"
