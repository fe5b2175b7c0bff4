"""Lists the files of a remote directory: Google Cloud Storage, a SHA256SUMS file, or an index page.

Names come from outside. Each must consist of names joined by "/". A listing is limited in pages, names and
time.
"""

from __future__ import annotations

import html
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from harness.errors import HarnessError
from harness.received.json import parse_json
from harness.received.names import why_no_relative_name
from harness.received.text import one_line

Read = Callable[[str], tuple[bytes, str] | None]

SUMS = "SHA256SUMS"
# The end of every fix that a local copy would solve. `harness.download.cache` adds the key for it.
LOCAL = "give the local path"
_GCS = "https://storage.googleapis.com"
_RESERVED = "%/:@!$&'()*+,;=~"
_MAX_DEPTH = 8
_MAX_FILES = 100_000
_MAX_PAGES = 2_000
_MAX_S = 900
# The suffix of an incomplete file, and after it the suffix of the file with the server's version tag.
PART_SUFFIX, TAG_SUFFIX = ".part", ".etag"
_BESIDE = ("", PART_SUFFIX, PART_SUFFIX + TAG_SUFFIX)
_LONGEST_PATH, _DEEPEST_PATH = 1024, 32
# The address of a link. Matching takes linear time: no part crosses a "<", and every part is bounded.
_LINK = re.compile(
    r"""<a\s[^<>]{0,2000}?\bhref\s{0,8}=\s{0,8}(?:"([^"<>]{0,4096})"|'([^'<>]{0,4096})'|([^\s"'<>]{1,4096}))""",
    re.IGNORECASE,
)


class RemoteFile(NamedTuple):
    """A file of a remote directory. `path` is relative to the directory.

    Size and hashes are None if the server does not give them.
    """

    path: str
    url: str
    bytes: int | None
    md5: str | None = None
    sha256: str | None = None


def list_tree(source: str, read: Read) -> list[RemoteFile]:
    """The files below the directory `source`. `read` downloads a small page.

    Raises: HarnessError "download-no-listing" if the server does not list the files, or if the list cannot be
    that of a directory.
    """
    if source.startswith(f"{_GCS}/"):
        source = "gs://" + source.removeprefix(f"{_GCS}/")
    read = _bounded(source, read)
    if source.startswith("gs://"):
        return _checked(_list_gcs(source, read), source)
    sums = read(f"{source}/{SUMS}")
    if sums is not None:
        return _checked(_from_sums(source, sums[0].decode(errors="replace")), source)
    return _checked(_from_index(source + "/", "", read, _MAX_DEPTH), source)


def object_url(source: str) -> str:
    """The URL of the object gs://bucket/name."""
    bucket, name = _bucket_and_name(source)
    return f"{endpoint()}/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}?alt=media"


def endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """The address of Google Cloud Storage, or of the emulator that the environment names."""
    emulator = environ.get("STORAGE_EMULATOR_HOST", "")
    return (emulator if "://" in emulator else f"http://{emulator}").rstrip("/") if emulator else _GCS


def _bucket_and_name(source: str) -> tuple[str, str]:
    parts = urlsplit(source)
    return parts.netloc, unquote(parts.path).strip("/")


def _bounded(source: str, read: Read) -> Read:
    """`read`, limited in the number of pages and in time."""
    since, pages = time.monotonic(), 0

    def page(url: str) -> tuple[bytes, str] | None:
        nonlocal pages
        pages += 1
        if pages > _MAX_PAGES or time.monotonic() - since > _MAX_S:
            raise no_listing(
                source,
                f"more than {_MAX_PAGES:,} pages" if pages > _MAX_PAGES else f"no end after {_MAX_S} s",
            )
        return read(url)

    return page


def _checked(found: Iterable[RemoteFile], source: str) -> list[RemoteFile]:
    """The files, checked: together they can lie in one directory under their own names."""
    files: dict[str, RemoteFile] = {}
    folders: set[str] = set()
    for file in found:
        path = _safe(file.path, source)
        if path in files:
            raise no_listing(source, f"{path} twice")
        files[path] = file
        folders.update(path[:end] for end in (match.start() for match in re.finditer("/", path)))
        if len(files) > _MAX_FILES:
            raise no_listing(source, f"more than {_MAX_FILES:,} files")
    for path in files:
        if path in folders:
            raise no_listing(source, f"{path} both as a file and as a directory")
        if any(path + ending in files or path + ending in folders for ending in _BESIDE[1:]):
            raise no_listing(source, f"{path} beside a name that its download takes ({path}{_BESIDE[1]})")
    return list(files.values())


def _list_gcs(source: str, read: Read) -> Iterator[RemoteFile]:
    """The objects of a bucket below a prefix.

    Source: Google's JSON API, objects.list: pages of items with name, size and base64 md5Hash.
    """
    bucket, name = _bucket_and_name(source)
    prefix = f"{name}/" if name else ""
    first = f"{endpoint()}/storage/v1/b/{quote(bucket, safe='')}/o?prefix={quote(prefix, safe='')}"
    token, seen = "", set[str]()
    while token not in seen:
        seen.add(token)
        page = read(first + (f"&pageToken={quote(token, safe='')}" if token else ""))
        items, token = _gcs_page(page[0] if page else b"{}", source)
        for item in items:
            # Names that end in "/" are directories.
            if not item["name"].endswith("/"):
                yield _gcs_file(item, bucket, prefix, source)
        if not token:
            return
    raise no_listing(source, "a page that names itself as the next page")


def _gcs_page(body: bytes, source: str) -> tuple[list[dict[str, Any]], str]:
    """(Items with a name and a size, the token of the next page)."""
    try:
        page = parse_json(body)
        items, token = page.get("items", []), page.get("nextPageToken", "")
        sound = isinstance(token, str) and all(
            isinstance(item["name"], str) and re.fullmatch("[0-9]{1,18}", str(item["size"])) for item in items
        )
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise no_listing(source, f"a page that is no list of objects ({type(error).__name__})") from error
    if not sound:
        raise no_listing(source, "a page that is no list of objects")
    return items, token


def _gcs_file(item: dict[str, Any], bucket: str, prefix: str, source: str) -> RemoteFile:
    if not item["name"].startswith(prefix):
        raise no_listing(source, f"{one_line(item['name'][:80])!r}, which is not below it")
    md5 = item.get("md5Hash")
    url = object_url(f"gs://{bucket}/{quote(item['name'], safe='/')}")
    return RemoteFile(
        item["name"].removeprefix(prefix), url, int(item["size"]), md5=md5 if isinstance(md5, str) else None
    )


def _from_sums(source: str, text: str) -> Iterator[RemoteFile]:
    matches = [
        re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(.+)", line)
        for line in re.split("\r?\n", text)
        if line.strip()
    ]
    if not matches or None in matches:
        raise no_listing(source, f"{SUMS} is not what sha256sum writes")
    for match in matches:
        if match and match[2] != SUMS:
            yield RemoteFile(match[2], f"{source}/{quote(match[2])}", None, sha256=match[1])


def _from_index(url: str, below: str, read: Read, depth: int) -> Iterator[RemoteFile]:
    page = read(url)
    if page is None and not below:
        return
    if page is None or page[1] != "text/html" or not depth:
        raise no_listing(url, "no index page")
    links = ("".join(match.groups("")) for match in _LINK.finditer(page[0].decode(errors="replace")))
    seen = set[str]()
    for link in links:
        try:
            address = urljoin(url, html.unescape(link)).split("?")[0].split("#")[0]
        except ValueError:
            continue
        name = unquote(address.removeprefix(url))
        # Skips links out of this directory, such as sorting links and the parent directory.
        if not address.startswith(url) or not name or "/" in name.rstrip("/") or name in seen:
            continue
        seen.add(name)
        if name.endswith("/"):
            yield from _from_index(address, below + _safe(name.rstrip("/"), url) + "/", read, depth - 1)
        else:
            yield RemoteFile(below + name, quote(address, safe=_RESERVED), None)
    if not seen and not below:
        raise no_listing(url, "a page without links to files")


def _safe(path: str, source: str) -> str:
    """`path`, checked to consist of names joined by "/", below a local directory."""
    reason = why_no_relative_name(path)
    if reason is None and (
        len(path.encode(errors="surrogatepass")) > _LONGEST_PATH or path.count("/") >= _DEEPEST_PATH
    ):
        reason = f"it is longer than {_LONGEST_PATH:,} bytes or deeper than {_DEEPEST_PATH} directories"
    if reason is not None:
        shown = one_line(path[:120])
        raise HarnessError(
            "download-no-listing",
            f"{source} lists {shown!r}, which is no name below a directory: {reason}",
            fix="do not use this source",
        )
    return path


def no_listing(source: str, got: str) -> HarnessError:
    """The error for a directory whose files cannot be listed. `got` gives the reason."""
    return HarnessError(
        "download-no-listing",
        f"{source} does not tell which files it holds",
        got=one_line(got),
        need=f"a gs:// address, an index page, or a file {SUMS} in the directory",
        fix=(
            f"on the server: find . -type f ! -name {SUMS} | xargs sha256sum > {SUMS}; or copy the directory,"
            f" and {LOCAL}"
        ),
    )
