"""Downloads one file over HTTP. Resumes a broken transfer, and verifies the file before it gets its name."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import shutil
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError

from harness.download.answer import check_no_page, check_plain, version_of
from harness.download.listing import LOCAL, PART_SUFFIX, TAG_SUFFIX, RemoteFile, no_listing
from harness.download.meter import Meter
from harness.download.web import open_url
from harness.errors import HarnessError
from harness.received.text import one_line
from harness.run.directory import sha256_file
from harness.units import GIB, KIB, MIB, format_bytes

_BLOCK_BYTES = MIB
_TIMEOUT_S = 60
# Attempts in a row that each bring less than this.
_ATTEMPTS = 4
_PROGRESS_BYTES = MIB
# The longest wait that a server may ask for (Retry-After).
_LONGEST_WAIT_S = 120
# A page of a listing: 100,000 names with their hashes take a fifth of this.
_PAGE_BYTES = 64 * MIB
_PAGE_S = 300
# No file of a checkpoint is larger. A file of unknown size may not take the disk's last bytes.
_MOST_BYTES = 1024 * GIB
_LOOK_EVERY_BYTES = 64 * MIB
_LEAVE_FREE_BYTES = 256 * MIB
# A transfer slower than this many bytes in this many seconds counts as stalled.
_STALL_S = 600
_STALL_BYTES = 64 * KIB
# What a system says when the network itself has gone: a Wi-Fi that changed, a tunnel that ended.
_NETWORK = (
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOTCONN,
)


def fetch_one(file: RemoteFile, target: Path, source: str, meter: Meter) -> tuple[int, str]:
    """Bytes and SHA-256 of `target`, downloaded and verified. Continues from an earlier attempt's part."""
    part = target.with_name(target.name + PART_SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(part)
    last: Exception | None = None
    attempt, most = 0, _size(part)
    while attempt < _ATTEMPTS:
        meter.wait(_wait_s(attempt, last) if attempt else 0)
        try:
            size, expected = _append(file, part, source, meter)
        except (HTTPException, URLError, ConnectionError, TimeoutError, ssl.SSLError) as error:
            last = error
        except OSError as error:
            # A network that goes away is a plain OSError, as a full disk is.
            if error.errno not in _NETWORK:
                raise
            last = error
        else:
            if size == expected:
                return _verified(file, part, target, source)
            last = None
        # A large file on a line that often breaks comes piece by piece.
        attempt = 1 if _size(part) - most >= _PROGRESS_BYTES else attempt + 1
        most = max(most, _size(part))
    if last is not None and not part.exists():
        raise _unreachable(file.url, last) from last
    raise HarnessError(
        "download-truncated",
        f"{file.url} broke off {_ATTEMPTS} times",
        got=f"{part.stat().st_size:,} bytes" if part.exists() else "nothing",
        need=f"{file.bytes:,} bytes" if file.bytes is not None else "the whole file",
        fix="run the same command again: it goes on where this one ended",
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _wait_s(attempt: int, error: BaseException | None) -> float:
    """Seconds before the next attempt: what a busy server asks for, else longer each time."""
    if isinstance(error, HTTPError) and error.code in (429, 503):
        asked = error.headers.get("Retry-After", "")
        if asked.isascii() and asked.isdecimal() and len(asked) < 10:
            return float(min(int(asked), _LONGEST_WAIT_S))
    return 0.05 * 4.0**attempt


def _append(file: RemoteFile, part: Path, source: str, meter: Meter) -> tuple[int, int]:
    """Bytes in `part` and bytes of the whole file, after one request for the missing bytes."""
    have = _size(part)
    if have and have == file.bytes:
        return have, have
    tag_file = part.with_name(part.name + TAG_SUFFIX)
    headers = {"Range": f"bytes={have}-"} if have else {}
    tag = tag_file.read_text() if have and tag_file.exists() else ""
    # A weak tag is none that a server may go by.
    if tag and not tag.startswith("W/"):
        headers["If-Range"] = tag
    try:
        response = _open(file.url, source, headers)
    except HTTPError as error:
        if error.code != 416 or not part.exists():
            raise
        # The server has no bytes after `have`: the file is complete, or it has changed on the server.
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return have, have
        part.unlink()
        return 0, -1
    with response, meter.reading(response):
        told = version_of(response)
        if response.status == 206 and (
            not response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            or (tag and told and tag != told)
        ):
            # The server sent another range than requested, or one of a file that has changed since.
            part.unlink(missing_ok=True)
            return 0, -1
        if response.status not in (200, 206):
            raise HTTPException(f"HTTP {response.status}, which brings no file")
        check_no_page(file, response)
        have = have if response.status == 206 else 0
        expected = file.bytes if file.bytes is not None else _told_bytes(response, have)
        if expected is not None and expected - have > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, f"{format_bytes(expected)} do not fit")
        tag_file.write_text(told)
        with part.open("ab" if have else "wb") as out:
            for block in _blocks(response):
                have += len(block)
                if have > (_MOST_BYTES if expected is None else expected):
                    out.close()
                    part.unlink()
                    most = (
                        f"{format_bytes(_MOST_BYTES)} at most" if expected is None else f"{expected:,} bytes"
                    )
                    raise corrupt(f"{source} ({file.path})", f"{have:,} bytes and more", most)
                out.write(block)
                if expected is None:
                    _check_room(part, have, len(block))
                meter.update(file.path, have, expected)
    return have, have if expected is None else expected


def _told_bytes(response: HTTPResponse, have: int) -> int | None:
    """Bytes of the whole file by Content-Length; None without a valid one."""
    length = response.headers.get("Content-Length", "")
    return have + int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    """The blocks of the body as they arrive.

    Raises: TimeoutError if the transfer stalls.
    """
    since, came = time.monotonic(), 0
    while block := response.read1(_BLOCK_BYTES):
        yield block
        came += len(block)
        if time.monotonic() - since > _STALL_S:
            if came < _STALL_BYTES:
                raise TimeoutError(f"{came:,} bytes in {_STALL_S} s")
            since, came = time.monotonic(), 0


def _check_room(part: Path, have: int, more: int) -> None:
    if (
        have // _LOOK_EVERY_BYTES > (have - more) // _LOOK_EVERY_BYTES
        and shutil.disk_usage(part.parent).free < _LEAVE_FREE_BYTES
    ):
        raise OSError(errno.ENOSPC, "a file of undeclared size fills the disk")


def _verified(file: RemoteFile, part: Path, target: Path, source: str) -> tuple[int, str]:
    digest, md5 = sha256_file(part), None
    if file.md5 is not None:
        with part.open("rb") as data:
            md5 = base64.b64encode(hashlib.file_digest(data, "md5").digest()).decode()
    for got, need in ((digest, file.sha256), (md5, file.md5)):
        if need is not None and got != need:
            part.unlink()
            raise corrupt(f"{source} ({file.path})", str(got), need)
    part.with_name(part.name + TAG_SUFFIX).unlink(missing_ok=True)
    # Later only the size is looked at, and a power cut may leave a file of that size without its bytes.
    with part.open("rb") as data:
        os.fsync(data.fileno())
    part.rename(target)
    return target.stat().st_size, digest


def _open(url: str, source: str, headers: dict[str, str]) -> HTTPResponse:
    try:
        response = open_url(url, headers, timeout_s=_TIMEOUT_S)
        check_plain(response, url)
        return response
    except HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise HarnessError(
                "download-login",
                f"{source} needs a login, or does not exist (HTTP {error.code})",
                need="a public address",
                fix=f"download it by hand with your account, and {LOCAL}",
            ) from error
        if error.code in (404, 410):
            raise missing(source) from error
        if error.code == 416 or error.code >= 500 or error.code == 429:
            raise
        raise _unreachable(url, error) from error


def read_page(url: str, source: str) -> tuple[bytes, str] | None:
    """Body and content type of a page of a listing; None if there is no such page.

    Raises: HarnessError "download-no-listing" for a page of more than 64 MiB, and those of a download.
    """
    last: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_wait_s(attempt, last))
        try:
            with _open(url, source, {}) as response:
                return _page(response, url), response.headers.get_content_type()
        except HarnessError as error:
            if error.code == "download-missing":
                return None
            raise
        except (HTTPException, OSError) as error:
            last = error
    raise _unreachable(url, last) from last


def _page(response: HTTPResponse, url: str) -> bytes:
    since, body = time.monotonic(), bytearray()
    while block := response.read1(_BLOCK_BYTES):
        body += block
        if len(body) > _PAGE_BYTES or time.monotonic() - since > _PAGE_S:
            raise no_listing(
                url,
                (
                    f"a page of more than {format_bytes(_PAGE_BYTES)}"
                    if len(body) > _PAGE_BYTES
                    else f"no end after {_PAGE_S} s"
                ),
            )
    return bytes(body)


def missing(source: str) -> HarnessError:
    return HarnessError(
        "download-missing",
        f"there is nothing at {source}",
        need="an existing file or directory",
        fix=f"check the address for a typing error, or {LOCAL}",
    )


def _unreachable(url: str, error: BaseException | None) -> HarnessError:
    if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
        return HarnessError(
            "download-certificate",
            f"the certificate of {url} is not one that this machine trusts",
            got=one_line(str(getattr(error, "reason", error)))[:300],
            need="a certificate of an authority that is known here, and a clock that is right",
            fix=(
                "for a proxy or mirror with an authority of its own: SSL_CERT_FILE=FILE.pem with its"
                f" certificate; or copy the files by hand and {LOCAL}"
            ),
        )
    return HarnessError(
        "download-unreachable",
        f"cannot reach {url}: {one_line(str(error))}",
        need="a network connection (a proxy is taken from HTTPS_PROXY)",
        fix=f"check the network and try again, or copy the files by hand and {LOCAL}",
    )


def corrupt(source: str, got: str, need: str) -> HarnessError:
    return HarnessError(
        "download-corrupt",
        f"{source} has other bytes than it should have",
        got=got,
        need=need,
        fix="try again; if it stays so, the source has changed",
    )
