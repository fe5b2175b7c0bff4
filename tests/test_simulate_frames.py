"""Tests that frames carry messages and arrays unchanged, and that garbage is named."""

from __future__ import annotations

import io
import json
import os
import threading
from typing import Any

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.simulate import frames, record


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + text + data


def refused(data: bytes) -> str:
    with pytest.raises(HarnessError) as caught:
        frames.receive(io.BytesIO(data))
    assert caught.value.fix
    return caught.value.code


def test_a_message_and_its_arrays_arrive_as_they_were_sent() -> None:
    random = np.random.default_rng(0)
    arrays = {
        "image": random.integers(0, 256, (224, 224, 3), np.uint8)[::-1, ::-1],
        "state": random.normal(size=8),
        "actions": random.normal(size=(10, 7)).astype(">f4"),
        "none": np.zeros((0, 7)),
        "scalar": np.asarray(np.int64(-(2**62))),
    }
    file = io.BytesIO()
    frames.send(file, {"is": "query", "number": 3, "prompt": "put the bowl on the plate – ✓"}, arrays)
    frames.send(file, {"do": "stop"})
    file.seek(0)
    got = frames.receive(file)
    assert got is not None
    message, received = got
    assert message == {"is": "query", "number": 3, "prompt": "put the bowl on the plate – ✓"}
    assert list(received) == list(arrays)
    for name, array in arrays.items():
        assert received[name].dtype == array.dtype.newbyteorder("=")
        assert received[name].shape == array.shape
        np.testing.assert_array_equal(received[name], array)
        assert received[name].flags.writeable or not array.size
    assert frames.receive(file) == ({"do": "stop"}, {})
    assert frames.receive(file) is None


def test_a_frame_crosses_an_unbuffered_pipe_in_many_pieces() -> None:
    read, write = os.pipe()
    array = np.arange(300_000, dtype=np.float64)
    with os.fdopen(read, "rb", buffering=0) as source, os.fdopen(write, "wb", buffering=0) as sink:
        thread = threading.Thread(target=frames.send, args=(sink, {"do": "act"}, {"actions": array}))
        thread.start()
        got = frames.receive(source)
        thread.join()
    assert got is not None
    np.testing.assert_array_equal(got[1]["actions"], array)


def test_an_end_inside_a_frame_is_told_from_an_end_between_two() -> None:
    file = io.BytesIO()
    frames.send(file, {"is": "query"}, {"state": np.ones(8)})
    whole = file.getvalue()
    assert frames.receive(io.BytesIO(b"")) is None
    assert {refused(whole[:n]) for n in range(1, len(whole))} == {"frame-cut"}


@pytest.mark.parametrize(
    "header",
    [
        b"not JSON",
        b"\xff\xfe",
        b"[1, 2]",
        b"{}",
        b'{"is": 3}',
        b'{"is": "query", "x": NaN}',
        b"[" * 100_000,
        {"is": "query", "arrays": {}},
        {"is": "query", "arrays": [7]},
        {"is": "query", "arrays": [{"name": "a", "dtype": "uint8"}]},
        {"is": "query", "arrays": [{"name": "a", "dtype": "object", "shape": [1]}]},
        {"is": "query", "arrays": [{"name": "a", "dtype": ["uint8"], "shape": [1]}]},
        {"is": "query", "arrays": [{"name": 1, "dtype": "uint8", "shape": [1]}]},
        {"is": "query", "arrays": [{"name": "a", "dtype": "uint8", "shape": [-1]}]},
        {"is": "query", "arrays": [{"name": "a", "dtype": "uint8", "shape": [1.5]}]},
        {"is": "query", "arrays": [{"name": "a", "dtype": "uint8", "shape": [True]}]},
        {"is": "query", "arrays": [{"name": "a", "dtype": "uint8", "shape": [10**18, 0]}]},
        {"is": "query", "arrays": [{"name": "a", "dtype": "uint8", "shape": [1] * 9}]},
        {"is": "query", "arrays": [{"name": "a", "dtype": "uint8", "shape": [0]}] * 2},
    ],
    ids=repr,
)
def test_what_is_no_frame_is_named(header: Any) -> None:
    assert refused(raw(header)) == "frame-broken"


@pytest.mark.parametrize(
    "data",
    [
        b"WARNING: robosuite: no private macro file",
        b"\xff\xff\xff\xff",
        raw({"is": "q", "arrays": [{"name": "a", "dtype": "float64", "shape": [10**6, 10**3]}]}),
        raw({"is": "q", "arrays": [{"name": str(n), "dtype": "uint8", "shape": [0]} for n in range(17)]}),
    ],
    ids=["a library's print", "a forged length", "a forged shape", "too many arrays"],
)
def test_lengths_are_bounded_before_anything_is_allocated(data: bytes) -> None:
    assert refused(data) == "frame-too-large"


def test_the_longest_recorded_episode_can_be_sent() -> None:
    pictures, numbers = 2 * 256 * 256 * 3, 4 * (8 + 7)
    assert record.MOST * (pictures + numbers) <= frames.ARRAY_BYTES


def test_a_sender_cannot_send_what_a_receiver_would_refuse() -> None:
    for message, arrays in (
        ({"x": 1}, {}),
        ({"is": "query", "arrays": []}, {}),
        ({"is": "query", "x": float("nan")}, {}),
        ({"is": "query"}, {"a": np.array([object()])}),
        ({"is": "query"}, {"a": np.zeros(1, np.complex64)}),
    ):
        with pytest.raises(ValueError, match=r"text|array|JSON"):
            frames.send(io.BytesIO(), message, arrays)
    for message, arrays in (
        ({"is": "x" * frames.HEADER_BYTES}, {}),
        ({"is": "query"}, {"a": np.zeros(frames.ARRAY_BYTES + 1, np.uint8)}),
        ({"is": "query"}, {str(n): np.zeros(1) for n in range(frames.ARRAYS + 1)}),
    ):
        with pytest.raises(HarnessError):
            frames.send(io.BytesIO(), message, arrays)
