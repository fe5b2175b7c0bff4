"""Tests how the processes of a run meet before their trainers start: threads, with real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.run import connection, meeting
from harness.run.cluster import Member
from harness.run.meeting import Meeting
from tests.support.members import free_port

COUNT = 3


def member(number: int, port: int, count: int = COUNT) -> Member:
    return Member(f"127.0.0.1:{port}", count, number, None, "explicit variables")


def met(
    act: Callable[[Meeting], Any],
    numbers: tuple[int, ...] = (0, 1, 2),
    *,
    limit_s: float = 20,
    count: int = COUNT,
) -> list[Any]:
    """What `act` gives, or the HarnessError that ends it, in each of these processes."""
    port = free_port()

    def process(number: int) -> Any:
        try:
            with meeting.meeting(
                member(number, port, count), f"host-{number}", lambda _: None, limit_s=limit_s
            ) as peers:
                return act(peers)
        except HarnessError as error:
            return error

    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(process, numbers))


def test_all_hear_what_each_says_and_what_the_first_decides() -> None:
    def act(peers: Meeting) -> Any:
        peers.barrier()
        peers.news("planning")
        return peers.gather(f"text {peers.index}"), peers.agree(f"of {peers.index}"), peers.hosts

    hosts = [f"host-{number}" for number in range(COUNT)]
    assert met(act) == [(["text 0", "text 1", "text 2"], "of 0", hosts)] * COUNT


def test_what_the_first_refuses_all_refuse() -> None:
    def refuse() -> None:
        raise HarnessError("disk-full", "no space", got="0 B", fix="free space")

    def act(peers: Meeting) -> Any:
        peers.first(refuse)

    assert [(error.code, error.got, error.fix) for error in met(act)] == [
        ("disk-full", "0 B", "free space")
    ] * 3


def test_the_others_end_by_the_error_of_the_first_wherever_it_fails() -> None:
    def act(peers: Meeting) -> Any:
        if peers.index == 0:
            raise HarnessError("no-gpu", "there is no GPU", fix="harness probe")
        return peers.agree("")

    assert [error.code for error in met(act)] == ["no-gpu"] * 3


def test_the_first_and_the_rest_learn_which_process_has_ended_and_why() -> None:
    def act(peers: Meeting) -> Any:
        if peers.index == 2:
            raise HarnessError("disk-full", "no space", fix="free space")
        return peers.gather("")

    errors = met(act)
    assert [error.code for error in errors] == ["peer-lost", "peer-lost", "disk-full"]
    for error in errors[:2]:
        assert error.what == "process 2 (host-2) has ended: no space"
        assert error.fix == "free space"


def test_a_process_that_dies_is_named_at_once() -> None:
    def act(peers: Meeting) -> Any:
        if peers.index == 1:
            # As the kernel does it for a process that is killed.
            peers.lines[0]._socket.close()
            return None
        return peers.gather("")

    before = time.monotonic()
    errors = met(act)
    assert time.monotonic() - before < 10
    assert [error.code for error in errors if error is not None] == ["peer-lost"] * 2
    assert errors[0].what.startswith("process 1 (host-1) ")


def test_a_process_that_says_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SILENT_S", 0.5)
    monkeypatch.setattr(meeting, "_PULSE_S", 30.0)

    def act(peers: Meeting) -> Any:
        if peers.index == 1:
            time.sleep(2)
            return None
        return peers.gather("")

    errors = met(act)
    assert (errors[0].code, errors[0].got) == ("peer-lost", "it says nothing")


def test_a_process_that_only_lives_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SILENT_S", 1.0)
    monkeypatch.setattr(meeting, "_PULSE_S", 0.1)

    def act(peers: Meeting) -> Any:
        if peers.index == 0:
            time.sleep(2.5)
        return peers.agree("after a long plan")

    assert met(act) == ["after a long plan"] * COUNT


@pytest.mark.parametrize(
    ("numbers", "missing"), [((0, 2), "process 1"), ((0,), "processes 1, 2"), ((1,), "")]
)
def test_who_does_not_come_is_named_after_the_limit(numbers: tuple[int, ...], missing: str) -> None:
    for error in met(lambda peers: peers.barrier(), numbers, limit_s=1):
        assert error.code == "peers-missing"
        assert missing in str(error.got)


def test_two_processes_of_one_number_are_refused() -> None:
    errors = met(lambda peers: peers.barrier(), (0, 1, 1), limit_s=10)
    assert {error.code for error in errors} == {"peers-twice"}


def test_a_process_of_another_run_is_refused_and_does_not_disturb() -> None:
    port, said = free_port(), []

    def process(number: int, count: int) -> Any:
        try:
            with meeting.meeting(
                member(number, port, count), f"host-{number}", said.append, limit_s=20
            ) as peers:
                return peers.gather("")
        except HarnessError as error:
            return error.code

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(process, 0, 2)
        other = pool.submit(process, 4, 8)
        assert other.result() == "cluster-contradiction"
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"cluster-contradiction" in stranger.recv(4096)
        assert pool.submit(process, 1, 2).result() == ["", ""]
        assert first.result() == ["", ""]


def test_a_port_that_another_program_has_is_refused_at_once() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(HarnessError) as caught, meeting.meeting(member(0, port), "here", lambda _: None):
            pass
    assert caught.value.code == "coordinator-port"


def test_what_answers_but_is_no_process_of_a_run_is_said() -> None:
    """A server that closes each connection: an earlier program still has the port."""
    server = socket.create_server(("127.0.0.1", 0))
    port, done = server.getsockname()[1], threading.Event()

    def serve() -> None:
        while not done.is_set():
            server.accept()[0].close()

    threading.Thread(target=serve, daemon=True).start()
    with (
        pytest.raises(HarnessError) as caught,
        meeting.meeting(member(1, port), "here", lambda _: None, limit_s=1.5),
    ):
        pass
    done.set()
    assert caught.value.code == "peers-missing"
    assert str(caught.value.got).startswith("what answers there: ")


def test_the_port_is_free_as_soon_as_all_have_gone_on() -> None:
    port = free_port()

    def process(number: int) -> None:
        with meeting.meeting(member(number, port), "here", lambda _: None, limit_s=20) as peers:
            peers.agree("ready")

    with ThreadPoolExecutor(COUNT) as pool:
        list(pool.map(process, range(COUNT)))
    with socket.create_server(("127.0.0.1", port)):
        pass
