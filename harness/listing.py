"""What files a remote directory holds: Google Cloud Storage, a SHA256SUMS file, or a web server's index page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from harness.errors import HarnessError

Read = Callable[[str], tuple[bytes, str] | None]

SUMS = "SHA256SUMS"
_GCS = "https://storage.googleapis.com"
_RESERVED = "%/:@!$&'()*+,;=~"
_MAX_DEPTH = 8
_MAX_FILES = 100_000


class RemoteFile(NamedTuple):
    """`path` is relative to the directory; size and hashes are None where the server does not tell."""

    path: str
    url: str
    bytes: int | None
    md5: str | None = None
    sha256: str | None = None


def list_tree(source: str, read: Read) -> list[RemoteFile]:
    """The files below the directory `source`; `read` gets a small page.

    Raises: HarnessError "download-no-listing" when the server does not tell what is there.
    """
    if source.startswith(f"{_GCS}/"):
        source = "gs://" + source.removeprefix(f"{_GCS}/")
    if source.startswith("gs://"):
        return _list_gcs(source, read)
    sums = read(f"{source}/{SUMS}")
    if sums is not None:
        return _from_sums(source, sums[0].decode(errors="replace"))
    return _from_index(source + "/", "", read, _MAX_DEPTH)


def object_url(source: str) -> str:
    """The address of the object gs://bucket/name."""
    bucket, name = _bucket_and_name(source)
    return f"{_endpoint()}/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media"


def _endpoint() -> str:
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    return (emulator if "://" in emulator else f"http://{emulator}").rstrip("/") if emulator else _GCS


def _bucket_and_name(source: str) -> tuple[str, str]:
    parts = urlsplit(source)
    return parts.netloc, unquote(parts.path).strip("/")


def _list_gcs(source: str, read: Read) -> list[RemoteFile]:
    """Source: Google's JSON API, objects.list: pages of items with name, size and base64 md5Hash."""
    bucket, name = _bucket_and_name(source)
    prefix = f"{name}/" if name else ""
    files: list[RemoteFile] = []
    token = ""
    while True:
        page = read(f"{_endpoint()}/storage/v1/b/{bucket}/o?prefix={quote(prefix, safe='')}" + (f"&pageToken={quote(token, safe='')}" if token else ""))
        body = json.loads(page[0]) if page else {}
        for item in body.get("items", []):
            # Names that end in "/" stand for directories.
            if not item["name"].endswith("/"):
                path = _safe(item["name"].removeprefix(prefix), source)
                files.append(RemoteFile(path, object_url(f"gs://{bucket}/{quote(item['name'])}"), int(item["size"]), md5=item.get("md5Hash")))
        token = body.get("nextPageToken", "")
        if not token:
            return files


def _from_sums(source: str, text: str) -> list[RemoteFile]:
    matches = [re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(.+)", line) for line in text.splitlines() if line.strip()]
    if not matches or None in matches:
        raise _no_listing(source, f"{SUMS} is not what sha256sum writes")
    return [RemoteFile(_safe(match[2], source), f"{source}/{quote(match[2])}", None, sha256=match[1]) for match in matches if match and match[2] != SUMS]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _from_index(url: str, below: str, read: Read, depth: int) -> list[RemoteFile]:
    page = read(url)
    if page is None and not below:
        return []
    if page is None or page[1] != "text/html" or not depth:
        raise _no_listing(url, "no index page")
    links = _Links()
    links.feed(page[0].decode(errors="replace"))
    files: list[RemoteFile] = []
    for address in dict.fromkeys(urljoin(url, link).split("?")[0].split("#")[0] for link in links.found):
        name = unquote(address.removeprefix(url))
        # Sorting links and the parent directory lead out of this one.
        if not address.startswith(url) or not name or "/" in name.rstrip("/"):
            continue
        path = below + _safe(name, url)
        files += _from_index(address, path, read, depth - 1) if name.endswith("/") else [RemoteFile(path, quote(address, safe=_RESERVED), None)]
        if len(files) > _MAX_FILES:
            raise _no_listing(url, f"more than {_MAX_FILES:,} files")
    if not files and not below:
        raise _no_listing(url, "a page without links to files")
    return files


def _safe(path: str, source: str) -> str:
    if path.startswith("/") or ".." in path.split("/") or "\0" in path or "\\" in path:
        raise HarnessError("download-no-listing", f"{source} lists {path!r}, which leads out of the directory", fix="do not use this source")
    return path


def _no_listing(source: str, got: str) -> HarnessError:
    return HarnessError(
        "download-no-listing",
        f"{source} does not tell which files it holds",
        got=got,
        need=f"a gs:// address, an index page, or a file {SUMS} in the directory",
        fix=f"on the server: find . -type f ! -name {SUMS} | xargs sha256sum > {SUMS}; or copy the directory, and give the local path",
    )
