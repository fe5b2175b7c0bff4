"""One entry of the cache: a directory with a lock, the partial download, and the complete content.

    <cache>/<name>-<hash of the address>/
        lock         held while anything is written
        part/        the partial download; a later call continues from there
        <name>       the file or directory itself, which gets its name when every size and hash is right
        source.json  all sizes and sha256

This module removes files only inside an entry.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from harness.download.listing import PART_SUFFIX, TAG_SUFFIX
from harness.errors import HarnessError
from harness.received.denied import may_be_written
from harness.received.files import ARTIFACT_BYTES, UnsafeFile
from harness.received.json import read_json
from harness.received.names import why_no_name, why_no_relative_name
from harness.run.directory import write_atomic

_LOCK, PART, _SIDECAR = "lock", "part", "source.json"
# The names in an entry that are not its content.
RESERVED = frozenset({_LOCK, PART, _SIDECAR})
FULL = (errno.ENOSPC, errno.EDQUOT)
# How often an entry may vanish before the error is that of the file system and not of another process.
_TURNS = 1000


@contextlib.contextmanager
def held(entry: Path, source: str) -> Iterator[Path]:
    """The entry of `source`, locked while the context is open.

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
    """The open lock file of an entry, locked.

    Another process may have removed the entry while this one waited, or between any two of these lines. Then
    the lock is taken again.
    """
    turns_left = _TURNS
    while True:
        turns_left -= 1
        try:
            entry.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(
                entry / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
            )
        except (FileNotFoundError, FileExistsError):
            # A symbolic link to nothing gives the same errors, each time.
            if not turns_left:
                raise
            continue
        lock = os.fdopen(descriptor, "w")
        _wait_for(lock, entry)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (entry / _LOCK).lstat()):
                return lock
        lock.close()


def _wait_for(lock: TextIO, entry: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Without a handler, logging writes a warning's bare text to stderr.
        logging.getLogger(__name__).warning("waiting for another process, which downloads into %s", entry)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _remove_empty(entry: Path) -> None:
    """Removes an entry that received nothing, so that the cache is as it was before."""
    with contextlib.suppress(OSError):
        (entry / PART).rmdir()
    with contextlib.suppress(OSError):
        if [path.name for path in entry.iterdir()] == [_LOCK]:
            (entry / _LOCK).unlink()
            entry.rmdir()


def kept_files(entry: Path, name: str) -> dict[str, tuple[int, str]] | None:
    """Files in the sidecar, as path → (bytes, sha256); None unless all exist with their sizes."""
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
    """Renames the complete download `made` to the entry's content, and writes its sizes and hashes."""
    body = {
        "source": source,
        "files": {path: {"bytes": size, "sha256": digest} for path, (size, digest) in sorted(files.items())},
    }
    write_atomic(entry / _SIDECAR, json.dumps(body, indent=2) + "\n")
    remove(entry, name)
    made.rename(entry / name)
    remove(entry, PART)


def remove(entry: Path, name: str) -> None:
    """Removes the file or directory `name` from the entry. An entry made by this module has a lock."""
    assert why_no_name(name) is None, name
    assert (entry / _LOCK).is_file(), entry
    target = entry / name
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target, ignore_errors=name == PART)
    elif os.path.lexists(target):
        target.unlink()


def clear_part(part: Path, names: set[str]) -> None:
    """Removes old files below `part` that do not belong to `names`, and empty directories."""
    left = sorted(part.rglob("*"), reverse=True) if part.is_dir() else []
    for path in left:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif str(path).removesuffix(TAG_SUFFIX).removesuffix(PART_SUFFIX) not in names:
            path.unlink()


def no_space(entry: Path, source: str, need: str | None, free: str | None, part: str) -> HarnessError:
    """The error for a disk that is too small for `source`. `part` says what is done with what had arrived."""
    return HarnessError(
        "download-no-space",
        f"no space for {source} in {entry.parent}; {part}",
        got=free and f"{free} free",
        need=need and f"{need} free",
        fix=f"free space in {entry.parent}, or point HARNESS_CACHE at a larger disk",
    )


def write_error(error: OSError, entry: Path, source: str) -> HarnessError:
    """The HarnessError for a system error while writing the entry."""
    if error.errno in FULL:
        return no_space(entry, source, None, None, "the part that had arrived was removed")
    return HarnessError(
        "download-not-writable",
        f"cannot write the cache {entry}: {error.strerror or error}",
        got=f"uid {os.getuid()}",
        need="a cache directory that this user may write",
        fix=f"{may_be_written(entry.parent)}, or point HARNESS_CACHE at another directory",
    )
