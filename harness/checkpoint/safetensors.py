"""Reads the header of a safetensors file: names, shapes and dtypes of its tensors.

No tensor is read, and nothing is unpickled.

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


class Tensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path, root: Path) -> list[Tensor]:
    """The tensors of the file `path` below `root`, in the order of their bytes.

    Raises: ValueError if the header is damaged, or does not fit the file; UnsafeFile and OSError as
    `open_received`.
    """
    with open_received(path, root) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        if not 2 <= length <= min(size - 8, _HEADER_BYTES):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        facts = parse_json(file.read(length))
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
    return [tensor for _, _, tensor in spans]


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
