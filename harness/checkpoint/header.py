"""Parses the header of one zarr array, v2 or v3, and refuses sizes that no array of a model has.

A few bytes of a header could otherwise ask for any amount of memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from harness.checkpoint.format import CHUNK_BYTES
from harness.received.json import parse_json
from harness.units import GIB, MIB

HEADER_BYTES = 4 * MIB
# π0.5's largest leaf has 9 GiB in float32.
_ARRAY_BYTES = 32 * GIB
# The largest chunk that tensorstore unpacks whole. A chunk that is read as a stream may be as large as its
# array.
_WHOLE_BYTES = 512 * MIB
_MOST_CHUNKS = 200_000
_MOST_AXES = 32
_DTYPES = re.compile(
    r"bool|u?int(?:2|4|8|16|32|64)|float(?:16|32|64)|bfloat16|float8_[a-z0-9]+|complex(?:64|128)"
)
_NUMPY = re.compile(r"[<>|=]([fiucb])(\d{1,2})")
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}
_SHARDS = "sharding_indexed"

V = TypeVar("V")


class Header(NamedTuple):
    """The header of one array. `chunk` is the shape of a key's value: a chunk, or a shard of `inner` chunks.

    `codec` packs the (inner) chunks.

    `in_order`: elements are stored in C order and in this machine's byte order, so that a chunk can be read
    as a stream.
    """

    shape: tuple[int, ...]
    dtype: str
    zarr3: bool
    chunk: tuple[int, ...]
    inner: tuple[int, ...] | None
    codec: str | None
    in_order: bool
    separator: str
    prefix: str
    index_at_end: bool = True
    index_checksum: bool = True

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    @property
    def is_one_stream(self) -> bool:
        """Whether the array is one zstd chunk, which can be unpacked piece by piece."""
        return self.chunk == self.shape and self.inner is None and self.codec == "zstd" and self.in_order

    @property
    def is_runs(self) -> bool:
        """Whether each chunk is a zstd stream of elements that follow each other in C order."""
        cut = next((axis for axis, size in enumerate(self.chunk) if size > 1), len(self.chunk))
        whole = self.chunk[cut + 1 :] == self.shape[cut + 1 :]
        return whole and self.inner is None and self.codec == "zstd" and self.in_order

    def run(self, index: tuple[int, ...]) -> slice:
        """Where the elements of the chunk at `index` lie in the flat array, if the chunks are runs."""
        spans = [
            (i * cut, min(cut, size - i * cut))
            for i, cut, size in zip(index, self.chunk, self.shape, strict=True)
        ]
        start = sum(first * math.prod(self.shape[axis + 1 :]) for axis, (first, _) in enumerate(spans))
        return slice(start, start + math.prod(count for _, count in spans))

    def key(self, index: tuple[int, ...]) -> str:
        """The key under which the chunk at `index` of the grid is stored."""
        return (self.prefix + self.separator.join(map(str, index))).rstrip(self.separator) or "0"

    def by_index(self, values: Mapping[str, V]) -> dict[tuple[int, ...], V]:
        """The values by their index in the grid, without those whose key no reader asks for."""
        grid, start, found = self.grid, len(self.prefix) if self.shape else 0, {}
        for key, value in values.items():
            numbers = key[start:].split(self.separator) if grid else []
            if all(number.isdecimal() and number.isascii() and len(number) < 20 for number in numbers):
                index = tuple(map(int, numbers))
                within = len(index) == len(grid) and all(i < n for i, n in zip(index, grid, strict=True))
                if within and self.key(index) == key:
                    found[index] = value
        return found


def parse_header(data: bytes, *, zarr3: bool) -> Header:
    """The header in these bytes.

    Raises: ValueError if they are not a header, or declare what no array of a model is.
    """
    try:
        facts = parse_json(data)
        if facts["zarr_format"] != (3 if zarr3 else 2):
            raise ValueError("the header of another version of zarr")
        header = _v3(facts) if zarr3 else _v2(facts)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"no zarr header ({type(error).__name__})") from error
    _check_sizes(header)
    return header


def _v2(facts: dict[str, Any]) -> Header:
    compressor, dtype, separator = facts["compressor"], facts["dtype"], facts.get("dimension_separator", ".")
    if separator not in (".", "/") or facts["order"] not in ("C", "F"):
        raise ValueError("no zarr header (separator or order)")
    in_order = facts["order"] == "C" and not facts.get("filters") and not dtype.startswith(">")
    codec = None if compressor is None else str(compressor["id"])
    return Header(
        _sizes(facts["shape"]),
        dtype_name(dtype),
        False,
        _sizes(facts["chunks"]),
        None,
        codec,
        in_order,
        separator,
        "",
    )


def _v3(facts: dict[str, Any]) -> Header:
    encoding = facts["chunk_key_encoding"]
    default = encoding["name"] == "default"
    separator = encoding.get("configuration", {}).get("separator", "/" if default else ".")
    if separator not in (".", "/"):
        raise ValueError("no zarr header (separator)")
    chunk, codecs = _sizes(facts["chunk_grid"]["configuration"]["chunk_shape"]), facts["codecs"]
    inner, at_end, checksum = None, True, True
    if codecs[0]["name"] == _SHARDS:
        shards = codecs[0]["configuration"]
        names = [codec["name"] for codec in shards["index_codecs"]]
        if len(codecs) > 1 or names not in (["bytes"], ["bytes", "crc32c"]):
            raise ValueError("shards with an index that Orbax does not write")
        inner, at_end, checksum = (
            _sizes(shards["chunk_shape"]),
            shards.get("index_location", "end") == "end",
            "crc32c" in names,
        )
        codecs = shards["codecs"]
    codec, in_order = _codecs(codecs)
    prefix = f"c{separator}" if default else ""
    return Header(
        _sizes(facts["shape"]),
        dtype_name(facts["data_type"]),
        True,
        chunk,
        inner,
        codec,
        in_order,
        separator,
        prefix,
        at_end,
        checksum,
    )


def _codecs(codecs: list[dict[str, Any]]) -> tuple[str | None, bool]:
    """(the codec that packs a chunk, whether its bytes are the elements in C order of this machine)."""
    names = [codec["name"] for codec in codecs]
    packing = [name for name in names if name not in ("bytes", "transpose", "crc32c")]
    if len(packing) > 1 or names.count("bytes") != 1:
        raise ValueError(f"codecs {', '.join(map(str, names))[:100]}, which Orbax does not write")
    little = all(
        codec.get("configuration", {}).get("endian", "little") == "little"
        for codec in codecs
        if codec["name"] == "bytes"
    )
    return (str(packing[0]) if packing else None), little and not {"transpose", "crc32c"} & set(names)


def _sizes(numbers: list[Any]) -> tuple[int, ...]:
    if len(numbers) > _MOST_AXES or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError("no shape")
    return tuple(numbers)


def _check_sizes(header: Header) -> None:
    one = itemsize(header.dtype)
    if len(header.chunk) != len(header.shape) or 0 in header.chunk or 0 in (header.inner or ()):
        raise ValueError("chunks that do not divide the array")
    size, chunk = (math.prod(sizes) * one for sizes in (header.shape, header.chunk))
    unpacked = math.prod(header.inner) * one if header.inner is not None else chunk
    inner = (
        math.prod(-(-c // i) for c, i in zip(header.chunk, header.inner, strict=True))
        if header.inner is not None
        else 1
    )
    if size > _ARRAY_BYTES:
        raise ValueError(f"an array of {size} bytes")
    if math.prod(header.grid) * inner > _MOST_CHUNKS:
        raise ValueError(f"an array in more than {_MOST_CHUNKS} chunks")
    if (chunk > CHUNK_BYTES and chunk > size) or (unpacked > _WHOLE_BYTES and not header.is_one_stream):
        raise ValueError(f"a chunk that needs {unpacked} bytes at once")


def chunk_bytes(header: Header) -> int:
    """Bytes of one chunk (of a shard: of one inner chunk), unpacked."""
    return math.prod(header.inner or header.chunk) * itemsize(header.dtype)


def shard_index(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) of each inner chunk that a shard's index names."""
    for at in range(0, len(data) - 15, 16):
        offset, length = (int.from_bytes(data[start : start + 8], "little") for start in (at, at + 8))
        if (offset, length) != (2**64 - 1, 2**64 - 1):
            yield offset, length


def dtype_name(text: str) -> str:
    """numpy's name: "<f4" → "float32"; names stay.

    Raises: ValueError for a type in which no parameter is stored.
    """
    match = _NUMPY.fullmatch(text)
    name = text if not match else "bool" if match[1] == "b" else f"{_KINDS[match[1]]}{int(match[2]) * 8}"
    if not _DTYPES.fullmatch(name):
        raise ValueError(f"elements of type {text[:40]}")
    return name


def itemsize(dtype: str) -> int:
    """Bytes of one element in memory."""
    match = re.match(r"(?<![a-z])[a-z]++(\d+)", dtype)
    return max(1, int(match[1]) // 8) if match else 1
