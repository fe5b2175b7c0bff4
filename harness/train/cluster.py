"""Joins the processes of a run that trains on several machines, by JAX's own runtime, and is their peers.

What they tell each other goes through JAX's coordination service, which process 0 runs: barriers and texts,
no array. It works before a device is touched and from any phase, and waits as long as it is told. Collectives
of arrays cannot: on a CPU (Gloo) the others have 30 s to arrive, however long a compilation takes.

A process that dies is noticed in one of two ways. A collective fails in those that wait for it: they say
whom they miss. Or its heartbeats stop, and the coordination service ends the others by SIGABRT with a message
that `harness.supervise.endings` reads. A process that fails with an error of its own leaves a note, so that
the others can name it and its error.

Source: jax 0.10.2, jax/_src/distributed.py; measured with two processes, in tests/test_train_cluster.py.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax

from harness.errors import HarnessError
from harness.run.cluster import Member, port_taken
from harness.run.peers import (
    Peers,
    error_as_text,
    error_from_text,
    peer_ended,
    peer_lost,
    peers_missing,
    run_first,
)
from harness.run.xla_flags import in_order
from harness.supervise.channel import Channel
from harness.supervise.signals import end_at_once, stop_requests

# How long the processes of a run may take to start: images are pulled, queues are long.
JOIN_S = 600
# A process without a heartbeat for so long is dead. Seconds, as JAX counts them.
HEARTBEAT_S = 45
# The longest wait for a peer that lives: it may compile, load weights or write a checkpoint.
WAIT_S = 4 * 3600
# How long a process that fails waits for the others to fail alike, before it leaves them.
_TOGETHER_S = 5
# How much longer process 0 stays, so that the others end first.
_LAST_S = 2
# After a collective has failed, how long to wait for the service to say who is dead.
_NAMED_S = HEARTBEAT_S + 10
_NOTE_S = 3
_SAY_EVERY_S = 30
_LISTEN_EVERY_S = 2
_NOTES = "harness/ended/"
# Parts of the messages of JAX, Gloo and NCCL when another process is gone or does not answer.
_LOST = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "connection refused",
    "coordination",
    "barrier",
    "unavailable:",
    "deadline_exceeded",
    "aborted:",
    "socket closed",
    "heartbeat",
)


def join(member: Member, channel: Channel, *, limit_s: int = JOIN_S) -> Joined:
    """The peers, once every process has come. Call it before JAX touches a device.

    Raises: HarnessError "peers-missing" after `limit_s`, "coordinator-port", "host-name-unknown".
    """
    host = socket.gethostname()
    channel.say(
        f"process {member.number} of {member.processes} (by {member.by}) on {host}: waiting for the others at"
        f" {member.coordinator}"
    )
    if member.number == 0:
        _check_port(member)
    if jax.config.jax_platforms == "cpu":
        _check_own_name(host)
    with _watching(member, channel, limit_s):
        try:
            jax.distributed.initialize(
                member.coordinator,
                member.processes,
                member.number,
                local_device_ids=member.local_devices,
                cluster_detection_method="deactivate",
                initialization_timeout=limit_s + 60,
                heartbeat_timeout_seconds=HEARTBEAT_S,
                shutdown_timeout_seconds=60,
            )
        except RuntimeError as error:
            raise peers_missing(member, " ".join(str(error).split())[:300]) from error
    if jax.config.jax_platforms == "cpu":
        _keep_order()
    peers = Joined(member, channel)
    peers.hosts = peers.gather(host)
    channel.peers(peers.hosts)
    peers.listen()
    return peers


def _keep_order() -> None:
    """Starts JAX's CPU backend so that collectives run in the order of the program.

    Gloo has no tags: two collectives at a time take each other's data, or end the process ("collective
    mismatch"). XLA starts a collective once the operation before it was started, and a loop counts as started
    while products of its body still run on other threads. So products stay on the thread that runs the loop.
    A program that is read from the cache has lost the order between loops and what is around them.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    flags = os.environ.get("XLA_FLAGS")
    # XLA reads them once, when the backend starts. It is no setting of the run: one process needs none.
    os.environ["XLA_FLAGS"] = in_order(os.environ)
    with suppress(RuntimeError):
        # Whoever asks for the devices next is told why there are none.
        jax.local_devices()
    if flags is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = flags


@contextmanager
def _watching(member: Member, channel: Channel, limit_s: float) -> Iterator[None]:
    """Says from time to time what this process waits for, and ends it after `limit_s`.

    JAX waits without a word, and at its own limit it ends the process by SIGABRT.
    """
    done, before = threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(min(_SAY_EVERY_S, max(before + limit_s - time.monotonic(), 0))):
            waited = time.monotonic() - before
            if waited >= limit_s:
                channel.error(peers_missing(member, f"waited for {limit_s:.0f} s"))
                end_at_once(2)
            channel.say(
                f"still waiting for the other {member.processes - 1} at {member.coordinator}, {waited:.0f} s"
            )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _check_port(member: Member) -> None:
    """Refuses a port that another program has; JAX's service would end this process by SIGSEGV."""
    port = int(member.coordinator.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        raise port_taken(port, error) from error


def _check_own_name(host: str) -> None:
    """Refuses a host that cannot look up its own name. Gloo listens at that address, and JAX would only say
    that its CPU backend does not start.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise HarnessError(
            "host-name-unknown",
            f"this host finds no address for its own name, {host}",
            got=error.strerror or str(error),
            need="an address at which the other processes reach this one",
            fix=(
                "a line in /etc/hosts with that address and the name; in a container without a network:"
                " docker run --hostname localhost"
            ),
        ) from error


class Joined:
    """The peers of a process that has joined others; see `Peers`."""

    def __init__(self, member: Member, channel: Channel) -> None:
        from jax._src import distributed  # the client has no public name

        self._channel = channel
        # Whoever has it tells how this process ends: the thread that listens, or the main one.
        self._ending, self._done = threading.RLock(), threading.Event()
        self.index, self.count = member.number, member.processes
        self.hosts: list[str] = [""] * member.processes
        self._client: Any = distributed.global_state.client
        # All processes make the same calls in the same order, so equal numbers are the same call.
        self._calls = 0

    def barrier(self) -> None:
        with self._naming_the_lost():
            self._client.wait_at_barrier(self._next("barrier"), WAIT_S * 1000)

    def gather(self, text: str) -> list[str]:
        name = self._next("gather")
        with self._naming_the_lost():
            self._client.key_value_set(f"{name}/{self.index}", text)
            self._client.wait_at_barrier(name, WAIT_S * 1000)
            found = {key.rpartition("/")[2]: value for key, value in self._client.key_value_dir_get(name)}
            self._client.wait_at_barrier(f"{name}/read", WAIT_S * 1000)
            # Process 0 holds what was told, so it is told to forget.
            self._client.key_value_delete(f"{name}/{self.index}")
        return [found[str(index)] for index in range(self.count)]

    def agree(self, text: str) -> str:
        name = self._next("agree")
        with self._naming_the_lost():
            if self.index == 0:
                self._client.key_value_set(name, text)
                return text
            return str(self._client.blocking_key_value_get(name, WAIT_S * 1000))

    def first(self, action: Callable[[], object]) -> None:
        run_first(self, action)

    def lost(self, error: Exception) -> HarnessError | None:
        """The error that says whom `error` misses. None if it has another cause than a lost peer.

        It may wait for the coordination service to name the dead, which ends this process.
        """
        if not any(part in str(error).lower() for part in _LOST):
            return None
        self._ending.acquire()
        said = " ".join(str(error).split())[:200]
        others = [index for index in range(self.count) if index != self.index]
        # Of two processes it is the other one; it may still write its note.
        deadline = time.monotonic() + (_NOTE_S if len(others) == 1 else _NAMED_S)
        while time.monotonic() < deadline:
            try:
                note = self._note()
            except Exception:  # the service has died with process 0
                return peer_lost([0], self.hosts, said)
            if note is not None:
                return note
            time.sleep(0.5)
        return peer_lost(others, self.hosts, said)

    def listen(self) -> None:
        """Starts a thread that ends this process once another one has left a note.

        The main thread may wait for it where it cannot leave: in a collective, or at a barrier.
        """

        def watch() -> None:
            while not self._done.wait(_LISTEN_EVERY_S):
                try:
                    note = self._note()
                except Exception:  # the service has ended; the main thread notices too
                    return
                # The others may fail alike, and then say so themselves.
                if note is not None and not self._done.wait(_TOGETHER_S / 2) and self._ending.acquire(False):
                    self._channel.error(note)
                    end_at_once(2)

        threading.Thread(target=watch, daemon=True, name="listens to peers").start()

    def close(self) -> None:
        """Ends the thread of `listen`. Call it when this process has done its part."""
        self._done.set()

    def leave(self, error: HarnessError) -> None:
        """Leaves the others a note of why this process ends, and waits a little for those that end alike."""
        self._ending.acquire()
        if error.code == "peer-lost":
            return
        with suppress(Exception):
            self._client.key_value_set(f"{_NOTES}{self.index}", error_as_text(error), allow_overwrite=True)
            self._client.wait_at_barrier(_NOTES, _TOGETHER_S * 1000)
            # The coordination service ends with process 0, and JAX ends by SIGABRT whom it leaves behind.
            time.sleep(_LAST_S if self.index == 0 else 0)

    def _next(self, what: str) -> str:
        self._calls += 1
        return f"harness/{what}/{self._calls}"

    @contextmanager
    def _naming_the_lost(self) -> Iterator[None]:
        try:
            yield
        except HarnessError:
            raise
        except Exception as error:
            raise self.lost(error) or error from error

    def _note(self) -> HarnessError | None:
        """The error of a peer that has left a note, named by its process."""
        notes = {int(key.rpartition("/")[2]): text for key, text in self._client.key_value_dir_get(_NOTES)}
        others = sorted(notes.keys() - {self.index})
        return peer_ended(others[0], self.hosts, error_from_text(notes[others[0]])) if others else None


@contextmanager
def stop_asked(peers: Peers) -> Iterator[Callable[[], bool]]:
    """Yields asked(): whether SIGTERM or Ctrl-C has asked this run to stop, the same in all processes.

    All of them call it equally often. With several processes JAX's preemption service hears SIGTERM in any of
    them and finds the call at which all stop; Ctrl-C is passed on to it. A second signal changes nothing: a
    service manager signals every process, and the supervisor passes the same request on. Whoever asks the
    supervisor twice has it kill this process.
    """
    if peers.count == 1:
        heard: list[int] = []
        with stop_requests(heard.append):
            yield lambda: bool(heard)
        return
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    calls, reached = 0, False

    def asked() -> bool:
        nonlocal calls, reached
        # The service compares these numbers between the processes. They count from the start of the process,
        # and not from the run's step: a notice that came before the first call stops at the number 1.
        calls += 1
        reached = reached or bool(reached_preemption_sync_point(calls))
        return reached

    def pass_on(_: signal.Signals) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with stop_requests(pass_on, numbers=(signal.SIGINT,)):
        yield asked
