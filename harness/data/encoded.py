"""Encoded images by row: from parquet, read by row groups, and from image files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.columns import open_parquet, read_group, refusing, rows_mismatch
from harness.data.fields import NAME_LETTERS
from harness.data.mending import damaged, missing
from harness.data.paths import inside, unreadable
from harness.data.unpack import check_groups
from harness.errors import HarnessError
from harness.received.files import read_received, there
from harness.received.pointers import is_pointer
from harness.units import MIB

# A picture of MAX_PIXELS has 48 MiB if it is not compressed at all.
MOST_BYTES = 64 * MIB
# The share of free memory for encoded images. They stay in memory so that a row group is read once, not once
# per frame. They are a third of the size of resized images. Reading a row group for one image costs more than
# decoding the image.
CACHE_SHARE = 0.25


class EncodedColumn:
    """Encoded images of parquet files by row.

    A row group is read once and kept while the memory budget allows.
    """

    def __init__(self) -> None:
        self._budget: int | None = None
        self.processes = 1
        self._held = 0
        self._groups: OrderedDict[tuple[Path, int, str], Any] = OrderedDict()
        self._layouts: dict[Path, tuple[Any, np.ndarray, frozenset[str]]] = {}
        self._lock = threading.Lock()

    def get(self, root: Path, path: Path, feature: str, row: int) -> Any:
        """The value at `row`: a dict of bytes and path, bytes, a path, or None.

        It is None if the table has no such column.

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

    def has(self, root: Path, path: Path, feature: str) -> bool:
        """True if the table has a column of this name.

        Raises: HarnessError "dataset-file-missing" or "dataset-file-corrupt".
        """
        return feature in self._layout(root, path)[2]

    def _layout(self, root: Path, path: Path) -> tuple[Any, np.ndarray, frozenset[str]]:
        """The file's footer, the cumulative row count after each row group, and the names of the columns."""
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
    """Bytes of memory that this process may still take, limited by the host and by its cgroup."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (_cgroup(name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else max(0, min(free, limit - used))


def _cgroup(name: str) -> int | None:
    """A value of the container's own cgroup (version 2); None if there is no such file or no limit."""
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def encoded_bytes(root: Path, value: Any, standard: str, where: str) -> bytes:
    """The encoded image that a parquet cell refers to.

    It is one of these: the cell's own bytes, the file that the cell names, or LeRobot's standard file.

    Raises: HarnessError "image-missing", "dataset-feature-invalid", "dataset-path-unsafe",
    "file-not-regular" or "file-too-large".
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if value is not None and (not isinstance(value, str) or len(value) > NAME_LETTERS):
        raise _no_image(value, where)
    relative = _inside_part(root, value, standard) if value else standard
    try:
        path = inside(root, relative)
    except HarnessError as refusal:
        if relative != standard:
            refusal.fix = _embed(f"or a path inside of the dataset, such as {standard}")
        raise
    try:
        data = read_received(path, root, MOST_BYTES)
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        lacking = missing(path)
        what = f"{where}: neither the table nor a file holds the image"
        raise HarnessError(
            "image-missing", what, got=error.strerror, need=relative, fix=lacking.fix
        ) from error
    if is_pointer(data):
        raise damaged("image-corrupt", f"{where}: the image cannot be decoded", path)
    return data


def _no_image(value: Any, where: str) -> HarnessError:
    """The error for a cell that holds neither an image's bytes nor a path, such as a list of pixels."""
    listed = isinstance(value, list)
    return HarnessError(
        "dataset-feature-invalid",
        f"{where}: the table holds no encoded image, and no path of one",
        got=f"a {'list' if listed else 'text'} of {len(value):,} {'values' if listed else 'letters'}"
        if isinstance(value, (list, str))
        else type(value).__name__,
        need="the bytes of an image file, or its path",
        fix=_embed("as LeRobot's own writer does"),
    )


def _embed(how: str) -> str:
    """The fix for cells from which no image can be taken."""
    return f"in a copy of the dataset, write the bytes of each picture's PNG into the table, {how}"


def _inside_part(root: Path, name: str, standard: str) -> str:
    """The part of `name` from `images` on, if it is absolute and that file is there; else `name`.

    `standard` if `name` ends with it. LeRobot's writer records the file's path on its own machine, and others
    do so with other names of files.
    """
    plain = name.replace("\\", "/")
    if plain.endswith("/" + standard):
        return standard
    at = plain.rfind("/images/") + 1
    part = plain[at:]
    return part if at and ".." not in part and there(root / part) else name
