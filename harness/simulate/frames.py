"""Messages between `harness evaluate` and a process of the simulator: one JSON object and arrays a frame.

A frame is 4 bytes, the length of the header, big endian; the header, a JSON object in UTF-8 whose key
"arrays" lists {"name", "dtype", "shape"}; then the bytes of those arrays, in C order, little endian, in the
order of the list. Nothing else than numbers can be sent, and each length has a limit before it is believed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, NoReturn, Protocol, cast

import numpy as np

from harness.errors import HarnessError

Array = np.ndarray[Any, np.dtype[Any]]
Message = dict[str, Any]

# The largest header lists the observations of one episode: 64 characters for each of 1,000 queries.
HEADER_BYTES = 1 << 20
# A query has 3 arrays. Its pictures have 301,056 bytes; two raw pictures of 1,024 pixels have 6 MB.
ARRAYS = 16
ARRAY_BYTES = 64 << 20
DIMENSIONS = 8
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "int64", "float32", "float64")}


def own_streams() -> tuple[BinaryIO, BinaryIO]:
    """(stdin, stdout) of this process for frames alone: libraries read nothing, and print to stderr."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return source, sink


class Reads(Protocol):
    """A binary file to read from."""

    def read(self, size: int, /) -> bytes | None: ...


class Writes(Protocol):
    """A binary file to write to."""

    def write(self, data: bytes, /) -> int | None: ...

    def flush(self) -> None: ...


def send(file: Writes, message: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
    """Write one frame and flush it.

    The message has a key "is" (an answer) or "do" (an order), and no key "arrays"; its values are what JSON
    has, without NaN. Raises: ValueError when that does not hold or an array has another dtype than DTYPES
    names; HarnessError "frame-too-large"; OSError when the other end is gone.
    """
    arrays = {name: np.asarray(array) for name, array in (arrays or {}).items()}
    if "arrays" in message or not isinstance(message.get("is", message.get("do")), str):
        raise ValueError('a message has a text "is" or "do", and no key "arrays"')
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise ValueError(f"array {name} is {array.dtype}, not one of {', '.join(DTYPES)}")
    listed = [{"name": n, "dtype": a.dtype.name, "shape": list(a.shape)} for n, a in arrays.items()]
    header = json.dumps({**message, "arrays": listed}, allow_nan=False).encode()
    size = sum(array.nbytes for array in arrays.values())
    if len(header) > HEADER_BYTES or len(arrays) > ARRAYS or size > ARRAY_BYTES:
        raise _too_large(f"a header of {len(header)} bytes and {len(arrays)} arrays of {size} bytes")
    parts = [len(header).to_bytes(4, "big"), header]
    parts += [array.astype(DTYPES[array.dtype.name], copy=False).tobytes() for array in arrays.values()]
    _write_all(file, b"".join(parts))
    file.flush()


def receive(file: Reads) -> tuple[Message, dict[str, Array]] | None:
    """The next message and its arrays, by name; None where the file ends between two frames.

    Arrays are copies in native byte order, and may be written to. Raises: HarnessError "frame-broken" when
    what was read is no frame, "frame-cut" when the file ends inside one, "frame-too-large".
    """
    start = _read(file, 4)
    if not start:
        return None
    length = int.from_bytes(_whole(start, 4), "big")
    if length > HEADER_BYTES:
        # Text that a library printed into the pipe looks like a huge length: show what was read.
        raise _too_large(f"a header of {length} bytes (the frame begins with {start!r})")
    message = _header(_whole(_read(file, length), length))
    wanted = _listed(message.pop("arrays", []))
    arrays = {}
    for name, dtype, shape in wanted:
        size = math.prod(shape) * dtype.itemsize
        data = _whole(_read(file, size), size)
        arrays[name] = np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    return message, arrays


def _header(data: bytes) -> Message:
    try:
        message = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _broken(f"its header is not JSON: {error}", data[:80])
    if not isinstance(message, dict):
        _broken("its header is not a JSON object", data[:80])
    if not isinstance(message.get("is", message.get("do")), str):
        _broken('its header has no text "is" or "do"', data[:80])
    return cast(Message, message)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _listed(listed: object) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Name, dtype and shape of each array a header lists, all within the limits."""
    if not isinstance(listed, list):
        _broken('"arrays" is not a list', listed)
    if len(listed) > ARRAYS:
        raise _too_large(f"{len(listed)} arrays")
    wanted: dict[str, tuple[str, np.dtype[Any], tuple[int, ...]]] = {}
    for entry in listed:
        if not isinstance(entry, dict) or set(entry) != {"name", "dtype", "shape"}:
            _broken("an array has other keys than name, dtype, shape", entry)
        name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
        if not isinstance(name, str) or name in wanted:
            _broken("an array's name is no text, or there twice", name)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            _broken(f"the array {name!r} has another dtype than {', '.join(DTYPES)}", dtype)
        if not isinstance(shape, list) or len(shape) > DIMENSIONS or not all(map(_is_size, shape)):
            _broken(f"the array {name!r} has no shape of at most {DIMENSIONS} sizes", shape)
        wanted[name] = (name, DTYPES[dtype], tuple(shape))
    size = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in wanted.values())
    if size > ARRAY_BYTES:
        raise _too_large(f"arrays of {size} bytes")
    return list(wanted.values())


def _is_size(number: object) -> bool:
    # Zero beside a huge size would make an array that numpy cannot hold, of no bytes: bound each alone.
    return type(number) is int and 0 <= number <= ARRAY_BYTES


def _read(file: Reads, size: int) -> bytes:
    """`size` bytes, or fewer where the file ends. A pipe gives what is there, so it is asked again."""
    parts: list[bytes] = []
    while size:
        data = file.read(size)
        if not data:
            break
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _write_all(file: Writes, data: bytes) -> None:
    """Write all of it: an unbuffered pipe may take less than it was given."""
    view = memoryview(data)
    while view:
        written = file.write(cast(bytes, view))
        view = view[written or 0 :]


def _whole(data: bytes, size: int) -> bytes:
    if len(data) == size:
        return data
    raise HarnessError(
        "frame-cut",
        "the process at the other end of the pipe ended in the middle of a message",
        got=f"{len(data)} bytes",
        need=f"{size} bytes",
        fix="read the last lines of the simulator's own log, then run the same command again: finished"
        " episodes are kept",
    )


def _too_large(got: str) -> HarnessError:
    return HarnessError(
        "frame-too-large",
        "a message between the evaluation and the simulator is larger than any they send",
        got=got,
        need=f"a header of at most {HEADER_BYTES} bytes, at most {ARRAYS} arrays, {ARRAY_BYTES} bytes in all",
        fix="use the same version of the harness at both ends; nothing else may write to the simulator's"
        " standard output",
    )


def _broken(why: str, got: object) -> NoReturn:
    raise HarnessError(
        "frame-broken",
        f"a message between the evaluation and the simulator cannot be read: {why}",
        got=repr(got)[:200],
        need="a frame as harness/simulate/frames.py describes it",
        fix="use the same version of the harness at both ends; nothing else may write to the simulator's"
        " standard output",
    )
