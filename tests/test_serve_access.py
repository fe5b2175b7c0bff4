"""Tests who may ask: keys, addresses, pages; and what is recorded, without the key."""

from __future__ import annotations

import socket
from pathlib import Path

import msgpack
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from harness.errors import HarnessError
from harness.serve.access import Key, check_open, is_loopback, listenable, read_key
from harness.serve.client import Client
from harness.serve.record import Recorder
from harness.serve.wire import unpack
from tests.support.served import libero, serving
from tests.test_serve_server import get, raw

KEY = "a-key-of-many-characters"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Api-Key wrong"}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": KEY}],
)
def test_without_the_key_nobody_is_served(headers: dict[str, str]) -> None:
    with serving(key=Key(KEY)) as running:
        with pytest.raises(InvalidStatus) as caught, raw(running, additional_headers=headers):
            pass
        assert caught.value.response.status_code == 401
        assert get(running, "/metrics", **headers)[0] == 401
        assert get(running, "/healthz", **headers)[0] == 200
        assert Client(running.uri, KEY).infer(libero())["actions"].shape == (10, 7)
        assert running.tally.unauthorized == 2


def test_keys_are_compared_as_hashes_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[int, int]] = []

    def compared(a: bytes, b: bytes) -> bool:
        lengths.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("hmac.compare_digest", compared)
    key = Key(KEY)
    assert [key.opens([f"Api-Key {one}"]) for one in (KEY, KEY[:3], "x" * 5000, "é")] == [True, *[False] * 3]
    assert not key.opens([])
    assert not key.opens([f"Api-Key {KEY}"] * 2)
    assert set(lengths) == {(32, 32)}
    assert len(lengths) == 6


def test_a_page_of_a_browser_is_not_served() -> None:
    with (
        serving() as running,
        pytest.raises(InvalidStatus) as caught,
        raw(running, origin="https://example.com"),
    ):
        pass
    assert caught.value.response.status_code == 403


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.3", False),
        ("robot.local", False),
    ],
)
def test_another_host_than_loopback_needs_a_key_or_the_word(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    check_open(host, Key(KEY), without_key=False)
    check_open(host, None, without_key=True)
    if not loopback:
        with pytest.raises(HarnessError) as caught:
            check_open(host, None, without_key=False)
        assert caught.value.code == "key-needed"
    with pytest.raises(HarnessError) as caught:
        check_open(host, Key(KEY), without_key=True)
    assert caught.value.code == "key-and-without-key"


def test_a_key_is_the_first_line_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\r\nmore\n")
    assert read_key(tmp_path / "key").opens([f"Api-Key {KEY}"])
    for text in ("", "short\n", "two words of a key\n", "nicht-ASCII-ä-ä-ä-ä\n", "x" * 5000):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(HarnessError) as caught:
            read_key(tmp_path / "bad")
        assert caught.value.code in ("api-key-invalid", "file-too-large")
        assert "nicht" not in str(caught.value)
    with pytest.raises(HarnessError) as caught:
        read_key(tmp_path / "none")
    assert caught.value.code == "api-key-unreadable"


def test_what_was_asked_and_answered_is_recorded_without_the_key(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "kept")
    with serving(recorder=recorder, key=Key(KEY)) as running:
        client = Client(running.uri, KEY)
        client.infer(libero(1))
        with pytest.raises(HarnessError):
            client.infer({})
        client.close()
    recorder.close()
    data = recorder.path.read_bytes()
    assert KEY.encode() not in data
    first, second = msgpack.Unpacker(recorder.path.open("rb"))
    np.testing.assert_equal(unpack(first["asked"])["observation/image"], libero(1)["observation/image"])
    assert unpack(first["answered"])["actions"].shape == (10, 7)
    assert "observation-key-missing" in second["refused"]
    assert recorder.path.stat().st_mode & 0o077 == 0
    assert recorder.summary().endswith(": 2 requests")


def test_a_recording_ends_at_its_limit_and_counts_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "record-old.msgpack").write_bytes(b"x" * 1000)
    recorder = Recorder(tmp_path, limit_bytes=1500)
    told = [recorder.add(1, b"x" * 100, b"y") for _ in range(10)]
    recorder.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1500
    # It is told once, and counts what is in the file.
    assert [each for each in told if each] == [recorder.full]
    kept = len(list(msgpack.Unpacker(recorder.path.open("rb"))))
    assert 0 < kept == told.index(recorder.full)
    assert f": {kept} requests; then recording stopped" in recorder.summary()
    (tmp_path / "file").write_text("")
    with pytest.raises(HarnessError) as caught:
        Recorder(tmp_path / "file")
    assert caught.value.code == "record-unwritable"


def test_a_key_that_this_user_may_not_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a key").write_text(KEY)

    def shut(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("harness.serve.access.read_received", shut)
    with pytest.raises(HarnessError) as caught:
        read_key(tmp_path / "a key")
    assert "chmod u+rwX" in caught.value.fix
    assert "token_urlsafe" not in caught.value.fix


def test_a_port_that_is_taken_on_one_address_of_a_host_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as running:
        hosts = ("127.0.0.2", "127.0.0.1")
        both = [socket.getaddrinfo(host, running.port, type=socket.SOCK_STREAM)[0] for host in hosts]
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", lambda *_, **__: both)
            with pytest.raises(HarnessError, match="port-taken"):
                listenable("two", running.port)


def test_an_address_of_a_host_that_this_machine_has_not_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So is ::1, which `localhost` is called in a container without IPv6."""
    hosts = ("192.0.2.1", "127.0.0.1")
    found = [socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0] for host in hosts]
    looked_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: found if host == "two" else looked_up(host, *rest, **more),
    )
    assert listenable("two", 0) == ["127.0.0.1"]
    with serving(host="two") as running:
        assert running.port
