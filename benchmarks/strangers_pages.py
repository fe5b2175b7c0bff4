"""A stranger's web server on this machine, with the pages of a case, and a trap that counts connections.

Part of `benchmarks.strangers`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import pickle
import random
import signal
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from benchmarks.strangers_texts import mutate_json, mutate_text
from benchmarks.strangers_values import Hostile


class Page(NamedTuple):
    """One answer.

    `endless`: the body is sent again and again; `any_query`: it is the answer whatever stands behind the "?".
    """

    body: bytes = b""
    kind: str = "text/html"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    endless: bool = False


Site = dict[str, Page]


class Servers:
    """Two servers in a process of their own: `pages` answers from the site that was written last; `trap`
    answers nothing and counts.
    """

    def __init__(self, site: Path) -> None:
        self._site = site
        self._count = mmap.mmap(-1, 8)
        pages, trap = (
            ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (_pages(site), _trap(self._count))
        )
        self.pages, self.trap = (f"http://127.0.0.1:{server.server_address[1]}" for server in (pages, trap))
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            threading.Thread(target=trap.serve_forever, daemon=True).start()
            with contextlib.suppress(BaseException):
                pages.serve_forever()
            os._exit(0)
        pages.server_close()
        trap.server_close()

    def show(self, site: Site) -> None:
        self._site.write_bytes(pickle.dumps(site))

    def connections(self) -> int:
        found: int = struct.unpack("Q", self._count[:8])[0]
        return found

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *_: Any) -> None:
        pass


def _trap(count: mmap.mmap) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Trap(_Quiet):
        def setup(self) -> None:
            with lock:
                count[:8] = struct.pack("Q", struct.unpack("Q", count[:8])[0] + 1)
            super().setup()

        def do_GET(self) -> None:
            self.send_error(404)

    return Trap


def _pages(place: Path) -> type[BaseHTTPRequestHandler]:
    class Pages(_Quiet):
        def do_GET(self) -> None:
            # Written by the process that made this server, which is this program.
            site: Site = pickle.loads(place.read_bytes())
            whole, path = unquote(self.path), unquote(urlsplit(self.path).path)
            page = site.get(whole) or site.get(path) or site.get("*")
            with contextlib.suppress(OSError, UnicodeError):
                self._answer(page or Page(b"no", status=404))
            self.close_connection = True

        def _answer(self, page: Page) -> None:
            self.send_response_only(page.status)
            names = {name.lower() for name, _ in page.headers}
            if not page.endless and not names & {"content-length", "transfer-encoding"}:
                self.send_header("Content-Length", str(len(page.body)))
            if "content-type" not in names:
                self.send_header("Content-Type", page.kind)
            for name, value in page.headers:
                self._headers_buffer.append(f"{name}: {value}\r\n".encode("latin-1", errors="replace"))  # type: ignore[attr-defined]
            self.end_headers()
            self.wfile.write(page.body)
            while page.endless:
                self.wfile.write(page.body)

    return Pages


def clean_site(files: dict[str, bytes], form: str) -> tuple[Site, str]:
    """A site that is what it says, and the address below the server: with SHA256SUMS, with index pages, or as
    Google's storage.
    """
    if form == "gs":
        items = [{"name": f"ckpt/{name}", "size": str(len(body))} for name, body in files.items()]
        site = {"/storage/v1/b/bucket/o": Page(json.dumps({"items": items}).encode(), "application/json")}
        return (
            site
            | {
                f"/storage/v1/b/bucket/o/ckpt/{name}": Page(body, "application/octet-stream")
                for name, body in files.items()
            },
            "gs://bucket/ckpt",
        )
    site = {f"/ckpt/{name}": Page(body, "application/octet-stream") for name, body in files.items()}
    if form == "sums":
        text = "".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in files.items())
        return site | {"/ckpt/SHA256SUMS": Page(text.encode(), "text/plain")}, "/ckpt"
    folders: dict[str, set[str]] = {"": set()}
    for name in files:
        parts = name.split("/")
        for i, part in enumerate(parts):
            folders.setdefault("/".join(parts[:i]), set()).add(part + ("/" if i < len(parts) - 1 else ""))
    for folder, names in folders.items():
        links = "".join(f'<li><a href="{name}">{name}</a></li>' for name in ["../", *sorted(names)])
        site[f"/ckpt/{folder}/" if folder else "/ckpt/"] = Page(
            f"<html><body><ul>{links}</ul></body></html>".encode()
        )
    return site, "/ckpt"


def mutate_site(site: Site, rng: random.Random, hostile: Hostile) -> str:
    """What was done, in words, to one page of a site."""
    listings = [path for path in site if path.endswith(("/", "SHA256SUMS", "/o"))]
    path = rng.choice(listings if rng.random() < 0.6 and listings else sorted(site))
    page = site[path]
    action = rng.choice(_ACTIONS)
    if action == "content":
        new = (
            mutate_json(page.body, rng, hostile)
            if page.kind == "application/json"
            else mutate_text(page.body, rng, hostile)
        )
        site[path] = page._replace(body=new)
    elif action == "names":
        site[path] = page._replace(body=_listing(page, rng, hostile))
    elif action == "endless":
        if path in listings:
            site[path] = page._replace(
                body=rng.choice(
                    [page.body, b" " * 65_536, b"[" * 65_536, b"0" * 65_536, b"<a href='x'>" * 5000]
                ),
                endless=True,
            )
    elif action == "redirect":
        site[path] = _redirect(path, rng, hostile)
    elif action == "status":
        site[path] = page._replace(
            status=rng.choice(
                [100, 199, 201, 204, 206, 300, 304, 400, 401, 403, 416, 429, 500, 503, 599, 700]
            )
        )
    elif action == "header":
        name, values = rng.choice(_HEADERS)
        site[path] = page._replace(headers=((name, rng.choice(values)),))
    elif action == "loop":
        _loop(site, path, page)
    else:
        del site[path]
    return f"{path}: {action}"


# Each as often as it stands here.
_ACTIONS = (
    *("content", "content", "content", "names", "names", "names"),
    *("endless", "redirect", "redirect", "status", "header", "header", "gone", "loop"),
)
_HEADERS: list[tuple[str, list[str]]] = [
    ("Content-Length", ["-1", "0", "1", "10", "9" * 30, "x", "1e400", "99999999", "5, 6"]),
    (
        "Content-Type",
        ["", "text/html; charset=\x1b[2J", "text/html; charset=utf-7", "application/json", "x" * 70_000],
    ),
    ("Content-Range", ["bytes 0-1/10", "bytes */3", "bytes x-y/z", "bytes 5-4/" + "9" * 30]),
    ("Content-Encoding", ["gzip", "br", "\x1b"]),
    ("Transfer-Encoding", ["chunked", "identity", "gzip, chunked"]),
    ("ETag", ["\x1b[2J", "x" * 60_000, '"a"\r\n B: c', "W/x", "é"]),
]


def _redirect(path: str, rng: random.Random, hostile: Hostile) -> Page:
    inside = [f"{path}/..", path, "/ckpt/", "//127.0.0.1/x", "/ckpt/../../x", "/\r\nX: y"]
    outside = [
        "http://10.0.0.1/x",
        "http://169.254.169.254/latest/",
        "ftp://127.0.0.1/x",
        "gopher://x/",
        "http://[::1",
        *(f"file://{p}" for p in hostile.secrets),
    ]
    return Page(
        status=rng.choice([301, 302, 303, 307, 308]),
        headers=(("Location", rng.choice([*inside, *outside])),),
    )


def _listing(page: Page, rng: random.Random, hostile: Hostile) -> bytes:
    """A listing with hostile names in the form of the page; at times very many of them."""
    names = [
        rng.choice(
            [
                hostile.text(rng),
                "a/" * 50 + "x",
                "../" * 9 + "x",
                "x/../y",
                "%2e%2e/x",
                "..%2f..%2fx",
                "C:\\x",
                "a\0b",
                "SHA256SUMS",
                "source.json",
            ]
        )
    ]
    names = (
        names if rng.random() < 0.8 else [f"{'d/' * (i % 7)}n{i}" for i in range(rng.choice([5000, 150_000]))]
    )
    if page.kind == "application/json":
        sizes: list[Any] = rng.choice(
            [[1], ["1"], [-1], ["x"], [10**30], ["9" * 5000], [None], [{}], [0.5], [float("nan")]]
        )
        items = [
            {"name": f"ckpt/{name}", "size": sizes[0], "md5Hash": rng.choice([None, "x", 5, "é", ""])}
            for name in names
        ]
        return json.dumps(
            {"items": rng.choice([items, items, items * 2, {"a": 1}, "x", [1], [[]], [{}]])}
        ).encode()
    if page.kind == "text/plain":
        digest = hashlib.sha256(b"").hexdigest()
        return page.body + "".join(f"{digest}  {name}\n" for name in names).encode(errors="surrogatepass")
    return page.body + "".join(f'<a href="{name}">x</a>' for name in names).encode(errors="surrogatepass")


def _loop(site: Site, path: str, page: Page) -> None:
    """A listing that never ends: each page leads to one more."""
    if page.kind == "application/json":
        try:
            body = json.loads(page.body)
        except ValueError:
            return
        site[path] = page._replace(
            body=json.dumps((body if isinstance(body, dict) else {}) | {"nextPageToken": "more"}).encode()
        )
    else:
        site["*"] = Page(b'<a href="a/">a</a><a href="b/">b</a><a href="c/">c</a>')
        site.pop("/ckpt/SHA256SUMS", None)
        site["/ckpt/SHA256SUMS"] = Page(status=404)
