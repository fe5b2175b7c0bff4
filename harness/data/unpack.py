"""Limits on the unpacked size of a parquet file, checked before unpacking.

The footer gives the rows, and each page's header its size. A footer may contradict its pages, and a
dictionary can make many large values from one. So the pages' headers are checked as well.

Source: apache/parquet-format src/main/thrift/parquet.thrift `PageHeader`, Encodings.md; apache/thrift
doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from harness.units import GIB, KIB, MIB

# The numbers of one file, at 8 bytes each. A recording's floats do not compress to a sixty-fourth.
NUMBERS_BYTES, NUMBERS_TIMES = 128 * MIB, 64
# The pictures and texts of one row group. Encoded pictures do not compress again, but a still camera's file
# may hold one picture many times.
VALUES_BYTES, VALUES_TIMES = 256 * MIB, 8
# One page. A page is unpacked as a whole.
PAGE_BYTES, PAGE_TIMES = 64 * MIB, 16
# The footer is some 20 times as large in memory.
FOOTER_BYTES = 32 * MIB
_HEADER_BYTES = 16 * KIB
_MOST_HEADER_BYTES = MIB
_DEEPEST = 16
# Encodings that make more bytes than the page has: both kinds of dictionary, and strings that share a prefix
# with the previous one.
_MULTIPLYING = {2, 7, 8}


class TooMuch(ValueError):
    """An error for a file that unpacks to too much, or whose pages contradict its footer."""


@dataclass(frozen=True)
class Page:
    packed_bytes: int
    unpacked_bytes: int
    values: int
    multiplies: bool


def check_footer(file: BinaryIO) -> None:
    """Refuses a footer that is larger than any dataset's.

    Raises: TooMuch.
    """
    size = os.fstat(file.fileno()).st_size
    end = os.pread(file.fileno(), 8, max(0, size - 8))
    claimed = int.from_bytes(end[:4], "little")
    if end[4:] == b"PAR1" and claimed > FOOTER_BYTES:
        raise TooMuch(f"its footer has {claimed:,} bytes, and that of a dataset at most {FOOTER_BYTES:,}")


def check_groups(metadata: Any) -> list[int]:
    """Number of rows of each row group. Their sum must equal the file's number of rows.

    Raises: TooMuch.
    """
    rows = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise TooMuch(f"its row groups have {sum(rows)} rows, and the file says {metadata.num_rows}")
    return rows


def check_numbers(file: BinaryIO, metadata: Any, names: list[str], fields: list[Any]) -> None:
    """Refuses number columns that unpack to more bytes than a recording of this file size has.

    `fields` are their Arrow fields.

    Raises: TooMuch.
    """
    size = os.fstat(file.fileno()).st_size
    check_groups(metadata)
    total = sum(metadata.num_rows * 8 * max(1, getattr(field.type, "list_size", 1)) for field in fields)
    columns = leaves(metadata, names)
    listed = [
        metadata.row_group(group).column(n) for group in range(metadata.num_row_groups) for n in columns
    ]
    total = max(total, 8 * sum(chunk.num_values for chunk in listed))
    if total > max(NUMBERS_BYTES, NUMBERS_TIMES * size):
        raise TooMuch(f"{size:,} bytes claim {total:,} bytes of numbers")
    for chunk in listed:
        values = sum(page.values for page in pages(file, chunk))
        if values > chunk.num_values:
            raise TooMuch(f"a column's pages claim {values:,} values, and the footer {chunk.num_values:,}")


def rows_at_once(file: BinaryIO, metadata: Any, group: int, name: str) -> tuple[int | None, int]:
    """The number of rows of column `name` that may be read at once, and the limit of their bytes.

    The number is None if the whole row group may be read at once.

    Raises: TooMuch.
    """
    listed = [metadata.row_group(group).column(n) for n in leaves(metadata, [name])]
    found = [page for chunk in listed for page in pages(file, chunk)]
    packed, unpacked = sum(page.packed_bytes for page in found), sum(page.unpacked_bytes for page in found)
    limit = max(VALUES_BYTES, VALUES_TIMES * packed)
    if unpacked > limit:
        raise TooMuch(f"{packed:,} bytes claim {unpacked:,} bytes of column {name!r}")
    if sum(page.values for page in found) > sum(chunk.num_values for chunk in listed):
        raise TooMuch(f"the pages of column {name!r} claim more values than the footer")
    largest = max((page.unpacked_bytes for page in found), default=0)
    rows = metadata.row_group(group).num_rows
    # A value is at most one page. Offsets take 4 or 8 bytes per row, whatever the values are.
    most = unpacked + 16 * rows + (rows * largest if any(page.multiplies for page in found) else 0)
    return (None if most <= limit else max(1, min(limit // 4 // max(largest, 1), limit // 64)), limit)


def leaves(metadata: Any, names: list[str]) -> list[int]:
    """Indices of the parquet columns that belong to the features `names`.

    A list or a struct has columns below its own path.
    """
    paths = (metadata.schema.column(n).path for n in range(metadata.num_columns))
    return [
        n
        for n, path in enumerate(paths)
        if any(path == name or path.startswith(f"{name}.") for name in names)
    ]


def pages(file: BinaryIO, chunk: Any) -> Iterator[Page]:
    """The pages of a column chunk, from their headers alone.

    Raises: TooMuch, also for pages that do not lie where the footer says.
    """
    starts = [at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at]
    at = min(starts, default=0)
    end = at + chunk.total_compressed_size
    size = os.fstat(file.fileno()).st_size
    if not 0 <= at <= end <= size or chunk.num_values < 0 or chunk.total_compressed_size > GIB * 64:
        raise TooMuch("a column does not lie inside of the file")
    empty = 0
    while at < end:
        page, length = _page(file, at, end)
        empty += page.values == 0
        if empty > 64:
            raise TooMuch("a column has more than 64 pages without a value")
        if page.unpacked_bytes > max(PAGE_BYTES, PAGE_TIMES * page.packed_bytes):
            raise TooMuch(f"a page of {page.packed_bytes:,} bytes claims {page.unpacked_bytes:,}")
        yield page
        at += length + page.packed_bytes


def _page(file: BinaryIO, at: int, end: int) -> tuple[Page, int]:
    """The page at byte `at`, and the length of its header."""
    length = _HEADER_BYTES
    while True:
        data = os.pread(file.fileno(), min(length, end - at), at)
        try:
            header, used = _Compact(data).struct()
            break
        except IndexError:
            length *= 4
            if length > _MOST_HEADER_BYTES or len(data) == end - at:
                raise TooMuch("the header of a page cannot be read") from None
    body: dict[int, Any] = next(
        (header[field] for field in (5, 7, 8) if isinstance(header.get(field), dict)), {}
    )
    encoding = body.get(4 if 8 in header else 2, 0)
    # A dictionary page has no rows.
    numbers = [header.get(2), header.get(3), body.get(1, 0)]
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise TooMuch("the header of a page claims a negative size")
    return Page(numbers[1], numbers[0], 0 if 7 in header else numbers[2], encoding in _MULTIPLYING), used


class _Compact:
    """The part of Thrift's compact protocol that a page's header needs.

    Raises IndexError if the bytes end too early.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int = 0) -> tuple[dict[int, Any], int]:
        """The values by field number, and the number of bytes read."""
        if depth > _DEEPEST:
            raise TooMuch("the header of a page is nested too deep")
        found: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) != 0:
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            found[field] = self._value(head & 15, depth)
        return found, self._at

    def _value(self, kind: int, depth: int) -> Any:
        """An integer or a struct of the header; None for every other type, whose bytes are skipped."""
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 12:
            return self.struct(depth + 1)[0]
        if kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            for _ in range(count):
                self._value(3 if head & 15 in (1, 2) else head & 15, depth + 1)
        elif kind == 3:
            self._byte()
        elif kind in (7, 8):
            self._skip(8 if kind == 7 else self._varint())
        elif kind not in (1, 2):
            raise TooMuch("the header of a page has a value of an unknown kind")
        return None

    def _byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise IndexError

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise TooMuch("the header of a page has a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
