"""One file over HTTP: asked for again from where a transfer broke off, and verified before it gets its name."""

from __future__ import annotations

import base64
import hashlib
import ssl
import threading
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import cast
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from harness.errors import HarnessError
from harness.listing import RemoteFile
from harness.rundir import sha256_file
from harness.units import MIB

Progress = Callable[[int, int], None]

_BLOCK_BYTES = MIB
_TIMEOUT_S = 60
_ATTEMPTS = 4


class Meter:
    """Adds up what has come of each file, for the progress callback."""

    def __init__(self, remote: list[RemoteFile], progress: Progress | None) -> None:
        self._lock = threading.Lock()
        self._progress = progress
        self._have: dict[str, int] = {}
        self._sizes = {file.path: file.bytes or 0 for file in remote}

    def update(self, path: str, have: int, size: int | None = None) -> None:
        with self._lock:
            self._have[path] = have
            self._sizes[path] = size or self._sizes[path]
            if self._progress is not None:
                done = sum(self._have.values())
                self._progress(done, max(done, sum(self._sizes.values())))


def fetch_one(file: RemoteFile, target: Path, source: str, meter: Meter) -> tuple[int, str]:
    """(bytes, sha256) of `target`, fetched and verified; goes on from what a broken attempt left."""
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(part)
    last: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(0.1 * 2**attempt)
        try:
            size, expected = _append(file, part, source, meter)
        except (HTTPException, URLError, ConnectionError, TimeoutError, ssl.SSLError) as error:
            last = error
            continue
        if size == expected:
            return _verified(file, part, target, source)
        last = None
    if last is not None and not part.exists():
        raise _unreachable(file.url, last) from last
    raise HarnessError(
        "download-truncated",
        f"{file.url} broke off {_ATTEMPTS} times",
        got=f"{part.stat().st_size:,} bytes" if part.exists() else "nothing",
        need=f"{file.bytes:,} bytes" if file.bytes is not None else "the whole file",
        fix="run the same command again: it goes on where this one ended",
    )


def _append(file: RemoteFile, part: Path, source: str, meter: Meter) -> tuple[int, int]:
    """(bytes in `part`, bytes of the whole file) after one request for what is lacking."""
    have = part.stat().st_size if part.exists() else 0
    if have and have == file.bytes:
        return have, have
    tag_file = part.with_name(part.name + ".etag")
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and tag_file.exists():
        headers["If-Range"] = tag_file.read_text()
    try:
        response = _open(file.url, source, headers)
    except HTTPError as error:
        if error.code != 416:
            raise
        # Nothing comes after `have`: the file is whole already, or it is another file by now.
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return have, have
        part.unlink()
        return 0, -1
    with response:
        have = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        expected = file.bytes if file.bytes is not None else (have + int(length) if length is not None else None)
        tag = response.headers.get("ETag", "")
        if tag and not tag.startswith("W/"):
            tag_file.write_text(tag)
        with part.open("ab" if have else "wb") as out:
            while block := response.read1(_BLOCK_BYTES):
                out.write(block)
                have += len(block)
                meter.update(file.path, have, expected)
    return have, have if expected is None else expected


def _verified(file: RemoteFile, part: Path, target: Path, source: str) -> tuple[int, str]:
    digest, md5 = sha256_file(part), None
    if file.md5 is not None:
        with part.open("rb") as data:
            md5 = base64.b64encode(hashlib.file_digest(data, "md5").digest()).decode()
    for got, need in ((digest, file.sha256), (md5, file.md5)):
        if need is not None and got != need:
            part.unlink()
            raise corrupt(f"{source} ({file.path})", str(got), need)
    part.with_name(part.name + ".etag").unlink(missing_ok=True)
    part.rename(target)
    return target.stat().st_size, digest


def _open(url: str, source: str, headers: dict[str, str]) -> HTTPResponse:
    try:
        return cast(HTTPResponse, urlopen(Request(url, headers={"User-Agent": "harness", **headers}), timeout=_TIMEOUT_S, context=_tls(url)))
    except HTTPError as error:
        if error.code in (401, 403):
            raise HarnessError(
                "download-login",
                f"{source} needs a login, or does not exist (HTTP {error.code})",
                need="a public address",
                fix="download it by hand with your account, and give the local path",
            ) from error
        if error.code in (404, 410):
            raise missing(source) from error
        if error.code == 416 or error.code >= 500 or error.code == 429:
            raise
        raise _unreachable(url, error) from error


def read_page(url: str, source: str) -> tuple[bytes, str] | None:
    """(body, content type) of a small page; None when there is no such page."""
    last: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(0.1 * 2**attempt)
        try:
            with _open(url, source, {}) as response:
                return response.read(), response.headers.get_content_type()
        except HarnessError as error:
            if error.code == "download-missing":
                return None
            raise
        except (HTTPException, OSError) as error:
            last = error
    raise _unreachable(url, last) from last


def _tls(url: str) -> ssl.SSLContext | None:
    if not url.startswith("https:"):
        return None
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):
        return ssl.create_default_context()
    # A slim container has no certificate authorities of its own.
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def missing(source: str) -> HarnessError:
    return HarnessError("download-missing", f"there is nothing at {source}", need="an existing file or directory", fix="check the address for a typing error")


def _unreachable(url: str, error: BaseException | None) -> HarnessError:
    return HarnessError(
        "download-unreachable",
        f"cannot reach {url}: {error}",
        need="a network connection (a proxy is taken from HTTPS_PROXY)",
        fix="check the network and try again, or copy the files by hand and give their local path",
    )


def corrupt(source: str, got: str, need: str) -> HarnessError:
    return HarnessError(
        "download-corrupt", f"{source} has other bytes than it should have", got=got, need=need, fix="try again; if it stays so, the source has changed"
    )
