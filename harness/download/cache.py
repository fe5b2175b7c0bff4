"""Files and directories from gs://, https:// or a local path, through a cache that never passes a part for
the whole.

An entry of the cache is a directory: `lock`, `part/` (what has come so far; a later call goes on from there),
the file or directory itself, renamed into place when every size and hash is right, and `source.json` with all
sizes and sha256. Only inside of an entry is anything ever removed. What an address or a server calls it
becomes a name there once it is known to be one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TextIO
from urllib.parse import unquote, urlsplit

from harness.download.listing import LOCAL, PART, TAG, RemoteFile, list_tree, object_url
from harness.download.transfer import Meter, Progress, corrupt, fetch_one, missing, read_page
from harness.download.web import check_address
from harness.errors import HarnessError
from harness.received import consent
from harness.received.consent import Named
from harness.received.files import ARTIFACT_BYTES, UnsafeFile, walk
from harness.received.json import read_json
from harness.received.names import why_no_name, why_no_relative_name
from harness.run.directory import cache_root, sha256_file, write_atomic
from harness.units import MIB, format_bytes

SIDECAR = "source.json"
_LOCK, _PART = "lock", "part"
_RESERVED = frozenset({_LOCK, _PART, SIDECAR})
_THREADS = 4
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TYPED = Named()
# A recipe's weights: whether the user named them, the words that he has given tell.
WEIGHTS = Named("weights.source of a received recipe", "--set weights.source=DIR")


class Downloaded(NamedTuple):
    path: Path
    bytes: int
    sha256: str


class DownloadedTree(NamedTuple):
    """`files`: relative path → (bytes, sha256)."""

    path: Path
    files: dict[str, tuple[int, str]]


def is_remote(source: str) -> bool:
    """Whether `source` is a URL and not a local path."""
    return "://" in source


def fetch_file(
    source: str | Path,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    sha256: str | None = None,
    named: Named = _TYPED,
) -> Downloaded:
    """The file `source`, local; with `sha256` it must have that hash.

    A second call needs no network, and no word of the user's.

    Raises: HarnessError "download-missing", "download-login", "download-unreachable", "download-truncated",
    "download-corrupt", "download-no-space", "download-not-writable", "download-scheme", "download-address",
    "download-redirect"; "offline" and "fetch-not-asked".
    """
    source = str(source)
    if not is_remote(source):
        path = Path(source)
        if not path.is_file():
            raise missing(source)
        found = Downloaded(path, path.stat().st_size, sha256_file(path))
        if sha256 not in (None, found.sha256):
            raise corrupt(source, found.sha256, str(sha256))
        return found
    with _naming(named):
        name = _name(source, "file")
        files = _from_cache(_place(source, cache), name)
        if files is not None and sha256 in (None, files[name][1]):
            return Downloaded(_place(source, cache) / name, *files[name])
        consent.check(source, named)
        with _entry(source, cache) as entry:
            # Another process may have fetched it while this one waited.
            files = _from_cache(entry, name)
            if files is None or sha256 not in (None, files[name][1]):
                consent.announce(source, named, named.bytes)
                url = object_url(source) if source.startswith("gs://") else source
                files = _fetch_all(source, [RemoteFile(name, url, None, sha256=sha256)], entry, progress)
                _commit(entry, entry / _PART / name, name, source, files)
            return Downloaded(entry / name, *files[name])


def fetch_tree(
    source: str | Path, *, cache: Path | None = None, progress: Progress | None = None, named: Named = _TYPED
) -> DownloadedTree:
    """The directory `source`, local. A second call needs no network, and no word of the user's.

    gs:// is listed anonymously. https:// is listed by the server's index page, or by a file SHA256SUMS in the
    directory (which also verifies it).
    Raises: as `fetch_file`, and HarnessError "download-no-listing".
    """
    source = str(source)
    if not is_remote(source):
        if not Path(source).is_dir():
            raise missing(source)
        found = sorted(walk(Path(source)))
        return DownloadedTree(
            Path(source),
            {str(path.relative_to(source)): (path.stat().st_size, sha256_file(path)) for path in found},
        )
    source = source.rstrip("/")
    with _naming(named):
        name = _name(source, "tree")
        files = _from_cache(_place(source, cache), name)
        if files is not None:
            return DownloadedTree(_place(source, cache) / name, files)
        consent.check(source, named)
        with _entry(source, cache) as entry:
            files = _from_cache(entry, name)
            if files is None:
                remote = list_tree(source, lambda url: read_page(url, source))
                if not remote:
                    raise missing(source)
                told = [file.bytes for file in remote if file.bytes is not None]
                consent.announce(source, named, sum(told) if len(told) == len(remote) else named.bytes)
                files = _fetch_all(source, remote, entry, progress)
                _commit(entry, entry / _PART, name, source, files)
            return DownloadedTree(entry / name, files)


def kept_tree(source: str, *, cache: Path | None = None) -> Path | None:
    """Where `fetch_tree` has left the whole of a remote directory; None when it would have to fetch
    something. No network, no lock.
    """
    source = source.rstrip("/")
    try:
        entry, name = _place(source, cache), _name(source, "tree")
    except HarnessError:
        # No fetch takes such an address, so none has left anything.
        return None
    return entry / name if _from_cache(entry, name) is not None else None


def check_may_fetch(source: str | None, named: Named) -> None:
    """Refuses what a later `fetch_tree` would refuse before it asks a server.

    Raises: HarnessError "download-address", "download-scheme", "offline", "fetch-not-asked".
    """
    if source is not None and is_remote(source) and kept_tree(source) is None:
        with _naming(named):
            _name(source.rstrip("/"), "tree")
            consent.check(source.rstrip("/"), named)


def _name(source: str, otherwise: str) -> str:
    """The name of the content of `source` inside its entry: the last part of the address, or `otherwise` when
    it has no path.

    Raises: HarnessError "download-address", "download-scheme".
    """
    check_address(source)
    parts = [part for part in urlsplit(source).path.split("/") if part]
    if not parts:
        return otherwise
    # Encoded names are kept as they are; what they stand for must be a name too.
    why = why_no_name(parts[-1], _RESERVED) or why_no_name(unquote(parts[-1]), _RESERVED)
    if why is not None:
        raise HarnessError(
            "download-address",
            f"the last part of {source} cannot name a file or a directory: {why}",
            got=parts[-1],
            need=f"a name, and none of {', '.join(sorted(_RESERVED))}",
            fix=f"correct the address, or download it by hand and {LOCAL}",
        )
    return parts[-1]


def _place(source: str, cache: Path | None) -> Path:
    """The entry of `source`, whose address is checked: a directory right below the cache."""
    return (
        cache or cache_root()
    ) / f"{_name(source, 'root')}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def _naming(named: Named) -> Iterator[None]:
    """Where a local copy mends it, the fix says by which key or option it is given."""
    try:
        yield
    except HarnessError as error:
        if named.local and error.fix.endswith(LOCAL):
            error.fix = f"{error.fix}: {named.local}"
        raise


@contextlib.contextmanager
def _entry(source: str, cache: Path | None) -> Iterator[Path]:
    """The locked cache entry of `source`."""
    entry = _place(source, cache)
    try:
        lock = _locked(entry)
    except OSError as error:
        raise _write_error(error, entry, source) from error
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
        (entry / _PART).rmdir()
    with contextlib.suppress(OSError):
        if [path.name for path in entry.iterdir()] == [_LOCK]:
            (entry / _LOCK).unlink()
            entry.rmdir()


def _from_cache(entry: Path, name: str) -> dict[str, tuple[int, str]] | None:
    """What the sidecar tells, when every file of it is there in its size."""
    try:
        told = read_json(entry / SIDECAR, entry, ARTIFACT_BYTES)["files"]
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


def _commit(entry: Path, made: Path, name: str, source: str, files: dict[str, tuple[int, str]]) -> None:
    body = {
        "source": source,
        "files": {path: {"bytes": size, "sha256": digest} for path, (size, digest) in sorted(files.items())},
    }
    write_atomic(entry / SIDECAR, json.dumps(body, indent=2) + "\n")
    _remove(entry, name)
    made.rename(entry / name)
    _remove(entry, _PART)


def _remove(entry: Path, name: str) -> None:
    """Removes what lies in the entry by this name. An entry is what this module made: it has a lock."""
    assert why_no_name(name) is None, name
    assert (entry / _LOCK).is_file(), entry
    target = entry / name
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target, ignore_errors=name == _PART)
    elif os.path.lexists(target):
        target.unlink()


def _clear(part: Path, names: set[str]) -> None:
    """Removes what an earlier call left below `part` of files that are not among `names`, and directories
    that are empty.
    """
    left = sorted(part.rglob("*"), reverse=True) if part.is_dir() else []
    for path in left:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif str(path).removesuffix(TAG).removesuffix(PART) not in names:
            path.unlink()


def _fetch_all(
    source: str, remote: list[RemoteFile], entry: Path, progress: Progress | None
) -> dict[str, tuple[int, str]]:
    """Relative path → (bytes, sha256) of the files, all of them whole under `part/`."""
    part, meter = entry / _PART, Meter(remote, progress)
    _clear(part, {str(part / file.path) for file in remote})
    have = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    need, free = max(sum(file.bytes or 0 for file in remote) - have, 0) + MIB, shutil.disk_usage(entry).free
    if need > free:
        _remove(entry, _PART)
        raise _no_space(entry, source, format_bytes(need), format_bytes(free))
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = {
            file.path: pool.submit(fetch_one, file, part / file.path, source, meter) for file in remote
        }
        try:
            return {path: future.result() for path, future in futures.items()}
        except BaseException as error:
            pool.shutdown(wait=True, cancel_futures=True)
            if not isinstance(error, OSError):
                raise
            if error.errno in _FULL:
                _remove(entry, _PART)
            raise _write_error(error, entry, source) from error


def _no_space(entry: Path, source: str, need: str | None, free: str | None) -> HarnessError:
    return HarnessError(
        "download-no-space",
        f"no space for {source} in {entry.parent}; what had come of it was removed",
        got=free and f"{free} free",
        need=need and f"{need} free",
        fix=f"free space in {entry.parent}, or point HARNESS_CACHE at a larger disk",
    )


def _write_error(error: OSError, entry: Path, source: str) -> HarnessError:
    if error.errno in _FULL:
        return _no_space(entry, source, None, None)
    return HarnessError(
        "download-not-writable",
        f"cannot write the cache {entry}: {error.strerror or error}",
        got=f"uid {os.getuid()}",
        need="a cache directory that this user may write",
        fix=f"chown $(id -u) {entry.parent}, or point HARNESS_CACHE at another directory",
    )
