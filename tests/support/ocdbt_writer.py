"""OCDBT stores as a stranger might make them, byte by byte: trees that no real writer makes.

Source: tensorstore kvstore/ocdbt/format (manifest.cc, btree_codec.cc, data_file_id_codec.cc, codec_util.cc),
version 0.1.86.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tensorstore as ts

NODE = 0x0CDB20DE
ZARRAY = {
    "chunks": [4],
    "compressor": None,
    "dtype": "|u1",
    "fill_value": None,
    "filters": None,
    "order": "C",
    "shape": [4],
    "zarr_format": 2,
}


class Place(NamedTuple):
    """A node or a value: in which of a node's files, where, how long."""

    file: int
    offset: int
    length: int


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum (RFC 3720, appendix B.4): the last four bytes of every OCDBT file."""
    total, table = 0xFFFFFFFF, _crc_table()
    for byte in data:
        total = table[(total ^ byte) & 255] ^ (total >> 8)
    return total ^ 0xFFFFFFFF


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # noqa: PLW2901
        table.append(byte)
    return table


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def varints(numbers: list[int]) -> bytes:
    return b"".join(map(varint, numbers))


def interior(height: int, files: list[bytes], children: list[tuple[bytes, Place]]) -> bytes:
    """A node above others: (first key, place) of each."""
    keys = [key for key, _ in children]
    columns = [[place[i] for _, place in children] for i in range(3)] + [[1] * len(children)] * 3
    return sealed(
        bytes([height])
        + _files(files)
        + varint(len(children))
        + _keys(keys, prefixes=True)
        + b"".join(map(varints, columns))
    )


def leaf(files: list[bytes], values: list[tuple[bytes, bytes | Place]]) -> bytes:
    """A node of values: (key, the value's bytes or place) of each."""
    away = [value for _, value in values if isinstance(value, Place)]
    lengths = [value.length if isinstance(value, Place) else len(value) for _, value in values]
    kinds = [int(isinstance(value, Place)) for _, value in values]
    body = (
        bytes([0])
        + _files(files)
        + varint(len(values))
        + _keys([key for key, _ in values])
        + varints(lengths)
        + varints(kinds)
    )
    body += varints([place.file for place in away]) + varints([place.offset for place in away])
    return sealed(body + b"".join(value for _, value in values if isinstance(value, bytes)))


def sealed(body: bytes) -> bytes:
    """A node: magic, length of the whole, version 0, no compression, body, checksum."""
    inner = varint(0) + varint(0) + body
    head = struct.pack(">I", NODE) + struct.pack("<Q", 4 + 8 + len(inner) + 4) + inner
    return head + struct.pack("<I", crc32c(head))


def _files(names: list[bytes]) -> bytes:
    count = len(names)
    return (
        varint(count)
        + varints([0] * max(count - 1, 0))
        + varints([len(name) for name in names])
        + varints([0] * count)
        + b"".join(names)
    )


def _keys(keys: list[bytes], *, prefixes: bool = False) -> bytes:
    out = varints([0] * max(len(keys) - 1, 0)) + varints([len(key) for key in keys])
    return out + (varints([0] * len(keys)) if prefixes else b"") + b"".join(keys)


class Store:
    """A store written by tensorstore whose root node is then another: `data` is its data file, `root` where
    the manifest says the root is.
    """

    def __init__(self, directory: Path) -> None:
        config = {"max_decoded_node_bytes": 60, "max_inline_value_bytes": 100, "compression": None}
        store = ts.KvStore.open(
            {"driver": "ocdbt", "base": f"file://{directory}/", "config": config}
        ).result()
        with ts.Transaction() as transaction:
            for number in range(6):
                store.with_transaction(transaction)[f"a{number}/.zarray"] = b"{}"
        newest = ts.ocdbt.dump(store.base).result()["versions"][-1]
        _, _, name, offset, length = newest["root"]["location"].split(":")
        self.directory, self.height = directory, int(newest["root_height"])
        self.name, self.root = name.encode(), Place(0, int(offset), int(length))
        self.data = bytearray((directory / name).read_bytes())

    def append(self, node: bytes) -> Place:
        place = Place(0, len(self.data), len(node))
        self.data += node
        return place

    def put_root(self, make: Callable[[bytes], bytes]) -> None:
        """Replaces the root by what `make` returns for some padding, which must bring it to the root's
        length.
        """
        node = next(node for pad in range(200) if len(node := make(b"k" * pad)) == self.root.length)
        self.data[self.root.offset : self.root.offset + self.root.length] = node
        (self.directory / self.name.decode()).write_bytes(self.data)
        entry = {"key_metadata": [{"key": "x", "key_type": 2}], "value_metadata": {"value_type": "jax.Array"}}
        tree = {
            "tree_metadata": {"('x',)": entry},
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
        }
        (self.directory / "_METADATA").write_text(json.dumps(tree))


def write_loop(directory: Path) -> None:
    """An item whose root names itself."""
    store = Store(directory)
    store.put_root(lambda pad: interior(store.height, [store.name], [(b"a" + pad, store.root)]))


def write_dag(directory: Path, levels: int = 40) -> None:
    """An item of some kB in which each node names the next one twice: 2^levels ways to its end."""
    store = Store(directory)
    place = store.append(leaf([], [(b"z/.zarray", b"{}")]))
    for height in range(1, levels):
        place = store.append(interior(height, [store.name], [(b"a", place), (b"b", place)]))
    store.put_root(lambda pad: interior(store.height, [store.name], [(b"a" + pad, place)]))


def write_value_in(directory: Path, target: bytes) -> None:
    """An item whose one array has its data in the file `target`."""
    store = Store(directory)
    place = store.append(
        leaf([target], [(b"x/.zarray", json.dumps(ZARRAY).encode()), (b"x/0", Place(0, 0, 4))])
    )
    for height in range(1, store.height):
        place = store.append(interior(height, [store.name], [(b"x", place)]))
    store.put_root(lambda pad: interior(store.height, [store.name], [(b"x" + pad, place)]))
