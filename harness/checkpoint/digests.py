"""Keeps a sha256 of every leaf and text file of a checkpoint in a sidecar file, because Orbax has none.

A leaf's digest is that of its elements in C order, in the dtype in which it is stored. Chunks and compression
do not change it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from harness.checkpoint.format import DAMAGE
from harness.checkpoint.pieces import parts_in_order
from harness.checkpoint.texts_changed import changes
from harness.checkpoint.tiles import Tiled, tiled_from, tiles_of
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES, there
from harness.received.json import read_json
from harness.run.steps import DIGESTS

# Hashing releases Python's lock, so leaves are hashed in parallel. This many are on the host at a time.
_THREADS = 4
# A large leaf comes to the host in slices of its first axis, so that no second copy of 4.5 GiB is needed.
_SLICE_BYTES = 2**28


class Digests(NamedTuple):
    """The digests of a step. `leaves`: item/path → sha256; `files`: path below the step → sha256.

    `tiles`: item/path → the digests by tile of a leaf that several processes saved part by part. A step
    of one process has none, and its sidecar does not name them.
    """

    leaves: dict[str, str]
    files: dict[str, str]
    tiles: dict[str, Tiled] = {}

    def to_json(self) -> str:
        body = {"leaves": self.leaves, "files": self.files}
        tiles = {path: tiled._asdict() for path, tiled in self.tiles.items()}
        return json.dumps(body | ({"tiles": tiles} if tiles else {}), indent=1, sort_keys=True) + "\n"

    def of(self, path: str) -> str | Tiled:
        """What is known of the leaf at item/path; empty if nothing is."""
        return self.tiles.get(path) or self.leaves.get(path, "")


def leaf_digests(leaves: Mapping[str, Any], *, streamed: bool = False) -> dict[str, str]:
    """Path → sha256 of each array. With `streamed`, no array keeps a copy of itself on the host."""
    with ThreadPoolExecutor(_THREADS) as pool:
        of = digest_of_parts if streamed else digest
        return dict(zip(leaves, pool.map(of, leaves.values()), strict=True))


def digest(leaf: Any) -> str:
    """The sha256 of a jax or numpy array, or of a number."""
    total = hashlib.sha256()
    if isinstance(leaf, jax.Array) and leaf.nbytes > _SLICE_BYTES and leaf.ndim > 1:
        rows = max(_SLICE_BYTES // (leaf.nbytes // leaf.shape[0]), 1)
        for start in range(0, leaf.shape[0], rows):
            total.update(_bytes(leaf[start : start + rows]))
    else:
        total.update(_bytes(leaf))
    return total.hexdigest()


def digest_of_parts(leaf: Any) -> str:
    """The same of an array that is whole in this process, read part by part."""
    total = hashlib.sha256()
    for part in parts_in_order(leaf):
        total.update(_bytes(part))
    return total.hexdigest()


def _bytes(leaf: Any) -> Any:
    return np.ascontiguousarray(np.asarray(leaf)).reshape(-1).view(np.uint8)


def read_digests(step: Path) -> Digests | None:
    """The sidecar of a step, after its text files were compared with it.

    None for a step without a sidecar (not ours, or an older one).
    Raises: HarnessError "checkpoint-damaged" if the sidecar is malformed, or a text file differs from it.
    """
    path = step / DIGESTS
    if not there(path):
        return None
    try:
        body = read_json(path, step, ARTIFACT_BYTES)
        leaves, files = (
            {str(name): str(value) for name, value in body[key].items()} for key in ("leaves", "files")
        )
        tiles = {str(name): tiled_from(value) for name, value in body.get("tiles", {}).items()}
        digests = Digests(leaves, files, tiles)
        every = (
            *leaves.values(),
            *files.values(),
            *(one for tiled in tiles.values() for one in tiled.sha256),
        )
        if any(len(value) != 64 for value in every):
            raise ValueError("a sha256 has 64 digits")
    except (OSError, *DAMAGE, AttributeError) as error:
        raise _damaged(step, f"{DIGESTS} is not a list of sha256 ({type(error).__name__})") from error
    try:
        for change in changes(step, digests.files):
            raise _damaged(step, change.why, got=change.got, need=change.need)
    except PermissionError as error:
        raise _damaged(step, f"{error.filename} cannot be read: {error.strerror}") from error
    return digests


def check(path: str, array: np.ndarray[Any, Any], expected: str | Tiled) -> None:
    """Checks that the array read from `path` is the one that was saved.

    Raises: HarnessError "checkpoint-damaged".
    """
    if isinstance(expected, Tiled):
        try:
            cells = tiles_of(array.shape, expected)
        except ValueError as error:
            raise _damaged(f"array {path}", f"{DIGESTS} has digests of another array: {error}") from error
        for cell, one in cells:
            check(path, array[cell], one)
        return
    found = digest(array)
    if found != expected:
        raise _damaged(f"array {path}", "its data has changed since it was saved", got=found, need=expected)


def _damaged(step: Path | str, why: str, *, got: str | None = None, need: str | None = None) -> HarnessError:
    return HarnessError(
        "checkpoint-damaged",
        f"{step}: {why}",
        got=got and f"sha256 {got[:16]}…",
        need=need and f"sha256 {need[:16]}…",
        fix=(
            "copy this step again from where it was made; or move it away, and --resume goes on from the step"
            " before (inspect --deep tells what is sound)"
        ),
    )
