"""Paths that a dataset's metadata name: filled from templates, and never outside its directory."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from harness.data.mending import another_copy, missing, rewrite
from harness.errors import HarnessError
from harness.received.denied import may_be_opened
from harness.received.files import open_received, read_received, stays, walk
from harness.received.text import word

# The file that every LeRobot dataset has, and the directory in which version 3.0 lists its episodes.
INFO, EPISODES = "meta/info.json", "meta/episodes"
# The tasks of version 2, one a line.
TASKS = "tasks.jsonl"
# LeRobot's templates use plain names with a zero-padded width. `str.format` would also accept attributes and
# any width.
_FIELD = re.compile(r"\{(\w+)(?::(0?\d{1,2}d?|d))?\}", re.ASCII)

# How far below a directory, and at how many names, datasets are looked for. It may be the whole disk.
_DEEPEST, _MOST_LOOKED = 3, 2000
# How far above a file or directory of a dataset its top is: videos/chunk-000/CAMERA/FILE.
_DEEPEST_INSIDE = 4
# What other formats' files are called, and what converts them.
_EXAMPLES = "openpi has scripts to start from, in its"
_FORMATS = (
    (
        re.compile(r"^meta_data$"),
        "LeRobot's format 1",
        "LeRobot's releases up to 0.3.3 have a converter from 1.6 to 2.0",
    ),
    (
        re.compile(r"\.tfrecord|^dataset_info\.json$"),
        "RLDS (TensorFlow Datasets), or arrow files of Hugging Face's datasets",
        f"{_EXAMPLES} examples/libero",
    ),
    (re.compile(r"\.(hdf5|h5)$"), "HDF5", f"{_EXAMPLES} examples/aloha_real"),
    (
        re.compile(r"\.zarr(\.zip)?$|^\.z(group|array)$|^zarr\.json$"),
        "Zarr",
        f"{_EXAMPLES} examples/aloha_real",
    ),
    (re.compile(r"\.(bag|db3|mcap)$"), "a recording of ROS", f"{_EXAMPLES} examples/aloha_real"),
)


def fill(template: str, values: dict[str, int | str], *, where: str) -> str:
    """`template` with `{name}`, `{name:03d}` and `{name:03}` replaced, as `str.format` does.

    Raises: HarnessError "dataset-metadata-invalid" for an unknown field or any other brace.
    """
    rest = _FIELD.sub("", template)
    unknown = [
        match[1]
        for match in _FIELD.finditer(template)
        if match[1] not in values or (match[2] and not isinstance(values[match[1]], int))
    ]
    if unknown or "{" in rest or "}" in rest:
        raise HarnessError(
            "dataset-metadata-invalid",
            f"{where}: the path template {template!r} cannot be filled",
            got=", ".join(unknown) or template,
            need=f"fields {', '.join(sorted(values))}",
            fix=rewrite(where),
        )
    return _FIELD.sub(lambda match: format(values[match[1]], match[2] or ""), template)


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, checked to lie in `root`. The hub cache's links to its blobs count as inside.

    Raises: HarnessError "dataset-path-unsafe".
    """
    pure = PurePosixPath(relative)
    path = root / pure
    unsafe = (
        "\0" in relative or "\\" in relative or pure.is_absolute() or ".." in pure.parts or not pure.parts
    )
    try:
        unsafe = unsafe or not stays(root, path)
    except (OSError, RuntimeError, ValueError):
        unsafe = True
    if unsafe:
        raise HarnessError(
            "dataset-path-unsafe",
            f"the dataset {root} names a file outside its own directory",
            got=relative,
            need="a relative path inside the dataset",
            fix=(
                "do not use this dataset unless you trust it; if a link inside it is yours, replace it by the"
                " files (cp -rL)"
            ),
        )
    return path


def check_is_dataset(root: Path, key: str = "data") -> None:
    """Refuses a directory without meta/info.json, before anything in it is read or hashed.

    `key` is where the recipe names the dataset.

    Raises: HarnessError "not-a-dataset", or "dataset-file-unreadable" if the directory may not be entered.
    """
    try:
        there = stat.S_ISREG(os.stat(root / INFO).st_mode)
    except PermissionError as error:
        raise unreadable(root / INFO, error) from error
    except OSError:
        there = False
    if not there:
        got, fix = _instead(root, key) if os.path.isdir(root) else ("no such directory", None)
        raise HarnessError(
            "not-a-dataset",
            f"{root} is not a LeRobot dataset",
            got=got,
            need="a directory with meta/info.json, meta/ and data/",
            fix=fix
            or f"--set {word(f'{key}.dataset=DIR')}, with the dataset's top directory or hub id for DIR",
        )


def of_file(path: Path, key: str) -> str | None:
    """The fix for a file in the place of a dataset: the dataset that it belongs to; None if there is none."""
    above = _above(path) if os.path.isfile(path) else None
    return None if above is None else f"--set {word(f'{key}.dataset={above}')}"


def _above(path: Path) -> Path | None:
    """The dataset in a directory above `path`; None if there is none."""
    for up in itertools.islice(path.absolute().parents, _DEEPEST_INSIDE):
        if os.path.isfile(up / INFO):
            return up
    return None


def _instead(root: Path, key: str) -> tuple[str, str | None]:
    """What a directory without meta/info.json has, and the fix; None if it tells nothing."""
    if os.path.islink(root / INFO):
        whole = "or mount the whole cache directory with its blobs/, not the snapshot alone"
        return f"{INFO} is a link that leads nowhere", f"copy the files that links lead to (cp -rL), {whole}"
    above = _above(root)
    found = [above] if above is not None else _below(root)
    if found:
        more = f", or one of {len(found) - 1} more that lie there" if len(found) > 1 else ""
        fix = f"--set {word(f'{key}.dataset={found[0]}')}"
        return f"no {INFO} here, but {found[0] / INFO}", fix + more
    for pattern, format_, how in _FORMATS:
        for name in _names(root):
            if pattern.search(name):
                return f"no {INFO}, but {name}: {format_}", f"convert it to LeRobot's format first: {how}"
    if any(os.path.isdir(root / name) for name in ("data", "meta", "videos")):
        return f"no {INFO}", missing(root / INFO).fix
    return f"no {INFO}", None


def _below(root: Path) -> list[Path]:
    """The datasets in the directories below `root`, of the first ones that are looked at."""
    found: list[Path] = []
    level, looked = [root], 0
    for _ in range(_DEEPEST):
        inner: list[Path] = []
        for folder in level:
            for name in _names(folder):
                looked += 1
                if looked > _MOST_LOOKED:
                    return found
                if not name.startswith(".") and os.path.isdir(folder / name):
                    (found if os.path.isfile(folder / name / INFO) else inner).append(folder / name)
        level = inner
    return found


def _names(folder: Path) -> list[str]:
    """The first names in a directory, sorted; none if it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in itertools.islice(entries, _MOST_LOOKED))
    except OSError:
        return []


def open_file(root: Path, path: Path) -> BinaryIO:
    """The regular file `path` of the dataset in `root`, open for reading.

    Raises: HarnessError "dataset-file-missing", "dataset-file-unreadable", "file-leaves-root" or
    "file-not-regular".
    """
    try:
        return open_received(path, root)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except OSError as error:
        raise unreadable(path, error) from error


def walk_dataset(root: Path, *, strays: list[Path] | None = None) -> Iterator[Path]:
    """The files in a directory of a dataset, as `received.files.walk` gives them.

    Raises: HarnessError "dataset-file-unreadable" for a directory that may not be listed; UnsafeFile.
    """
    try:
        yield from walk(root, strays=strays)
    except PermissionError as error:
        raise unreadable(Path(str(error.filename)), error) from error


def read_file(root: Path, path: Path, limit_bytes: int) -> bytes:
    """All bytes of a file of the dataset.

    Raises: HarnessError as `open_file`; "file-too-large".
    """
    try:
        return read_received(path, root, limit_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path) from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> HarnessError:
    """The error for a file or directory of the dataset that is there and cannot be read."""
    return HarnessError(
        "dataset-file-unreadable",
        f"{path} cannot be read",
        got=error.strerror,
        need="a readable file",
        fix=may_be_opened(path, "a+rX") if isinstance(error, PermissionError) else another_copy(path),
    )
