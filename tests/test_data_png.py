"""Tests the fast decoder for plain PNGs: its pixels equal Pillow's, and it leaves unclear files to Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.data import images
from harness.data.images import MAX_PIXELS
from harness.data.png import decode_plain
from harness.errors import HarnessError


def _save(image: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def _noise(seed: int, height: int = 33, width: int = 47) -> np.ndarray:
    """A gradient with noise, so that the encoder uses more than one filter."""
    ramp = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, width, 3))
    return (ramp + np.random.default_rng(seed).integers(0, 55, (height, width, 3))).astype(np.uint8)


def test_one_picture_after_another_is_its_own() -> None:
    """A codec that keeps state between pictures must not mix them, also when their sizes differ."""
    for seed in range(6):
        image = _noise(seed, height=33 + seed % 2)
        np.testing.assert_array_equal(decode_plain(_save(image), MAX_PIXELS), image)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_any_other_kind_is_left_to_pillow(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(_noise(1)).convert(mode).save(buffer, format="PNG")
    assert decode_plain(buffer.getvalue(), MAX_PIXELS) is None
    assert images.decode(buffer.getvalue(), "test").shape[2] == 3


@pytest.mark.parametrize("look", [images.decode, images.check_image])
def test_one_channel_of_16_bits_is_refused_and_never_made_white(look: Callable[[bytes, str], object]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 4), 900, np.uint16)).save(buffer, format="PNG")
    assert decode_plain(buffer.getvalue(), MAX_PIXELS) is None
    with pytest.raises(HarnessError) as caught:
        look(buffer.getvalue(), "test")
    assert caught.value.code == "image-too-deep"


def test_a_chunk_that_could_change_colours_is_left_to_pillow() -> None:
    assert decode_plain(_save(_noise(1), dpi=(72, 72)), MAX_PIXELS) is None


def test_damage_is_left_to_pillow() -> None:
    data = _save(_noise(2))
    for damaged in (
        data[:-1],
        data[: len(data) // 2],
        data + b"x",
        data[:60] + bytes([data[60] ^ 1]) + data[61:],
        b"",
        data[:20],
    ):
        assert decode_plain(damaged, MAX_PIXELS) is None


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _made(width: int, height: int, *data: bytes) -> bytes:
    """A PNG of these data chunks, with every checksum right."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + b"".join(_chunk(b"IDAT", body) for body in data)
        + _chunk(b"IEND", b"")
    )


def test_a_header_that_claims_more_than_the_data_can_hold() -> None:
    data = _made(4000, 4000, zlib.compress(bytes(100)))
    assert decode_plain(data, MAX_PIXELS) is None
    with pytest.raises(HarnessError) as caught:
        images.decode(data, "test")
    assert caught.value.code == "image-corrupt"


def test_data_that_holds_more_than_the_header_claims_is_never_made() -> None:
    """200 MB of zeros in 200 kB, behind the header of a picture of 4 × 4."""
    assert decode_plain(_made(4, 4, zlib.compress(bytes(200_000_000), 1)), MAX_PIXELS) is None


def test_a_larger_picture_than_asked_for_is_left_alone() -> None:
    assert decode_plain(_save(_noise(1)), 33 * 47) is not None
    assert decode_plain(_save(_noise(1)), 33 * 47 - 1) is None


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("cuts", [1, 3])
def test_every_filter_and_any_number_of_data_chunks(kind: int, cuts: int) -> None:
    """Every row with one filter, over random bytes: whatever they decode to, Pillow says the same."""
    rows = b"".join(bytes([kind]) + np.random.default_rng(row).bytes(3 * 29) for row in range(17))
    deflated = zlib.compress(rows)
    size = -(-len(deflated) // cuts)
    data = _made(29, 17, *(deflated[at : at + size] for at in range(0, len(deflated), size)))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode_plain(data, MAX_PIXELS), np.asarray(image))


def test_a_filter_that_does_not_exist_is_left_to_pillow() -> None:
    rows = b"".join(bytes([5]) + bytes(12) for _ in range(4))
    assert decode_plain(_made(4, 4, zlib.compress(rows)), MAX_PIXELS) is None


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(at=st.integers(0, 2000), value=st.integers(0, 255), cut=st.integers(0, 2000))
def test_changed_bytes_never_give_other_pixels(at: int, value: int, cut: int) -> None:
    image = _noise(3)
    data = bytearray(_save(image))
    data[at % len(data)] = value
    found = decode_plain(bytes(data[: len(data) - cut % 40]), MAX_PIXELS)
    if found is not None:
        np.testing.assert_array_equal(found, image)
