"""Camera images as uint8 [H, W, 3], from bytes in parquet and from image files. Videos: `video.py`."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np

from harness.data.png import Chunk, chunks, decode_plain, is_deep_grey, is_png, size_of
from harness.errors import HarnessError

# 4096 × 4096: more than any robot camera gives, and 48 MiB when decoded.
MAX_PIXELS = 1 << 24
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Pillow's modes of one channel of more than 8 bits. Pillow's conversion to RGB clips at 255, so a depth image
# would become all white.
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
# The tag of EXIF that says how a camera was held. LeRobot's pictures are upright. Source:
# huggingface/datasets src/datasets/features/image.py `decode_example`.
_ORIENTATION = 0x0112
_ON_THEIR_SIDE = (5, 6, 7, 8)
# What other formats begin with, from a byte on. They are named, not opened: each decoder more is one more
# that a stranger's file can attack.
_OTHERS = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"GIF8", "GIF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"P5", "PGM"),
    (0, b"P6", "PPM"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"\x93NUMPY", "NumPy"),
)


def decode(data: bytes, where: str) -> np.ndarray:
    """The image in `data` as RGB, uint8 [H, W, 3]. An image that is too large is refused before decoding.

    Raises: HarnessError "image-corrupt", "image-too-deep" or "image-too-large".
    """
    from PIL import Image, ImageOps

    plain = decode_plain(data, MAX_PIXELS)
    if plain is not None:
        return plain
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise too_large(where, image.width, image.height)
            if image.mode in _DEEP:
                raise too_deep(where)
            upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
            # [H, W, 3]
            return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))
    except HarnessError:
        raise
    except Image.DecompressionBombError as error:
        raise too_large(where, None, None) from error
    # Pillow's decoders raise nearly anything on damaged input.
    except Exception as error:
        raise unreadable(data, where, error) from error


def _orientation(image: Any) -> int:
    """How the camera was held, by the picture's EXIF; 1 is upright, and what broken EXIF says."""
    try:
        said = image.getexif().get(_ORIENTATION, 1)
    # The parser raises nearly anything on damaged EXIF, and the picture itself may be whole.
    except Exception:
        return 1
    return said if isinstance(said, int) else 1


def _exif_of_png(data: bytes, found: list[Chunk]) -> int:
    """How the camera was held, by a PNG's chunk of EXIF, as `_orientation` says it."""
    from PIL import Image

    exif = next((data[chunk.start : chunk.end] for chunk in found if chunk.kind == b"eXIf"), None)
    if exif is None:
        return 1
    try:
        said = Image.Exif()
        said.load(b"Exif\0\0" + exif)
        turn = said.get(_ORIENTATION, 1)
    except Exception:
        return 1
    return turn if isinstance(turn, int) else 1


def check_image(data: bytes, where: str) -> tuple[int, int]:
    """Height and width of an encoded image. Checks its structure without decoding it.

    Raises: HarnessError "image-corrupt", "image-too-deep" or "image-too-large".
    """
    try:
        width, height = _size(data)
        if 0 < width * height <= MAX_PIXELS and is_png(data):
            found = chunks(data)
            if is_deep_grey(data):
                raise too_deep(where)
            if _exif_of_png(data, found) in _ON_THEIR_SIDE:
                width, height = height, width
    except HarnessError:
        raise
    # Pillow's parsers raise nearly anything on damaged input.
    except Exception as error:
        raise unreadable(data, where, error) from error
    if width * height > MAX_PIXELS:
        raise too_large(where, width, height)
    return height, width


def _size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    if is_png(data):
        return size_of(data)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # The end marker cannot occur inside a JPEG's compressed data.
            if image.format == "JPEG" and b"\xff\xd9" not in data:
                raise ValueError(f"it ends after {len(data)} bytes without its end marker")
            width, height = image.size
            return (height, width) if _orientation(image) in _ON_THEIR_SIDE else (width, height)
    except Image.DecompressionBombError:
        # More than Pillow would open is more than MAX_PIXELS.
        return MAX_PIXELS, MAX_PIXELS


def begins_as(data: bytes, formats: Iterable[tuple[int, bytes, str]]) -> str | None:
    """The name of the first of `formats` (from which byte on, its mark, its name) whose mark is there."""
    return next((name for at, mark, name in formats if data[at : at + len(mark)] == mark), None)


def unreadable(data: bytes, where: str, error: Exception) -> HarnessError:
    """The error for data that are not a complete image of a format that is read."""
    from PIL import UnidentifiedImageError

    need = "a whole " + ", ".join(_FORMATS) + " image"
    other = begins_as(data, _OTHERS)
    if other is not None:
        return HarnessError(
            "image-corrupt",
            f"{where}: the image is of a format that is not read",
            got=other,
            need=need,
            fix="write the pictures of this feature as PNG, in a copy of the dataset",
        )
    # Pillow names no format, but an address in memory.
    unknown = isinstance(error, UnidentifiedImageError)
    return HarnessError(
        "image-corrupt",
        f"{where}: the image cannot be decoded",
        got=f"{len(data):,} bytes that begin with {data[:8].hex(' ')}" if unknown else str(error)[:200],
        need=need,
        fix=(
            "write the pictures as PNG, in a copy of the dataset, if these are raw pixels; else copy the"
            " image again from the original recording"
            if unknown
            else "copy the image again from the original recording"
        ),
    )


def too_large(where: str, width: int | None, height: int | None) -> HarnessError:
    """The error for an image that is too large to decode."""
    return HarnessError(
        "image-too-large",
        f"{where}: the image is too large to be a camera's",
        got="over Pillow's limit" if width is None else f"{width} × {height}",
        need=f"at most {MAX_PIXELS} pixels",
        fix="resize the dataset's images",
    )


def too_deep(where: str) -> HarnessError:
    """The error for an image of one channel of more than 8 bits, such as depth.

    Read as a colour image it would be white nearly everywhere.
    """
    return HarnessError(
        "image-too-deep",
        f"{where}: the image has one channel of more than 8 bits, as depth has; every value above 255 would"
        " become white",
        got="16 bits or more, one channel",
        need="a camera's image, 8 bits a channel",
        fix=(
            "map a colour camera instead (data.cameras), or write the depth as an 8-bit image that spans its"
            " range"
        ),
    )
