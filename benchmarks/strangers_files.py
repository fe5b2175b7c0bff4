"""Hostile files: links, devices, sizes, and bytes that unpack to far more. Part of `benchmarks.strangers`."""

from __future__ import annotations

import functools
import gzip
import io
import os
import random
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.strangers_texts import mutate_json, mutate_lines, mutate_text, mutate_yaml
from benchmarks.strangers_values import Hostile

_JSON_NAMES = ("_METADATA", "_CHECKPOINT_METADATA", "_sharding", ".zarray", "zarr.json", "process_0", ".lock")
_STRANGE_NAMES = ["a\nb", "a\x1b[2Jb", "a\\b", " ", "-rf", "\u202etxt.exe", "x" * 255, "[b]", "<b>", "..."]
_LARGE, _LARGE_DATA = 2**40, 3 * 2**30


def files_below(root: Path) -> list[Path]:
    """The regular files of a tree, in an order that does not depend on names made by chance (those of OCDBT's
    data files).
    """
    found = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(
        found,
        key=lambda path: (
            str(path.parent.relative_to(root)) if path.parent.name == "d" else str(path.relative_to(root)),
            path.stat().st_size,
        ),
    )


_MOST_READ_BYTES = 64 << 20


def mutate_file(path: Path, root: Path, rng: random.Random, hostile: Hostile) -> str:
    """What was done, in words, to one file of the input `root`: mostly to what it says, at times to what it
    is.
    """
    kind = rng.random()
    if path.is_file() and path.stat().st_size > _MOST_READ_BYTES:
        # An earlier change has made it one hole, which nobody reads whole.
        kind = 1.0
    if kind < 0.62:
        try:
            return _mutate_content(path, rng, hostile)
        except Exception:  # what an earlier change has damaged is not read by any library
            return _damage_bytes(path, rng)
    if kind < 0.80:
        return _damage_bytes(path, rng)
    return trick(path, root, rng, hostile)


def _mutate_content(path: Path, rng: random.Random, hostile: Hostile) -> str:
    data = path.read_bytes()
    if path.suffix == ".json" or path.name in _JSON_NAMES:
        new = mutate_json(data, rng, hostile)
    elif path.suffix == ".jsonl":
        new = mutate_lines(data, rng, hostile)
    elif path.suffix in (".yaml", ".yml"):
        new = mutate_yaml(data, rng, hostile)
    elif path.suffix == ".parquet":
        return _mutate_parquet(path, rng, hostile)
    elif path.suffix == ".png":
        new = _other_picture(data, rng)
    elif path.suffix == ".gz":
        new = (
            gzip.compress(mutate_text(gzip.decompress(data), rng, hostile), 1)
            if rng.random() < 0.7
            else _gzip_bomb()
        )
    elif path.suffix in (".log", ".txt", ".csv", ".html", ".md"):
        new = mutate_text(data, rng, hostile)
    else:
        return _damage_bytes(path, rng)
    path.write_bytes(new)
    return f"{path.name}: other content"


def _damage_bytes(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    action = rng.choice(["flip", "flip", "flip", "cut", "grow", "empty", "noise", "zeros"])
    if action == "flip" and data:
        for _ in range(rng.choice([1, 2, 8])):
            # The footer holds parquet's and mp4's structure: half of the hits go there.
            at = (
                rng.randrange(len(data)) if rng.random() < 0.5 else max(0, len(data) - 1 - rng.randrange(600))
            )
            data[at] = rng.choice([0, 255, rng.randrange(256)])
    elif action == "cut":
        del data[rng.randrange(len(data) + 1) :]
    elif action == "grow":
        data += rng.randbytes(rng.choice([1, 64, 4096]))
    else:
        data[:] = {"empty": b"", "noise": rng.randbytes(300), "zeros": bytes(len(data))}.get(
            action, bytes(data)
        )
    path.write_bytes(data)
    return f"{path.name}: bytes, {action}"


def _mutate_parquet(path: Path, rng: random.Random, hostile: Hostile) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    at, rows = table.column_names.index(name), table.num_rows
    action = rng.choice(["text", "nan", "huge", "drop", "rename", "none", "repeat", "reverse", "many"])
    if action == "drop":
        table = table.drop_columns([name])
    elif action == "rename":
        table = table.rename_columns(
            [
                hostile.text(rng).encode(errors="replace").decode() if i == at else old
                for i, old in enumerate(table.column_names)
            ]
        )
    elif action == "repeat":
        table = pa.concat_tables([table] * rng.choice([0, 2, 500]))
    elif action == "reverse":
        table = table.take(list(range(rows))[::-1])
    elif action == "many":
        # Equal rows: a few kB that unpack to gigabytes.
        table = pa.table({other: pa.nulls(3_000_000, table[other].type) for other in table.column_names})
    else:
        text = hostile.text(rng).encode(errors="replace").decode()
        value: Any = {
            "text": text,
            "nan": float("nan"),
            "huge": rng.choice([2**62, -1, 2**53]),
            "none": None,
        }[action]
        table = table.set_column(at, name, pa.array([value] * rows))
    pq.write_table(table, path)
    return f"{path.name}: column {name!r}, {action}"


def _other_picture(data: bytes, rng: random.Random) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    wide = rng.choice([20_000, 2**31 - 1])
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", wide, 20_000, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", _zeros())
        + chunk(b"IEND", b"")
    )
    text = b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"a\0\1\0\0\0" + _zeros())
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n%%EOF\n"
    tiff = b"II*\0\x08\0\0\0\xff\xff" + rng.randbytes(400)
    gif = b"GIF89a\xff\xff\xff\xff" + rng.randbytes(400)
    return rng.choice(
        [bomb, text + data[8:], eps, tiff, gif, data[:50] + rng.randbytes(200), b"BM" + rng.randbytes(300)]
    )


@functools.cache
def _zeros() -> bytes:
    """50 MB of nothing, deflated."""
    return zlib.compress(bytes(2500 * 20_000), 1)


@functools.cache
def _gzip_bomb() -> bytes:
    """About 2 GiB of one line, as gzip members of 64 MiB in a row."""
    line = b"Step 1: loss=0.5, grad_norm=1.0, param_norm=1.0\n"
    return gzip.compress(line * (2**26 // len(line)), 1) * 32


class Spot(NamedTuple):
    """A path of the input `root` that is made into something else."""

    path: Path
    root: Path
    rng: random.Random
    hostile: Hostile

    def link(self, target: str, *, relative: bool = False) -> None:
        self.path.symlink_to(os.path.relpath(target, self.path.parent) if relative else target)


def trick(path: Path, root: Path, rng: random.Random, hostile: Hostile) -> str:
    """What a file, or the directory that holds it, was made into: a link, a device, a directory, a size."""
    # A directory, now and then: but not the input itself.
    if rng.random() < 0.3 and root not in (path.parent, path):
        path = path.parent
    action = rng.choice(sorted([*_IN_ITS_PLACE, *_TO_IT]))
    if action in _IN_ITS_PLACE:
        remove(path)
    (_IN_ITS_PLACE | _TO_IT)[action](Spot(path, root, rng, hostile))
    return f"{path.relative_to(root) if path != root else path.name}: {action}"


def _large(at: Spot) -> None:
    path = at.path / "large" if at.path.is_dir() else at.path
    data = path.suffix in (".parquet", ".mp4", "") and path.name not in _JSON_NAMES
    with path.open("ab") as file:
        file.truncate(_LARGE_DATA if data else _LARGE)


def _socket(at: Spot) -> None:
    place, here = socket.socket(socket.AF_UNIX), os.open(".", os.O_RDONLY)
    try:
        # A socket's path is at most 108 bytes long.
        os.chdir(at.path.parent)
        place.bind(at.path.name)
    finally:
        os.fchdir(here)
        os.close(here)
        place.close()


def _deep(at: Spot) -> None:
    folder = at.path if at.path.is_dir() else at.path.parent
    (folder / "/".join("d" * at.rng.choice([80, 300]))).mkdir(parents=True)


def _swap(at: Spot) -> None:
    other = at.rng.choice(files_below(at.root) or [at.path])
    if at.path.is_file():
        content = other.read_bytes()
        other.write_bytes(at.path.read_bytes())
        at.path.write_bytes(content)


def _rename(at: Spot) -> None:
    at.path.rename(at.path.with_name(at.rng.choice(_STRANGE_NAMES)))


def _beside(at: Spot) -> None:
    path = at.path.parent / at.rng.choice(_STRANGE_NAMES)
    if not path.exists():
        path.write_bytes(b"{}")


def _content(at: Spot) -> None:
    at.path.write_bytes(at.rng.choice([b"", b"{}", b"x" * 9]))


_IN_ITS_PLACE: dict[str, Callable[[Spot], None]] = {
    "link to a secret": lambda at: at.link(at.rng.choice(at.hostile.secrets)),
    "relative link to a secret": lambda at: at.link(at.rng.choice(at.hostile.secrets), relative=True),
    "link to a place": lambda at: at.link(at.rng.choice(at.hostile.places), relative=True),
    "link to a device": lambda at: at.link(
        at.rng.choice(["/dev/zero", "/dev/stdin", "/etc/passwd", "/proc/self/mem"])
    ),
    "link to itself": lambda at: at.link(at.path.name),
    "link to its root": lambda at: at.link(str(at.root), relative=True),
    "link to nothing": lambda at: at.link(at.rng.choice(at.hostile.places) + "/new"),
    "FIFO": lambda at: os.mkfifo(at.path),
    "socket": _socket,
    "directory": lambda at: at.path.mkdir(),
    "file": _content,
    "missing": lambda _: None,
}
_TO_IT: dict[str, Callable[[Spot], None]] = {
    "no permission": lambda at: at.path.chmod(at.rng.choice([0, 0o200, 0o111])),
    "large": _large,
    "deep": _deep,
    "swapped": _swap,
    "another name": _rename,
    "a strange name beside it": _beside,
}


def remove(path: Path) -> None:
    """Removes whatever has this name, closed directories too."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    _open_up(path)
    shutil.rmtree(path)


def _open_up(folder: Path) -> None:
    folder.chmod(0o700)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            _open_up(Path(entry.path))


def gzipped(text: bytes) -> bytes:
    """Deterministic gzip: no time in its header."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:
        file.write(text)
    return out.getvalue()
