"""Frames of openpi's protocol: msgpack in which an array is a map with three marked keys.

A frame is a stranger's. It is read without pickle, and no number in it decides how much memory is taken: an
array is a view of the frame's own bytes.

Source: openpi packages/openpi-client/src/openpi_client/msgpack_numpy.py, commit 15a9616, for the form.
"""

from __future__ import annotations

import math
import re
from typing import Any, NoReturn

import msgpack
import numpy as np

from harness.errors import HarnessError
from harness.received.text import one_line
from harness.units import MIB, format_bytes

# Pictures of 2 cameras have 0.3 MB. Source of the limit: three raw camera pictures of 1280 × 960 fit.
FRAME_BYTES = 16 * MIB
_DEEPEST, _MOST_ITEMS, _MOST_KEYS, _MOST_AXES = 8, 4096, 256, 8
_ARRAY, _NUMBER = b"__ndarray__", b"__npgeneric__"
# Numbers and truth values. Objects, records, complex numbers and times are in no observation.
_NUMBERS = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")
# One text: numpy's form of a prompt.
_TEXT = re.compile(r"[<>|=]?[US]\d{1,6}")
_PLAIN = (str, int, float, bool, bytes, type(None), np.ndarray, np.generic)


def unpack(frame: bytes) -> Any:
    """The value of a frame: maps, lists, texts, numbers, and read-only arrays that are views of the frame.

    Raises: HarnessError "frame-invalid", "frame-too-large".
    """
    if len(frame) > FRAME_BYTES:
        raise too_large(len(frame))
    try:
        value = msgpack.unpackb(
            frame,
            object_pairs_hook=_mapping,
            max_array_len=_MOST_ITEMS,
            max_map_len=_MOST_KEYS,
            max_ext_len=0,
        )
        _check_depth(value)
    except HarnessError:
        raise
    except RecursionError:
        _refuse("nested too deeply", f"at most {_DEEPEST} levels")
    except Exception as error:
        # The library raises kinds of its own, and those of whatever a forged value meets.
        _refuse(f"{type(error).__name__}: {error}", "one msgpack value, arrays as openpi-client packs them")
    return value


def pack(value: Any) -> bytes:
    """The frame of a value: maps, lists, texts, numbers and arrays.

    Raises: ValueError for an array of objects, records or complex numbers; TypeError for another value.
    """
    packed: bytes = msgpack.packb(value, default=_marked)
    return packed


def too_large(size: int) -> HarnessError:
    """The refusal of a frame of so many bytes."""
    return HarnessError(
        "frame-too-large",
        "the frame is larger than any observation",
        got=format_bytes(size),
        need=f"at most {format_bytes(FRAME_BYTES)}",
        fix="resize the pictures before sending, for example to 224 × 224",
    )


def _marked(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"{type(value).__name__} has no form in a frame")
    if value.dtype.kind in "VOc":
        raise ValueError(f"{value.dtype} has no form in a frame")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {_NUMBER: True, b"data": value.item(), b"dtype": value.dtype.str}


def _mapping(pairs: list[tuple[Any, Any]]) -> Any:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("a key twice in one map", "each key once")
    if _ARRAY in found:
        return _array(found)
    if _NUMBER in found:
        return _number(found)
    if any(isinstance(key, bytes) for key in found):
        _refuse(f"the key {_short(next(iter(found)))} of bytes", "keys that are text")
    return found


def _array(found: dict[Any, Any]) -> np.ndarray:
    data, shape = found.get(b"data"), found.get(b"shape")
    if found.keys() != {_ARRAY, b"data", b"dtype", b"shape"} or not isinstance(data, bytes):
        _refuse("an array without its bytes, dtype and shape", "data, dtype and shape of each array")
    dtype = _dtype(found[b"dtype"])
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_AXES
        or any(type(n) is not int or not 0 <= n <= FRAME_BYTES for n in shape)
    ):
        _refuse(f"an array of shape {_short(shape)}", f"at most {_MOST_AXES} axes of whole numbers")
    if math.prod(shape) * dtype.itemsize != len(data):
        _refuse(
            f"{len(data)} bytes for an array of shape {tuple(shape)} of {dtype}",
            f"{_short(math.prod(shape) * dtype.itemsize)} bytes",
        )
    return np.ndarray(shape, dtype, data)


def _number(found: dict[Any, Any]) -> Any:
    data = found.get(b"data")
    if found.keys() != {_NUMBER, b"data", b"dtype"} or not isinstance(data, str | bytes | int | float):
        _refuse("a number without its value and dtype", "data and dtype of each number")
    dtype = _dtype(found[b"dtype"])
    if isinstance(data, str | bytes):
        return data
    if dtype.kind in "US":
        _refuse(f"the number {_short(data)} as {dtype}", "a text")
    return dtype.type(data)


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not (_NUMBERS.fullmatch(name) or _TEXT.fullmatch(name)):
        _refuse(f"an array of dtype {_short(name)}", "whole numbers, floats, truth values or a text")
    return np.dtype(name)


def _check_depth(value: Any) -> None:
    """Checks what the hooks do not see: levels of lists, and kinds that msgpack has beside ours."""
    todo = [(value, 1)]
    while todo:
        one, depth = todo.pop()
        if isinstance(one, dict | list):
            if depth > _DEEPEST:
                _refuse("nested too deeply", f"at most {_DEEPEST} levels")
            todo += [(child, depth + 1) for child in (one.values() if isinstance(one, dict) else one)]
        elif not isinstance(one, _PLAIN):
            _refuse(f"a value of kind {type(one).__name__}", "numbers, texts, lists, maps and arrays")


def _short(value: Any) -> str:
    """A stranger's value in a sentence. Of a long one only its beginning is formatted."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number beyond 64 bits"
    if isinstance(value, list):
        return f"({', '.join(_short(one) for one in value[:8])}{', …' if len(value) > 8 else ''})"
    return one_line(repr(value[:60] if isinstance(value, str | bytes) else value)[:80])


def _refuse(got: str, need: str) -> NoReturn:
    raise HarnessError(
        "frame-invalid",
        "the frame cannot be read",
        got=one_line(got[:200]),
        need=need,
        fix="send what openpi_client.msgpack_numpy.packb makes of a dict of arrays, texts and numbers",
    )
