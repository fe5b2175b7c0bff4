"""What is done to a file of weights: one function a mutation. A part of `fuzz_weights.py`."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.checkpoint.pytorch_names import PREFIX, TABLE_NAMES, UNUSED_HEAD, parts_of, turned
from harness.checkpoint.tensor_writer import Planned, write_tensors
from harness.recipe.parameters import parameter_shapes
from tests.support.tiny import tiny

# The tiny model's sizes, smaller still: a file of 60 KB.
_SMALL = {512: 24, 192: 12, 128: 8, 64: 4, 56: 14, 768: 9}
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Header = dict[str, Any]


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of a model of a few thousand elements, with every parameter of π0.5."""
    found = parameter_shapes(tiny().model)
    return {path: tuple(_SMALL.get(size, size) for size in shape) for path, shape in found.items()}


def tensors(kind: int) -> dict[str, np.ndarray]:
    """Name → tensor of one run of theirs: openpi's names, or LeRobot's."""
    prefix = PREFIX["lerobot" if kind % 2 else "openpi-pytorch"]
    rng, made = np.random.default_rng(kind // 2), {}
    for path, parts in parts_of(shapes()).items():
        leaf = rng.standard_normal(shapes()[path]).astype(np.float32)
        made |= {f"{prefix}{part.name}": turned(leaf, part) for part in parts}
    return made | {f"{prefix}{UNUSED_HEAD}": np.zeros((24, 4), np.float32)}


def write(path: Path, given: dict[str, np.ndarray], run: str = "a", dtype: Any = "float32") -> None:
    planned = [Planned(name, array.shape, dtype) for name, array in given.items()]
    write_tensors(path, planned, given.items(), metadata={"run": run})


def sharded(
    folder: Path, given: dict[str, np.ndarray], other: dict[str, np.ndarray] | None, way: str
) -> None:
    """Two shards and their index. With `other`, the second is another run's."""
    names = list(given)
    cut = len(names) // 2
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    write(folder / files[0], {name: given[name] for name in names[:cut]})
    second = {name: (other or given)[name] for name in names[cut:]}
    write(
        folder / files[1],
        second,
        "b" if way == "metadata" else "a",
        "bfloat16" if way == "type" else "float32",
    )
    body = {"metadata": {}, "weight_map": {name: files[i >= cut] for i, name in enumerate(names)}}
    (folder / INDEX).write_text(json.dumps(body))


def split(path: Path) -> tuple[Header, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path: Path, header: Header | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def some(rng: random.Random, header: Header) -> str:
    return rng.choice([name for name in header if name != "__metadata__"])


def _truncated(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def _longer(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 100)))


def _length(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    near = length + rng.choice((-9, -1, 1, 7))
    data[:8] = struct.pack("<Q", rng.choice((0, 1, near, 2**30, 2**40, 2**63, 2**64 - 1)))
    path.write_bytes(data)


def _gigabyte(path: Path, _rng: random.Random) -> None:
    """A header that claims a gigabyte of JSON, in a file that has it, as a hole."""
    path.write_bytes(struct.pack("<Q", 2**30) + b'{"a":')
    os.truncate(path, 2**30 + 1000)


def _offsets(path: Path, rng: random.Random) -> None:
    header, data = split(path)
    entry = header[some(rng, header)]
    shift = rng.choice((-4, 4, 8, -8, 2**31, 2**62, len(data)))
    which = rng.choice(((0,), (1,), (0, 1)))
    for i in which:
        entry["data_offsets"][i] += shift
    join(path, header, data)


def _shape(path: Path, rng: random.Random) -> None:
    header, data = split(path)
    entry = header[some(rng, header)]
    old = entry["shape"]
    forms = [[*old, 1], [1, *old], old[::-1], [0], [], [-1], [2**62, 2**62], [1.5], None, "x", [2**70]]
    entry["shape"] = rng.choice([form for form in forms if form != old])
    join(path, header, data)


def _dtype(path: Path, rng: random.Random) -> None:
    header, data = split(path)
    header[some(rng, header)]["dtype"] = rng.choice(
        ("I32", "U32", "BF16", "F16", "F64", "C64", "F33", "", None, 7)
    )
    join(path, header, data)


def _missing(path: Path, rng: random.Random) -> None:
    given = tensors(rng.randrange(2))
    for name in rng.sample(sorted(given), rng.randrange(1, 4)):
        if not name.endswith(UNUSED_HEAD):
            del given[name]
    path.unlink()
    write(path, given)


def _renamed(path: Path, rng: random.Random) -> None:
    header, data = split(path)
    name = some(rng, header)
    new = rng.choice(
        (name[:-1], name + "x", name.replace("layers.", "layers.9"), "model." + name, "../" + name, "\x00")
    )
    header = {new if key == name else key: value for key, value in header.items()}
    join(path, header, data)


def _twice(path: Path, rng: random.Random) -> None:
    header, data = split(path)
    name = some(rng, header)
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    if rng.random() < 0.5:
        # Another name for the same tensor, as a compiled model has it.
        header[f"_orig_mod.{name}"] = header[name] | {
            "data_offsets": [len(data), len(data) + 4],
            "shape": [1],
        }
        join(path, header, data + b"abcd")
        return
    join(path, text.encode(), data)


def _twin(path: Path, rng: random.Random) -> None:
    """The token table beside a text head with other numbers, which nothing reads."""
    given = tensors(0)
    head, table = TABLE_NAMES
    given[table] = given[head]
    given[head] = given[table] + np.float32(rng.random() + 0.1)
    path.unlink()
    write(path, given)


def _bytes(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    for _ in range(rng.randrange(1, 6)):
        data[8 + rng.randrange(length)] = rng.randrange(256)
    path.write_bytes(data)


def _text(path: Path, rng: random.Random) -> None:
    _, data = split(path)
    forms = (
        b"\xff\xfe{}",
        b"[" * 50_000,
        b"{}",
        b"[]",
        b"null",
        b'{"a": NaN}',
        b'{"\\ud800": 1}',
        b"",
        b'{"__metadata__": 3}',
    )
    join(path, rng.choice(forms), data)


def _pi0(path: Path, rng: random.Random) -> None:
    given = tensors(0)
    for name in rng.sample(("state_proj.weight", "action_time_mlp_in.bias", "model.state_proj.bias"), 1):
        given[name] = np.ones((2, 2), np.float32)
    path.unlink()
    write(path, given)


def _dimension(path: Path, rng: random.Random) -> None:
    given, wide = tensors(0), rng.choice((7, 8, 14, 33))
    given["action_in_proj.weight"] = np.ones((4, wide), np.float32)
    path.unlink()
    write(path, given)


def _elsewhere(path: Path, rng: random.Random) -> None:
    way = rng.randrange(4)
    path.unlink()
    if way == 0:
        path.symlink_to("/etc/passwd")
    elif way == 1:
        os.mkfifo(path)
    elif way == 2:
        path.mkdir()
    else:
        path.write_bytes(b"")


def _two_runs(path: Path, rng: random.Random) -> None:
    """Shards of two runs, told apart by their remark, their type, their names or their index."""
    path.unlink()
    way = rng.choice(("metadata", "type", "names"))
    sharded(path.parent, tensors(0), tensors(1 if way == "names" else 2) if way != "names" else None, way)
    if way == "names":
        other = tensors(0)
        write_over = path.with_name("model-00002-of-00002.safetensors")
        write_over.unlink()
        write(write_over, {name: other[name] for name in list(other)[rng.randrange(5, 40) :]})


def _index(path: Path, rng: random.Random) -> None:
    path.unlink()
    sharded(path.parent, tensors(rng.randrange(2)), None, "")
    index = path.with_name(INDEX)
    body = json.loads(index.read_text())
    names = body["weight_map"]
    name = rng.choice(sorted(names))
    way = rng.randrange(8)
    if way == 0:
        del names[name]
    elif way == 1:
        names[name] = rng.choice(
            ("../secret.safetensors", "/etc/passwd", "", 3, None, "model.bin", "nowhere.safetensors")
        )
    elif way == 2:
        names["more"] = next(iter(names.values()))
    elif way == 3:
        names[name] = (
            "model-00001-of-00002.safetensors"
            if names[name].startswith("model-00002")
            else "model-00002-of-00002.safetensors"
        )
    elif way == 4:
        body = rng.choice(([], {}, {"weight_map": []}, {"weight_map": {}}, None))
    elif way == 5:
        path.with_name(rng.choice(sorted(set(names.values())))).unlink()
    elif way == 6:
        _truncated(path.with_name("model-00001-of-00002.safetensors"), rng)
    index.write_text(json.dumps(body))
    if way == 7:
        index.write_bytes(rng.randbytes(50))


MUTATIONS: tuple[Callable[[Path, random.Random], None], ...] = (
    _truncated, _longer, _length, _offsets, _shape, _dtype, _missing, _renamed, _twice, _twin, _bytes, _text,
    _pi0, _gigabyte, _dimension, _elsewhere, _two_runs, _index, _bytes, _offsets,
)  # fmt: skip
