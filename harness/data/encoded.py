"""Encoded images by row: from parquet, a row group at a time, and from image files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.columns import open_parquet, read_group, refusing, rows_mismatch
from harness.data.mending import damaged, is_pointer, missing
from harness.data.paths import inside
from harness.data.unpack import check_groups
from harness.errors import HarnessError
from harness.received.files import read_received
from harness.units import MIB

# The largest picture of MAX_PIXELS is 48 MiB where nothing compresses it.
MOST_BYTES = 64 * MIB
# Encoded images stay in memory, so that a row group is read once and not for each of its frames: this share
# of what is free. They are a third of the size of resized ones, and reading a row group for one image costs
# more than decoding it.
CACHE_SHARE = 0.25


class EncodedColumn:
    """Encoded images of parquet files by row. A row group is read once and kept while the budget allows."""

    def __init__(self) -> None:
        self._budget: int | None = None
        self.processes = 1
        self._held = 0
        self._groups: OrderedDict[tuple[Path, int, str], Any] = OrderedDict()
        self._layouts: dict[Path, tuple[Any, np.ndarray, frozenset[str]]] = {}
        self._lock = threading.Lock()

    def get(self, root: Path, path: Path, feature: str, row: int) -> Any:
        """The value at `row`: a dict of bytes and path, bytes, a path, or None when the table has no such
        column.

        Raises: HarnessError "dataset-file-missing", "dataset-file-corrupt" or "dataset-rows-mismatch".
        """
        metadata, ends, names = self._layout(root, path)
        if feature not in names:
            return None
        if row >= (int(ends[-1]) if len(ends) else 0):
            raise rows_mismatch(path, int(ends[-1]) if len(ends) else 0, row + 1)
        group = int(np.searchsorted(ends, row, side="right"))
        column = self._column(root, path, feature, group, metadata)
        with refusing(path):
            return column[row - (int(ends[group - 1]) if group else 0)].as_py()

    def _layout(self, root: Path, path: Path) -> tuple[Any, np.ndarray, frozenset[str]]:
        """The file's footer, the row after each of its row groups, and the names of its columns."""
        found = self._layouts.get(path)
        if found is None:
            with open_parquet(root, path) as (file, _), refusing(path):
                ends = np.cumsum(check_groups(file.metadata))
                found = self._layouts[path] = (file.metadata, ends, frozenset(file.schema_arrow.names))
        return found

    def _column(self, root: Path, path: Path, feature: str, group: int, metadata: Any) -> Any:
        key = (path, group, feature)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        with open_parquet(root, path, metadata) as (file, raw), refusing(path):
            column = read_group(file, raw, group, feature)
        with self._lock:
            if key not in self._groups:
                self._groups[key] = column
                self._held += column.nbytes
            if self._budget is None:
                self._budget = int(CACHE_SHARE * available_bytes()) // self.processes
            while self._held > self._budget and len(self._groups) > 1:
                self._held -= self._groups.popitem(last=False)[1].nbytes
        return column

    def __getstate__(self) -> dict[str, Any]:
        return {"processes": self.processes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.processes = state["processes"]


def available_bytes() -> int:
    """Memory that this process may still take: of the host, or of its cgroup when that has less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (_cgroup(name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else max(0, min(free, limit - used))


def _cgroup(name: str) -> int | None:
    """A number of the cgroup (version 2) that a container sees as its own; None when there is none, or no
    limit.
    """
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def encoded_bytes(root: Path, value: Any, standard: str, where: str) -> bytes:
    """The encoded image that a parquet cell means: its own bytes, the file it names, or the file at LeRobot's
    standard place.

    Raises: HarnessError "image-missing", "dataset-path-unsafe", "file-not-regular" or "file-too-large".
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    relative = _inside_part(value, standard) if isinstance(value, str) and value else standard
    path = inside(root, relative)
    try:
        data = read_received(path, root, MOST_BYTES)
    except OSError as error:
        lacking = missing(path)
        what = f"{where}: neither the table nor a file holds the image"
        raise HarnessError(
            "image-missing", what, got=error.strerror, need=relative, fix=lacking.fix
        ) from error
    if is_pointer(data):
        raise damaged("image-corrupt", f"{where}: the image cannot be decoded", path)
    return data


def _inside_part(name: str, standard: str) -> str:
    """`name`, or its last part from images/ on: LeRobot's writer notes where the file lay on its own
    machine.
    """
    return standard if name.replace("\\", "/").endswith("/" + standard) else name
