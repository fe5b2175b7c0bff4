"""OCDBT stores of a stranger: nodes written by hand, and changed bytes under a correct checksum.

Part of `benchmarks.strangers`.

Source: tensorstore's kvstore/ocdbt/format (manifest.h, btree_codec.cc, data_file_id_codec.cc).
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from tests.support.ocdbt_writer import NODE, ZARRAY, crc32c, sealed, varint

_NODE = struct.pack(">I", NODE)
_TREE = {
    "key_metadata": [{"key": "x", "key_type": 2}],
    "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
}
_FILES = [
    b"d/\0x",
    b"",
    b"d\\..\\x",
    b"../x",
    b"%2e%2e/x",
    b"/etc/passwd",
    b"../../../home/.ssh/id_ed25519",
    b"file:///etc/passwd",
    b"d/\x1b[2J",
    b"d/" + b"x" * 300,
]


def _table(files: list[bytes]) -> bytes:
    zeros = b"\0" * (len(files) - 1 if files else 0)
    return (
        varint(len(files))
        + zeros
        + b"".join(varint(len(name)) for name in files)
        + b"\0" * len(files)
        + b"".join(files)
    )


def _keys(keys: list[bytes], prefixes: list[int] | None = None) -> bytes:
    return (
        b"\0" * (len(keys) - 1)
        + b"".join(map(varint, map(len, keys)))
        + b"".join(map(varint, prefixes or []))
        + b"".join(keys)
    )


def _interior(height: int, files: list[bytes], entries: list[tuple[bytes, int, int, int, int]]) -> bytes:
    """`entries`: key, length of the subtree's prefix, file, offset, length."""
    body = (
        bytes([height])
        + _table(files)
        + varint(len(entries))
        + _keys([e[0] for e in entries], [e[1] for e in entries])
    )
    columns = [[int(e[i]) for e in entries] for i in (2, 3, 4)] + [
        [4] * len(entries),
        [192] * len(entries),
        [0] * len(entries),
    ]
    return sealed(body + b"".join(varint(number) for column in columns for number in column))


def _leaf(files: list[bytes], entries: list[tuple[bytes, bytes | tuple[int, int, int]]]) -> bytes:
    """`entries`: key, and the value itself or its (file, offset, length)."""
    far: list[tuple[int, int, int]] = [value for _, value in entries if isinstance(value, tuple)]
    body = b"\0" + _table(files) + varint(len(entries)) + _keys([key for key, _ in entries])
    body += b"".join(varint(value[2] if isinstance(value, tuple) else len(value)) for _, value in entries)
    body += b"".join((b"\0" if isinstance(value, bytes) else b"\1") for _, value in entries)
    body += b"".join(varint(value[0]) for value in far) + b"".join(varint(value[1]) for value in far)
    return sealed(body + b"".join(value for _, value in entries if isinstance(value, bytes)))


def write_template(item: Path) -> None:
    """A small `params` item whose root is an interior node, without compression."""
    import tensorstore as ts

    config = {"max_decoded_node_bytes": 60, "max_inline_value_bytes": 100, "compression": None}
    store: Any = ts.KvStore.open(
        {"driver": "ocdbt", "base": f"{item.absolute().as_uri()}/", "config": config}
    ).result()
    with ts.Transaction() as transaction:
        for i in range(6):
            store.with_transaction(transaction)[f"a{i}/.zarray"] = json.dumps(ZARRAY).encode()[:90]
    tree = {
        "tree_metadata": {"('x',)": _TREE},
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
    }
    (item / "_METADATA").write_text(json.dumps(tree))


def _nodes(raw: bytes) -> list[tuple[int, int]]:
    """(offset, length) of every node in a data file."""
    found, at = [], raw.find(_NODE)
    while at >= 0:
        length = int.from_bytes(raw[at + 4 : at + 12], "little")
        found += [(at, length)] if 18 < length <= len(raw) - at else []
        at = raw.find(_NODE, at + 4)
    return found


def mutate(item: Path, rng: random.Random) -> str:
    """What was done, in words, to the tree of a template's item."""
    data = max((item / "d").iterdir(), key=lambda path: path.stat().st_size)
    raw, name = bytearray(data.read_bytes()), f"d/{data.name}".encode()
    nodes = _nodes(bytes(raw))
    kind = rng.choice(["edit", "edit", "edit", "loop", "dag", "name", "name", "far"])
    if kind == "edit":
        at, length = rng.choice(nodes)
        for _ in range(rng.choice([1, 1, 2, 4])):
            raw[at + 12 + rng.randrange(length - 16)] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        raw[at + length - 4 : at + length] = struct.pack("<I", crc32c(bytes(raw[at : at + length - 4])))
        data.write_bytes(raw)
        return f"ocdbt: bytes of the node at {at} changed, checksum right"
    root, length = max(nodes, key=lambda node: raw[node[0] + 14])
    leaf_at, target = len(raw), rng.choice(_FILES)
    entries: list[tuple[bytes, bytes | tuple[int, int, int]]] = [(b"x/.zarray", json.dumps(ZARRAY).encode())]
    far = (0, rng.choice([0, 1, 2**31, 2**53, 2**62]), rng.choice([4, 2**31, 2**40, 2**62]))
    entries.append((b"x/0", (0, 0, 4) if kind == "name" else far))
    raw += _leaf([target if kind == "name" else name], entries)
    place = (leaf_at, len(raw) - leaf_at)
    if kind == "dag":
        for height in range(1, 40):
            node = _interior(height, [name], [(key, 0, 0, *place) for key in (b"a", b"b")])
            place = (len(raw), len(node))
            raw += node
    for padding in range(200):
        key = b"x" + b"k" * padding
        new = _interior(2, [name], [(key, 1, 0, *((root, length) if kind == "loop" else place))])
        if kind in ("name", "far"):
            new = _interior(1, [name], [(key, 0, 0, *place)])
        if len(new) == length:
            raw[root : root + length] = new
            break
    data.write_bytes(raw)
    return f"ocdbt: {kind} {target!r}" if kind == "name" else f"ocdbt: {kind}"
