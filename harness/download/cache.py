"""Downloads files and directories from gs://, https:// or a local path into a cache.

The cache never presents an incomplete file or directory as complete. A name from an address or a server is
used in the cache only after validation. `download.entry` describes an entry's layout on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from harness.download.entry import (
    PART,
    RESERVED,
    clear_part,
    commit,
    held,
    kept_files,
    no_space,
    remove,
    write_error,
)
from harness.download.listing import LOCAL, RemoteFile, list_tree, object_url
from harness.download.meter import Meter, Progress
from harness.download.transfer import corrupt, fetch_one, missing, read_page
from harness.download.web import check_address
from harness.errors import HarnessError
from harness.received import consent
from harness.received.consent import Named
from harness.received.files import walk
from harness.received.names import why_no_name
from harness.received.unwritable import NO_SPACE
from harness.run.directory import cache_root, sha256_file
from harness.units import MIB, format_bytes

_THREADS = 4
_TYPED = Named()
# A recipe's weights. The recorded consent tells whether the user named them.
WEIGHTS = Named("weights.source of a received recipe", "--set weights.source=DIR")


class Downloaded(NamedTuple):
    path: Path
    bytes: int
    sha256: str


class DownloadedTree(NamedTuple):
    """A local directory. `files` maps each relative path to (bytes, sha256)."""

    path: Path
    files: dict[str, tuple[int, str]]


def is_remote(source: str) -> bool:
    """True if `source` is a URL and not a local path."""
    return "://" in source


def fetch_file(
    source: str | Path,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    sha256: str | None = None,
    named: Named = _TYPED,
) -> Downloaded:
    """The local copy of the file `source`, downloaded if necessary. `sha256` is the hash that it must have.

    A second call needs neither the network nor the user's consent.

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
        files = _kept_file(_entry_of(source, cache), name)
        if files is not None and sha256 in (None, files[name][1]):
            return Downloaded(_entry_of(source, cache) / name, *files[name])
        consent.check(source, named)
        with held(_entry_of(source, cache), source) as entry:
            # Another process may have fetched it while this one waited for the lock.
            files = _kept_file(entry, name)
            if files is None or sha256 not in (None, files[name][1]):
                consent.announce(source, named, named.bytes)
                url = object_url(source) if source.startswith("gs://") else source
                files = _fetch_all(source, [RemoteFile(name, url, None, sha256=sha256)], entry, progress)
                commit(entry, entry / PART / name, name, source, files)
            return Downloaded(entry / name, *files[name])


def _kept_file(entry: Path, name: str) -> dict[str, tuple[int, str]] | None:
    """The file that the entry holds; None also if it holds a directory that was fetched from this address."""
    return kept_files(entry, name) if (entry / name).is_file() else None


def fetch_tree(
    source: str | Path, *, cache: Path | None = None, progress: Progress | None = None, named: Named = _TYPED
) -> DownloadedTree:
    """The local copy of the directory `source`, downloaded if necessary.

    A second call needs neither the network nor the user's consent. gs:// is listed anonymously. https:// is
    listed from the server's index page, or from a file SHA256SUMS in the directory, which also verifies the
    files.
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
        files = kept_files(_entry_of(source, cache), name)
        if files is not None:
            return DownloadedTree(_entry_of(source, cache) / name, files)
        consent.check(source, named)
        with held(_entry_of(source, cache), source) as entry:
            files = kept_files(entry, name)
            if files is None:
                remote = list_tree(source, lambda url: read_page(url, source))
                if not remote:
                    raise missing(source)
                told = [file.bytes for file in remote if file.bytes is not None]
                consent.announce(source, named, sum(told) if len(told) == len(remote) else named.bytes)
                files = _fetch_all(source, remote, entry, progress)
                commit(entry, entry / PART, name, source, files)
            return DownloadedTree(entry / name, files)


def kept_tree(source: str, *, cache: Path | None = None) -> Path | None:
    """The complete local copy of a remote directory; None if `fetch_tree` would have to download.

    Uses no network and no lock.
    """
    source = source.rstrip("/")
    try:
        entry, name = _entry_of(source, cache), _name(source, "tree")
    except HarnessError:
        # No download accepts such an address, so there is no copy of it.
        return None
    return entry / name if kept_files(entry, name) is not None else None


def check_may_fetch(source: str | None, named: Named) -> None:
    """Refuses what a later `fetch_tree` would refuse before it contacts a server.

    Raises: HarnessError "download-address", "download-scheme", "offline", "fetch-not-asked".
    """
    if source is not None and is_remote(source) and kept_tree(source) is None:
        with _naming(named):
            _name(source.rstrip("/"), "tree")
            consent.check(source.rstrip("/"), named)


def _name(source: str, otherwise: str) -> str:
    """The name of the content of `source` inside its entry: the last part of the address.

    It is `otherwise` if the address has no path.

    Raises: HarnessError "download-address", "download-scheme".
    """
    check_address(source)
    parts = [part for part in urlsplit(source).path.split("/") if part]
    if not parts:
        return otherwise
    # Encoded names are kept encoded. Their decoded form must be a valid name too.
    why = why_no_name(parts[-1], RESERVED) or why_no_name(unquote(parts[-1]), RESERVED)
    if why is not None:
        raise HarnessError(
            "download-address",
            f"the last part of {source} cannot name a file or a directory: {why}",
            got=parts[-1],
            need=f"a name, and none of {', '.join(sorted(RESERVED))}",
            fix=f"correct the address, or download it by hand and {LOCAL}",
        )
    return parts[-1]


def _entry_of(source: str, cache: Path | None) -> Path:
    """The cache entry of `source`, a directory directly below the cache. Checks the address."""
    return (
        cache or cache_root()
    ) / f"{_name(source, 'root')}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def _naming(named: Named) -> Iterator[None]:
    """Adds the option for a local copy to the fix of an error that a local copy would solve."""
    try:
        yield
    except HarnessError as error:
        if named.local and error.fix.endswith(LOCAL):
            error.fix = f"{error.fix}: {named.local}"
        raise


def _fetch_all(
    source: str, remote: list[RemoteFile], entry: Path, progress: Progress | None
) -> dict[str, tuple[int, str]]:
    """Map from relative path to (bytes, sha256), after downloading all files completely to `part/`."""
    part, meter = entry / PART, Meter(remote, progress)
    clear_part(part, {str(part / file.path) for file in remote})
    have = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    need, free = max(sum(file.bytes or 0 for file in remote) - have, 0) + MIB, shutil.disk_usage(entry).free
    if need > free:
        kept = f"the {format_bytes(have)} that have arrived are kept" if have else "nothing was written"
        raise no_space(entry, source, format_bytes(need), format_bytes(free), kept)
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = {
            file.path: pool.submit(fetch_one, file, part / file.path, source, meter) for file in remote
        }
        try:
            # The first failure ends the others: a large file may need hours more.
            ended, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in ended:
                future.result()
            return {path: future.result() for path, future in futures.items()}
        except BaseException as error:
            meter.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            if not isinstance(error, OSError):
                raise
            if error.errno in NO_SPACE:
                remove(entry, PART)
            raise write_error(error, entry, source) from error
