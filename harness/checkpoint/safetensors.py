"""Reads and writes safetensors files. Nothing is unpickled, and only what is asked for is read.

    8 bytes, the header's length as a little-endian number; the header, JSON; then the tensors' bytes, without
    gaps

Source: huggingface/safetensors README.md, "Format"; safetensors/src/tensor.rs `Metadata::validate`.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from harness.received.files import open_received
from harness.received.json import parse_json
from harness.units import MIB

# π0.5's header has 0.1 MiB for its 800 tensors; the format itself allows 100 MB.
_HEADER_BYTES = 16 * MIB
_MOST_AXES = 32
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64,
    "F64": 64, "C64": 64,
}  # fmt: skip
# The types in which a model keeps weights, by the format's names and by numpy's.
NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F64": np.dtype(np.float64),
}
NAMES = {dtype.name: name for name, dtype in NUMPY.items()}
_BLOCK_BYTES = 64 * MIB

Array = np.ndarray[Any, Any]


class Tensor(NamedTuple):
    """One tensor of a file. Its bytes begin at `begin`, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * _BITS[self.dtype] // 8


class Header(NamedTuple):
    """The tensors of a file in the order of their bytes, and the texts that its writer added."""

    tensors: list[Tensor]
    metadata: dict[str, str]


def read_header(path: Path, root: Path) -> list[Tensor]:
    """The tensors of the file `path` below `root`, in the order of their bytes.

    Raises: as `read_whole_header`.
    """
    return read_whole_header(path, root).tensors


def read_whole_header(path: Path, root: Path) -> Header:
    """The header of the file `path` below `root`, checked against the file's size.

    Raises: ValueError if the header is damaged, or does not fit the file; UnsafeFile and OSError as
    `open_received`.
    """
    with open_received(path, root) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        if size and (start.isascii() or start.startswith(b"PK")) and length > _HEADER_BYTES:
            raise ValueError(
                f"no tensors, but a file that begins with {start!r}, as a page or an archive does"
            )
        if not 2 <= length <= min(size - 8, _HEADER_BYTES):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        facts = parse_json(file.read(length), unique=True)
    if not isinstance(facts, dict):
        raise ValueError("a header that is no mapping")
    spans = sorted(_tensor(name, entry) for name, entry in facts.items() if name != "__metadata__")
    end = 0
    for begin, stop, _ in spans:
        if begin != end:
            raise ValueError("tensors that overlap, or leave a gap")
        end = stop
    if end != size - 8 - length:
        raise ValueError(
            f"tensors of {end} bytes in a file that has {size - 8 - length} for them: it was cut off or"
            " changed"
        )
    metadata = facts.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise ValueError("metadata that are no texts")
    return Header([tensor._replace(begin=8 + length + begin) for begin, _, tensor in spans], metadata)


def _tensor(name: str, entry: Any) -> tuple[int, int, Tensor]:
    """(first byte, first byte after it, the tensor)."""
    try:
        dtype, shape, (begin, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = _BITS[dtype]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"no tensor ({type(error).__name__})") from error
    numbers = [*shape, begin, stop] if isinstance(shape, list) and len(shape) <= _MOST_AXES else [None]
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError("no shape, or no offsets")
    tensor = Tensor(name, dtype, tuple(shape))
    if (stop - begin) * 8 != tensor.size * bits:
        raise ValueError(f"{stop - begin} bytes for {tensor.size} elements of {dtype}")
    return begin, stop, tensor


def read_tensor(tensor: Tensor, path: Path, root: Path) -> Array:
    """The elements of `tensor` of the file `path` below `root`, as stored.

    Raises: ValueError if the file ends early; UnsafeFile and OSError as `open_received`.
    """
    out = np.empty(tensor.shape, NUMPY[tensor.dtype])
    view = out.reshape(-1).view(np.uint8)
    with open_received(path, root) as file:
        file.seek(tensor.begin)
        filled = 0
        while filled < view.size:
            n = file.readinto(view[filled : filled + _BLOCK_BYTES].data)  # type: ignore[attr-defined]
            if not n:
                raise ValueError(f"tensor {tensor.name} ends {view.size - filled} bytes early")
            filled += n
    return out
