"""One entry of the cache: a directory with a lock, what has come so far, and what is whole.

    <cache>/<name>-<hash of the address>/
        lock         held while anything is written
        part/        what has come so far; a later call goes on from there
        <name>       the file or directory itself, renamed into place when every size and hash is right
        source.json  all sizes and sha256

Only inside of an entry is anything ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from harness.download.listing import PART_SUFFIX, TAG_SUFFIX
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES, UnsafeFile
from harness.received.json import read_json
from harness.received.names import why_no_name, why_no_relative_name
from harness.run.directory import write_atomic

_LOCK, PART, _SIDECAR = "lock", "part", "source.json"
# What an entry has beside its content.
RESERVED = frozenset({_LOCK, PART, _SIDECAR})
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def held(entry: Path, source: str) -> Iterator[Path]:
    """The entry, which is for `source`, locked.

    Raises: HarnessError "download-no-space", "download-not-writable".
    """
    try:
        lock = _locked(entry)
    except OSError as error:
        raise write_error(error, entry, source) from error
    with lock:
        try:
            yield entry
        finally:
            _remove_empty(entry)


def _locked(entry: Path) -> TextIO:
    """The open lock of an entry, held.

    Another process may have removed the entry while this one waited: then once more.
    """
    while True:
        entry.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(entry / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        lock = os.fdopen(descriptor, "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (entry / _LOCK).lstat()):
                return lock
        lock.close()


def _remove_empty(entry: Path) -> None:
    """After a download of which nothing came, the cache is as it was before."""
    with contextlib.suppress(OSError):
        (entry / PART).rmdir()
    with contextlib.suppress(OSError):
        if [path.name for path in entry.iterdir()] == [_LOCK]:
            (entry / _LOCK).unlink()
            entry.rmdir()


def kept_files(entry: Path, name: str) -> dict[str, tuple[int, str]] | None:
    """What the sidecar tells, when every file of it is there in its size."""
    try:
        told = read_json(entry / _SIDECAR, entry, ARTIFACT_BYTES)["files"]
        files = {str(path): (int(item["bytes"]), str(item["sha256"])) for path, item in told.items()}
        root = entry if (entry / name).is_file() else entry / name
        if (
            not files
            or (root == entry and set(files) != {name})
            or any(why_no_relative_name(path) for path in files)
        ):
            return None
        return (
            files
            if all(
                (root / path).is_file() and (root / path).stat().st_size == size
                for path, (size, _) in files.items()
            )
            else None
        )
    except (OSError, UnsafeFile, ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return None


def commit(entry: Path, made: Path, name: str, source: str, files: dict[str, tuple[int, str]]) -> None:
    """Renames what was `made` to the entry's content, with its sizes and hashes beside it."""
    body = {
        "source": source,
        "files": {path: {"bytes": size, "sha256": digest} for path, (size, digest) in sorted(files.items())},
    }
    write_atomic(entry / _SIDECAR, json.dumps(body, indent=2) + "\n")
    remove(entry, name)
    made.rename(entry / name)
    remove(entry, PART)


def remove(entry: Path, name: str) -> None:
    """Removes what lies in the entry by this name. An entry is what this module made: it has a lock."""
    assert why_no_name(name) is None, name
    assert (entry / _LOCK).is_file(), entry
    target = entry / name
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target, ignore_errors=name == PART)
    elif os.path.lexists(target):
        target.unlink()


def clear_part(part: Path, names: set[str]) -> None:
    """Removes what an earlier call left below `part` of files that are not among `names`, and directories
    that are empty.
    """
    left = sorted(part.rglob("*"), reverse=True) if part.is_dir() else []
    for path in left:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif str(path).removesuffix(TAG_SUFFIX).removesuffix(PART_SUFFIX) not in names:
            path.unlink()


def no_space(entry: Path, source: str, need: str | None, free: str | None) -> HarnessError:
    """The error for a disk that is too small for `source`."""
    return HarnessError(
        "download-no-space",
        f"no space for {source} in {entry.parent}; what had come of it was removed",
        got=free and f"{free} free",
        need=need and f"{need} free",
        fix=f"free space in {entry.parent}, or point HARNESS_CACHE at a larger disk",
    )


def write_error(error: OSError, entry: Path, source: str) -> HarnessError:
    """What the system's error says of the entry, as one of ours."""
    if error.errno in FULL:
        return no_space(entry, source, None, None)
    return HarnessError(
        "download-not-writable",
        f"cannot write the cache {entry}: {error.strerror or error}",
        got=f"uid {os.getuid()}",
        need="a cache directory that this user may write",
        fix=f"chown $(id -u) {entry.parent}, or point HARNESS_CACHE at another directory",
    )
