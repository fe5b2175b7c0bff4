"""Files and directories from gs://, https:// or a local path, through a cache that never passes a part for the whole.

An entry of the cache is a directory: `lock`, `part/` (what has come so far; a later call goes on from there), the file or
directory itself, renamed into place when every size and hash is right, and `source.json` with all sizes and sha256.
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
from urllib.parse import urlsplit

from harness.errors import HarnessError
from harness.listing import RemoteFile, list_tree, object_url
from harness.rundir import cache_root, sha256_file, write_atomic
from harness.transfer import Meter, Progress, corrupt, fetch_one, missing, read_page
from harness.units import MIB, format_bytes

SIDECAR = "source.json"
_THREADS = 4
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


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


def fetch_file(source: str | Path, *, cache: Path | None = None, progress: Progress | None = None, sha256: str | None = None) -> Downloaded:
    """The file `source`, local; with `sha256` it must have that hash. A second call needs no network.

    Raises: HarnessError "download-missing", "download-login", "download-unreachable", "download-truncated",
    "download-corrupt", "download-no-space", "download-not-writable", "download-scheme".
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
    _check_scheme(source)
    name = Path(urlsplit(source).path).name or "file"
    with _entry(source, cache) as entry:
        files = _from_cache(entry, name)
        if files is None or sha256 not in (None, files[name][1]):
            url = object_url(source) if source.startswith("gs://") else source
            files = _fetch_all(source, [RemoteFile(name, url, None, sha256=sha256)], entry, progress)
            _commit(entry, entry / "part" / name, name, source, files)
        return Downloaded(entry / name, *files[name])


def fetch_tree(source: str | Path, *, cache: Path | None = None, progress: Progress | None = None) -> DownloadedTree:
    """The directory `source`, local. A second call needs no network.

    gs:// is listed anonymously. https:// is listed by the server's index page, or by a file SHA256SUMS in the directory
    (which also verifies it).
    Raises: as `fetch_file`, and HarnessError "download-no-listing".
    """
    source = str(source)
    if not is_remote(source):
        if not Path(source).is_dir():
            raise missing(source)
        found = sorted(path for path in Path(source).rglob("*") if path.is_file())
        return DownloadedTree(Path(source), {str(path.relative_to(source)): (path.stat().st_size, sha256_file(path)) for path in found})
    source = source.rstrip("/")
    _check_scheme(source)
    name = Path(urlsplit(source).path).name or "tree"
    with _entry(source, cache) as entry:
        files = _from_cache(entry, name)
        if files is None:
            remote = list_tree(source, lambda url: read_page(url, source))
            if not remote:
                raise missing(source)
            files = _fetch_all(source, remote, entry, progress)
            _commit(entry, entry / "part", name, source, files)
        return DownloadedTree(entry / name, files)


def kept_tree(source: str, *, cache: Path | None = None) -> Path | None:
    """Where `fetch_tree` has left the whole of a remote directory; None when it would have to fetch something. No network, no lock."""
    source = source.rstrip("/")
    entry, name = _place(source, cache), Path(urlsplit(source).path).name or "tree"
    return entry / name if _from_cache(entry, name) is not None else None


def _place(source: str, cache: Path | None) -> Path:
    name = Path(urlsplit(source).path).name or "root"
    return (cache or cache_root()) / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


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
    """The open lock of an entry, held. Another process may have removed the entry while this one waited: then once more."""
    while True:
        entry.mkdir(parents=True, exist_ok=True)
        lock = (entry / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), (entry / "lock").stat()):
                return lock
        lock.close()


def _remove_empty(entry: Path) -> None:
    """After a download of which nothing came, the cache is as it was before."""
    with contextlib.suppress(OSError):
        (entry / "part").rmdir()
    with contextlib.suppress(OSError):
        if [path.name for path in entry.iterdir()] == ["lock"]:
            (entry / "lock").unlink()
            entry.rmdir()


def _from_cache(entry: Path, name: str) -> dict[str, tuple[int, str]] | None:
    """What the sidecar tells, when every file of it is there in its size."""
    try:
        files = {path: (int(item["bytes"]), str(item["sha256"])) for path, item in json.loads((entry / SIDECAR).read_text())["files"].items()}
        root = entry if (entry / name).is_file() else entry / name
        return files if files and all((root / path).stat().st_size == size for path, (size, _) in files.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _commit(entry: Path, made: Path, name: str, source: str, files: dict[str, tuple[int, str]]) -> None:
    body = {"source": source, "files": {path: {"bytes": size, "sha256": digest} for path, (size, digest) in sorted(files.items())}}
    write_atomic(entry / SIDECAR, json.dumps(body, indent=2) + "\n")
    target = entry / name
    if target.is_dir():
        shutil.rmtree(target)
    made.rename(target)
    shutil.rmtree(entry / "part", ignore_errors=True)


def _fetch_all(source: str, remote: list[RemoteFile], entry: Path, progress: Progress | None) -> dict[str, tuple[int, str]]:
    """Relative path → (bytes, sha256) of the files, all of them whole under `part/`."""
    part, meter = entry / "part", Meter(remote, progress)
    names = {str(part / file.path) for file in remote}
    for path in [path for path in part.rglob("*") if path.is_file()]:
        if str(path).removesuffix(".etag").removesuffix(".part") not in names:
            path.unlink()
    have = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    need, free = max(sum(file.bytes or 0 for file in remote) - have, 0) + MIB, shutil.disk_usage(entry).free
    if need > free:
        shutil.rmtree(part, ignore_errors=True)
        raise _no_space(entry, source, format_bytes(need), format_bytes(free))
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = {file.path: pool.submit(fetch_one, file, part / file.path, source, meter) for file in remote}
        try:
            return {path: future.result() for path, future in futures.items()}
        except BaseException as error:
            pool.shutdown(wait=True, cancel_futures=True)
            if not isinstance(error, OSError):
                raise
            if error.errno in _FULL:
                shutil.rmtree(part, ignore_errors=True)
            raise _write_error(error, entry, source) from error


def _check_scheme(source: str) -> None:
    parts = urlsplit(source)
    if parts.scheme in ("gs", "https") or (parts.scheme == "http" and parts.hostname in _LOCAL_HOSTS):
        return
    raise HarnessError(
        "download-scheme",
        f"cannot download from {source}",
        got=f"{parts.scheme}://",
        need="a local path, gs://… or https://…",
        fix="use https:// instead of http://" if parts.scheme == "http" else "download it by hand, and give the local path",
    )


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
