"""Tests the server over real sockets: errors keep the connection, slow calls and lost clients harm nobody."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import time
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.sync.client import connect

from harness.errors import HarnessError
from harness.serve.access import listenable
from harness.serve.batch import stacked
from harness.serve.client import Client
from harness.serve.wire import FRAME_BYTES, pack, unpack
from tests.support.served import RowEngine, Running, host_noise, libero, reader_of, row_actions, serving
from tests.support.tiny import tiny

KEY = "a-key-of-many-characters"


def raw(running: Running, **more: Any) -> Any:
    return connect(running.uri, compression=None, max_size=None, proxy=None, **more)


def get(running: Running, path: str, **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers["Content-Type"] or ""


def counted(running: Running, **outcomes: int) -> None:
    """Waits until the server has counted these; an answer is counted once it is sent."""
    want = {"answered": 0, "refused": 0, "failed": 0, "lost": 0} | outcomes
    deadline = time.monotonic() + 10
    while running.tally.outcomes != want and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.tally.outcomes == want


def expected(observation: dict[str, Any], seed: int, bucket: int = 16) -> np.ndarray:
    reader = reader_of(tiny(), (bucket, 64))
    asked = reader.read(observation)
    sampled = row_actions(stacked([asked], 1), host_noise(10, 32)(seed)[None])[0]
    return reader.actions(sampled, asked)


def test_the_first_message_is_the_metadata_and_each_request_has_one_answer() -> None:
    with serving() as running:
        client = Client(running.uri)
        assert client.metadata == {"horizon": 10}
        for number in range(3):
            found = client.infer(libero(number))
            assert found["actions"].dtype == np.float32
            np.testing.assert_array_equal(found["actions"], expected(libero(number), number))
            assert found["noise_seed"] == number
            assert found["policy_timing"]["infer_ms"] <= found["server_timing"]["infer_ms"]
            assert ("prev_total_ms" in found["server_timing"]) == (number > 0)
        np.testing.assert_array_equal(
            client.infer(libero(1, noise_seed=77))["actions"], expected(libero(1), 77)
        )


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ("a text", "frame-is-text"),
        (b"\xc1", "frame-invalid"),
        (b"", "frame-invalid"),
        (pack([1, 2]), "no map"),
        (pack({}), "observation-key-missing"),
        (pack(libero() | {"observation/state": np.ones(7)}), "7 in observation/state"),
        (
            msgpack.packb(
                {"x": {b"__ndarray__": True, b"data": b"12345678", b"dtype": "<f8", b"shape": [10**6, 10**6]}}
            ),
            "8 bytes",
        ),
        (
            msgpack.packb({"x": {b"__ndarray__": True, b"data": b"12345678", b"dtype": "|O", b"shape": [1]}}),
            "dtype",
        ),
    ],
)
def test_an_error_is_one_sentence_and_the_connection_lives(frame: Any, says: str) -> None:
    with serving() as running, raw(running) as connection:
        connection.recv()
        connection.send(frame)
        said = connection.recv()
        assert isinstance(said, str)
        assert says in said
        assert "fix:" in said
        assert "\n" not in said
        assert "Traceback" not in said
        connection.send(pack(libero()))
        assert unpack(connection.recv())["actions"].shape == (10, 7)
        counted(running, answered=1, refused=1)


def test_a_model_that_fails_is_one_sentence_without_the_machines_paths() -> None:
    engine = RowEngine(tiny())
    engine.fails = lambda _: True
    with serving(engine) as running:
        client = Client(running.uri)
        for _ in range(2):
            with pytest.raises(HarnessError) as caught:
                client.infer(libero())
            assert "inference-failed" in str(caught.value.got)
        assert running.tally.outcomes["failed"] == 2


def test_what_nobody_foresaw_is_one_sentence_too_and_the_connection_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as running:
        client = Client(running.uri)
        true = running.desk.reply
        monkeypatch.setattr(running.desk, "reply", lambda *_: os.stat("/a/path/of/this/machine"))
        with pytest.raises(HarnessError) as caught:
            client.infer(libero())
        assert caught.value.code == "server-refused"
        assert "[request-failed]" in str(caught.value)
        assert "got: FileNotFoundError" in str(caught.value)
        assert "/a/path" not in str(caught.value)
        monkeypatch.setattr(running.desk, "reply", true)
        assert client.infer(libero())["actions"].shape == (10, 7)
        counted(running, answered=1, failed=1)


def test_a_frame_of_17_mib_is_refused_with_1009_and_harms_nobody() -> None:
    with serving() as running, raw(running) as other:
        other.recv()
        with raw(running) as connection:
            connection.recv()
            with contextlib.suppress(ConnectionClosed):
                connection.send(b"\x00" * (17 * 2**20))
            with pytest.raises(ConnectionClosed) as caught:
                connection.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
        other.send(pack({"x": b"\x00" * (FRAME_BYTES - 100)}))
        assert "observation-key-missing" in str(other.recv())


def test_pings_health_and_others_are_answered_during_a_slow_call() -> None:
    """The program of `benchmarks/serve_load.py --slow 45` shows the same of a call of 45 s."""
    with (
        serving(RowEngine(tiny(), delay_s=4.0)) as running,
        raw(running, ping_interval=0.5, ping_timeout=1.5) as slow,
    ):
        slow.recv()
        slow.send(pack(libero()))
        began = time.monotonic()
        assert get(running, "/healthz")[:2] == (200, "OK\n")
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as asked:
            asked.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: robot\r\n\r\n")
            head = asked.makefile("rb").read()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")
        with raw(running) as other:
            other.recv()
        assert time.monotonic() - began < 3.0
        assert unpack(slow.recv())["actions"].shape == (10, 7)


def test_a_client_that_vanishes_harms_no_other() -> None:
    engine = RowEngine(tiny(), delay_s=0.3)
    with serving(engine) as running:
        with raw(running) as gone:
            gone.recv()
            gone.send(pack(libero()))
            time.sleep(0.1)
            gone.socket.shutdown(socket.SHUT_RDWR)
        client = Client(running.uri)
        np.testing.assert_array_equal(client.infer(libero())["actions"], expected(libero(), 0))
        counted(running, answered=1, lost=1)


def test_eight_clients_at_once_each_get_their_own() -> None:
    wrong: list[int] = []

    def talk(running: Running, number: int) -> None:
        client = Client(running.uri)
        for k in range(10):
            sent = libero(1000 * number + k, noise_seed=31 * number + k)
            if not np.array_equal(client.infer(sent)["actions"], expected(sent, 31 * number + k)):
                wrong.append(number)
        client.close()

    with serving(RowEngine(tiny(), batches=(4,), delay_s=0.002)) as running:
        threads = [threading.Thread(target=talk, args=(running, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        counted(running, answered=80)
        assert running.tally.most_clients == 8


def test_a_stop_answers_what_is_under_way_and_takes_nobody_new() -> None:
    engine = RowEngine(tiny(), delay_s=1.0)
    with serving(engine) as running, raw(running) as idle, raw(running) as busy:
        idle.recv()
        busy.recv()
        busy.send(pack(libero()))
        time.sleep(0.3)
        running.stop()
        assert unpack(busy.recv())["actions"].shape == (10, 7)
        for connection in (idle, busy):
            with pytest.raises(ConnectionClosed) as caught:
                connection.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1001
        running.join()
        with pytest.raises(ConnectionRefusedError), raw(running):
            pass


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: robot\r\n"])
def test_a_stop_does_not_wait_for_who_connects_and_never_asks(said: bytes) -> None:
    """Such as a probe of the port: a handshake has ten seconds, as long as Docker waits for a stop."""
    with serving() as running, socket.create_connection(("127.0.0.1", running.port)) as silent:
        silent.sendall(said)
        assert get(running, "/healthz")[0] == 200
        running.stop()
        running.join()
        silent.settimeout(0)
        with contextlib.suppress(ConnectionError):
            # A socket that still waited for something would raise.
            assert silent.recv(1) == b""


def test_a_server_that_reads_nothing_holds_a_client_no_longer_than_its_patience() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told: list[socket.socket] = []

        def shake_hands() -> None:
            connection, _ = listener.accept()
            told.append(connection)
            protocol = ServerProtocol()
            while not (events := protocol.events_received()):
                protocol.receive_data(connection.recv(4096))
            assert isinstance(events[0], Request)
            protocol.send_response(protocol.accept(events[0]))
            protocol.send_binary(pack({}))
            for data in protocol.data_to_send():
                connection.sendall(data)

        thread = threading.Thread(target=shake_hands, daemon=True)
        thread.start()
        client = Client(f"ws://127.0.0.1:{listener.getsockname()[1]}", patience_s=1.0)
        try:
            # More than the buffers of both ends hold.
            with pytest.raises(TimeoutError):
                client.infer({"x": np.zeros(64 * 2**20, np.uint8)})
        finally:
            client.close()
            thread.join(20)
            for connection in told:
                connection.close()


def test_a_second_stop_waits_for_nothing() -> None:
    with serving(RowEngine(tiny(), delay_s=5.0)) as running, raw(running) as busy:
        busy.recv()
        busy.send(pack(libero()))
        time.sleep(0.2)
        began = time.monotonic()
        running.stop()
        running.stop()
        running.join()
        assert time.monotonic() - began < 4


def test_the_port_is_taken() -> None:
    with serving() as running, pytest.raises(HarnessError) as caught, serving(port=running.port):
        pass
    assert caught.value.code == "port-taken"
    with serving() as running, pytest.raises(HarnessError) as caught:
        listenable("127.0.0.1", running.port)
    assert caught.value.code == "port-taken"
    listenable("127.0.0.1", 0)
    listenable("localhost", 0)
    for host in ("192.0.2.1", "two..dots", "x" * 64):
        with pytest.raises(HarnessError):
            listenable(host, 0)


def test_more_clients_than_there_is_room_for_are_turned_away() -> None:
    with serving(max_clients=1) as running:
        first = Client(running.uri)
        with pytest.raises(InvalidStatus) as caught, raw(running):
            pass
        assert caught.value.response.status_code == 503
        assert b"--max-clients" in caught.value.response.body
        assert running.tally.turned_away == 1
        first.close()
        deadline = time.monotonic() + 10
        while running.tally.clients and time.monotonic() < deadline:
            time.sleep(0.02)
        assert Client(running.uri).infer(libero())["actions"].shape == (10, 7)


def test_metrics_are_prometheus_text_and_clients_come_under_any_path() -> None:
    with serving() as running:
        client = Client(running.uri)
        client.infer(libero())
        status, text, media = get(running, "/metrics")
        assert (status, media) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert 'harness_serve_requests_total{outcome="answered"} 1\n' in text
        assert 'harness_serve_stage_seconds{stage="total",quantile="0.99"}' in text
        assert "harness_serve_clients 1\n" in text
        names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
        assert all(name.startswith("harness_serve_") for name in names)
        assert get(running, "/other")[0] == 404
        # A proxy passes on the path under which it is reached; openpi's server takes any.
        assert Client(f"{running.uri}/robots/7").infer(libero())["actions"].shape == (10, 7)


def test_a_prompt_that_is_cut_is_counted_and_told_once() -> None:
    said: list[str] = []
    with serving(recipe=tiny(), warn=said.append) as running:
        client = Client(running.uri)
        client.infer(libero())
        assert (said, running.tally.prompts_cut) == ([], 0)
        for word in ("stack", "stack", "sort"):
            client.infer(libero(prompt=f"{word} " * 200))
        text = get(running, "/metrics")[1]
    assert "harness_serve_prompts_cut_total 3\n" in text
    limit = tiny().model.prompt_tokens
    assert len(said) == 1
    assert f"tokens and is cut to {limit}, as in training" in said[0]
    assert "train with --set model.prompt_tokens=" in said[0]
