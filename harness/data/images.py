"""Camera images as uint8 [H, W, 3]: from bytes in parquet, and from image files. Video has its own module."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.columns import corrupt, open_parquet
from harness.data.paths import inside
from harness.data.png import chunks, decode_plain, is_png, size_of
from harness.errors import HarnessError

# 4096 × 4096: more than any robot camera gives, and 48 MiB when decoded.
MAX_PIXELS = 1 << 24
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Encoded images stay in memory, so that a row group is read once and not for each of its frames: this share of what is free.
# They are a third of the size of resized ones, and reading a row group for one image costs more than decoding it.
CACHE_SHARE = 0.25


def decode(data: bytes, where: str) -> np.ndarray:
    """The image in `data` as RGB, uint8 [H, W, 3].

    Raises: HarnessError "image-corrupt" or "image-too-large", before a too large image is decoded.
    """
    from PIL import Image

    plain = decode_plain(data, MAX_PIXELS)
    if plain is not None:
        return plain
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise too_large(where, image.width, image.height)
            # [H, W, 3]
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except HarnessError:
        raise
    except Image.DecompressionBombError as error:
        raise too_large(where, None, None) from error
    # Pillow's decoders raise nearly anything on damaged input.
    except Exception as error:
        raise image_corrupt(where, error) from error


def check_image(data: bytes, where: str) -> tuple[int, int]:
    """Height and width of an encoded image that is whole by its structure; it is not decoded.

    Raises: HarnessError "image-corrupt" or "image-too-large".
    """
    try:
        width, height = _size(data)
        if 0 < width * height <= MAX_PIXELS and is_png(data):
            chunks(data)
    # Pillow's parsers raise nearly anything on damaged input.
    except Exception as error:
        raise image_corrupt(where, error) from error
    if width * height > MAX_PIXELS:
        raise too_large(where, width, height)
    return height, width


def _size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    if is_png(data):
        return size_of(data)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # The end marker cannot occur inside a JPEG's compressed data.
            if image.format == "JPEG" and b"\xff\xd9" not in data:
                raise ValueError(f"it ends after {len(data)} bytes without its end marker")
            return image.size
    except Image.DecompressionBombError:
        # More than Pillow would open is more than MAX_PIXELS.
        return MAX_PIXELS, MAX_PIXELS


def image_corrupt(where: str, error: Exception) -> HarnessError:
    """The error for an image that is not whole, or no image."""
    return HarnessError(
        "image-corrupt",
        f"{where}: the image cannot be decoded",
        got=str(error)[:200],
        need="a whole " + ", ".join(_FORMATS) + " image",
        fix="download that file again, or leave the episode out of the dataset",
    )


def too_large(where: str, width: int | None, height: int | None) -> HarnessError:
    """The error for an image that is too large to decode."""
    return HarnessError(
        "image-too-large",
        f"{where}: the image is too large to be a camera's",
        got="over Pillow's limit" if width is None else f"{width} × {height}",
        need=f"at most {MAX_PIXELS} pixels",
        fix="resize the dataset's images, or leave the episode out",
    )


class EncodedColumn:
    """Encoded images of parquet files by row. A row group is read once and kept while the budget allows."""

    def __init__(self) -> None:
        self._budget: int | None = None
        self.processes = 1
        self._held = 0
        self._groups: OrderedDict[tuple[Path, int, str], Any] = OrderedDict()
        self._layouts: dict[Path, tuple[Any, np.ndarray, frozenset[str]]] = {}
        self._lock = threading.Lock()

    def get(self, path: Path, feature: str, row: int) -> Any:
        """The value at `row`: a dict of bytes and path, bytes, a path, or None when the table has no such column.

        Raises: HarnessError "dataset-file-missing", "dataset-file-corrupt" or "dataset-rows-mismatch".
        """
        metadata, ends, names = self._layout(path)
        if feature not in names:
            return None
        if row >= (int(ends[-1]) if len(ends) else 0):
            raise HarnessError("dataset-rows-mismatch", f"{path} has no row {row}", got=int(ends[-1]) if len(ends) else 0, fix="download the dataset again")
        group = int(np.searchsorted(ends, row, side="right"))
        column = self._column(path, feature, group, metadata)
        return column[row - (int(ends[group - 1]) if group else 0)].as_py()

    def _layout(self, path: Path) -> tuple[Any, np.ndarray, frozenset[str]]:
        """The file's footer, the row after each of its row groups, and the names of its columns."""
        found = self._layouts.get(path)
        if found is None:
            with open_parquet(path) as file:
                metadata = file.metadata
                ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
                found = self._layouts[path] = (metadata, ends, frozenset(file.schema_arrow.names))
        return found

    def _column(self, path: Path, feature: str, group: int, metadata: Any) -> Any:
        key = (path, group, feature)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        with open_parquet(path, metadata) as file:
            try:
                chunks = file.read_row_group(group, columns=[feature], use_threads=False).column(feature)
                # Combining would copy a single chunk as well.
                column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
            # Arrow reports damage through several unrelated exceptions.
            except Exception as error:
                raise corrupt(path, error) from error
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
    """A number of the cgroup (version 2) that a container sees as its own; None when there is none, or no limit."""
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def encoded_bytes(root: Path, value: Any, standard: str, where: str) -> bytes:
    """The encoded image that a parquet cell means: its own bytes, the file it names, or the file at LeRobot's standard place.

    Raises: HarnessError "image-missing" or "dataset-path-unsafe".
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    relative = _inside_part(value, standard) if isinstance(value, str) and value else standard
    path = inside(root, relative)
    try:
        return path.read_bytes()
    except OSError as error:
        raise HarnessError(
            "image-missing",
            f"{where}: neither the table nor a file holds the image",
            got=error.strerror,
            need=relative,
            fix="download the dataset again, with its images/ directory",
        ) from error


def _inside_part(name: str, standard: str) -> str:
    """`name`, or its last part from images/ on: LeRobot's writer notes where the file lay on its own machine."""
    return standard if name.replace("\\", "/").endswith("/" + standard) else name
