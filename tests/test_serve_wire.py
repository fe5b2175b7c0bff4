"""Tests that frames are read as strangers' bytes, and are openpi-client's own."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.serve.wire import FRAME_BYTES, pack, unpack
from tests.support.served import libero


def array(data: bytes, dtype: Any, shape: Any, **more: Any) -> bytes:
    body = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb({"x": body | {key.encode(): value for key, value in more.items()}})


def test_an_observation_comes_back_as_it_was() -> None:
    sent = libero() | {
        "seed": np.int64(3),
        "flag": np.True_,
        "half": np.float16(0.5),
        "nested": {"a": [1, 2.5]},
    }
    found = unpack(pack(sent))
    assert found.keys() == sent.keys()
    for key, value in sent.items():
        np.testing.assert_equal(found[key], value)
    assert found["observation/image"].dtype == np.uint8
    assert not found["observation/image"].flags.writeable


def test_frames_are_openpi_clients_own_bytes() -> None:
    theirs = pytest.importorskip("openpi_client.msgpack_numpy", reason="docker/lock/client.txt has it")
    sent = libero() | {"number": np.float32(2), "big": np.arange(6, dtype=">i4").reshape(2, 3)}
    assert pack(sent) == theirs.packb(sent)
    np.testing.assert_equal(theirs.unpackb(pack(sent)), unpack(theirs.packb(sent)))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "Unpack"),
        (b"\xc1", ""),
        (pack({"a": 1}) + b"x", "ExtraData"),
        (pack({"a": 1})[:-1], ""),
        (array(b"12345678", "<f8", [10**6, 10**6]), "8 bytes for an array"),
        (array(b"12345678", "<f8", [2**62, 4]), "shape"),
        (array(b"12345678", "<f8", [-1, -1]), "shape"),
        (array(b"12345678", "<f8", [True]), "shape"),
        (array(b"12345678", "<f8", [1.0]), "shape"),
        (array(b"12345678", "<f8", 1), "shape"),
        (array(b"12345678", "<f8", [1] * 9), "shape"),
        (array(b"12345678", "|O", [1]), "dtype"),
        (array(b"12345678", "|V8", [1]), "dtype"),
        (array(b"12345678", "<c8", [1]), "dtype"),
        (array(b"12345678", "<M8[s]", [1]), "dtype"),
        (array(b"12345678", "f8,f8", [1]), "dtype"),
        (array(b"12345678", [["a", "<f8"]], [1]), "dtype"),
        (array(b"12345678", "<f8", [1], more=1), "without its bytes"),
        (array("12345678", "<f8", [1]), "without its bytes"),  # type: ignore[arg-type]
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "Overflow"),
        (msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "|u1"}), "without its value"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}), "dtype"),
        (msgpack.packb({b"key": 1}), "of bytes"),
        (msgpack.packb({1: 1}), "key"),
        (b"\x82\xa1a\x01\xa1a\x02", "twice"),
        (msgpack.packb(msgpack.ExtType(5, b"abc")), ""),
        (msgpack.packb(msgpack.Timestamp(1)), ""),
        (b"\x91" * 100 + b"\xc0", "nested"),
        (b"\x91" * 5000 + b"\xc0", ""),
        (b"\x81\xa1a" * 5000 + b"\xc0", ""),
        (b"\xdd\xff\xff\xff\xff", ""),
        (b"\xdf\xff\xff\xff\xff", ""),
        (b"\xc6\xff\xff\xff\xff", ""),
        (msgpack.packb("\ud800", unicode_errors="surrogatepass"), ""),
        (b"cos\nsystem\n(S'true'\ntR.", ""),
    ],
)
def test_a_forged_frame_is_refused_in_one_sentence(frame: bytes, says: str) -> None:
    with pytest.raises(HarnessError) as caught:
        unpack(frame)
    assert caught.value.code == "frame-invalid"
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_small_frame_takes_little_memory() -> None:
    """A list's length stands before it; a chain of long lists would take gigabytes."""
    tracemalloc.start()
    try:
        for head in (b"\xdd\x00\x0f\xff\xff", b"\xdc\x0f\xff", b"\xde\x00\xff"):
            with pytest.raises(HarnessError):
                unpack(head * 900)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_a_frame_beyond_the_limit_is_refused() -> None:
    with pytest.raises(HarnessError) as caught:
        unpack(b"\x00" * (FRAME_BYTES + 1))
    assert caught.value.code == "frame-too-large"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_a_refusal(frame: bytes) -> None:
    # Any other exception fails the test.
    with contextlib.suppress(HarnessError):
        unpack(frame)


def test_what_has_no_form_is_not_packed() -> None:
    for value in (np.array([object()]), np.array([1j]), np.zeros(1, "V8")):
        with pytest.raises(ValueError, match="has no form"):
            pack(value)
    with pytest.raises(TypeError, match="has no form"):
        pack({1, 2})
