"""The fast way for plain PNGs: the same pixels as Pillow's, and nothing that Pillow would have to judge."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.data import images
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
        np.testing.assert_array_equal(decode_plain(_save(image)), image)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16", "LA"])
def test_any_other_kind_is_left_to_pillow(mode: str) -> None:
    image = np.zeros((5, 4), np.uint16) if mode == "I;16" else _noise(1)
    buffer = io.BytesIO()
    (Image.fromarray(image) if mode == "I;16" else Image.fromarray(image).convert(mode)).save(buffer, format="PNG")
    assert decode_plain(buffer.getvalue()) is None
    assert images.decode(buffer.getvalue(), "test").shape[2] == 3


def test_a_chunk_that_could_change_colours_is_left_to_pillow() -> None:
    assert decode_plain(_save(_noise(1), dpi=(72, 72))) is None


def test_damage_is_left_to_pillow() -> None:
    data = _save(_noise(2))
    for damaged in (data[:-1], data[: len(data) // 2], data + b"x", data[:60] + bytes([data[60] ^ 1]) + data[61:], b"", data[:20]):
        assert decode_plain(damaged) is None


def test_a_header_that_claims_more_than_the_data_can_hold() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4000, 4000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    assert decode_plain(data) is None
    with pytest.raises(HarnessError) as caught:
        images.decode(data, "test")
    assert caught.value.code == "image-corrupt"


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(at=st.integers(0, 2000), value=st.integers(0, 255), cut=st.integers(0, 2000))
def test_changed_bytes_never_give_other_pixels(at: int, value: int, cut: int) -> None:
    image = _noise(3)
    data = bytearray(_save(image))
    data[at % len(data)] = value
    found = decode_plain(bytes(data[: len(data) - cut % 40]))
    if found is not None:
        np.testing.assert_array_equal(found, image)
