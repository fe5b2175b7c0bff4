"""A web server and a stand-in for Google Cloud Storage, with faults to switch on, and what it serves."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from harness.download import transfer
from harness.download.meter import Meter

BLOB = bytes(range(256)) * 4096


class Server:
    """A web server and a stand-in for Google Cloud Storage, with faults to switch on."""

    def __init__(self):
        self.files = {}
        self.requests = []
        self.cut_after = {}
        self.always_cut = False
        self.status = {}
        self.ranges = True
        self.index_pages = True
        self.wrong_md5 = False
        # Of a file: more headers, and whether its ranges are sent whatever version is asked for.
        self.headers = {}
        self.any_version = False
        # Files of which nothing comes after the headers until `ended`.
        self.silent = set()
        self.ended = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append((self.path, self.headers.get("Range")))
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def answer(self, http):
        parts = urlsplit(http.path)
        path = unquote(parts.path)
        if path in self.status:
            return self.send(http, b"no", status=self.status[path])
        if parts.path.startswith("/storage/v1/b/bucket/o"):
            name = unquote(parts.path.removeprefix("/storage/v1/b/bucket/o").lstrip("/"))
            return self.send_file(http, name) if name else self.send_listing(http, parse_qs(parts.query))
        if path.endswith("/") and self.index_pages:
            return self.send_index(http, path.lstrip("/"))
        return self.send_file(http, path.lstrip("/"))

    def send_file(self, http, name):
        if name not in self.files:
            return self.send(http, b"not here", status=404)
        body, etag = self.files[name], f'"{hashlib.md5(self.files[name]).hexdigest()}"'
        asked, status, headers = http.headers.get("Range"), 200, {"ETag": etag} | self.headers.get(name, {})
        if asked and self.ranges and (self.any_version or http.headers.get("If-Range", etag) == etag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.send(http, b"", status=416, headers={"Content-Range": f"bytes */{len(body)}"})
            status, headers = 206, headers | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            body = body[start:]
        cut = self.cut_after.get(name) if self.always_cut else self.cut_after.pop(name, None)
        return self.send(http, body, status=status, headers=headers, cut=cut)

    def send_listing(self, http, query):
        prefix, page = query["prefix"][0], int(query.get("pageToken", ["0"])[0])
        names = sorted(name for name in self.files if name.startswith(prefix))
        md5 = {
            name: (
                base64.b64encode(hashlib.md5(b"x" if self.wrong_md5 else self.files[name]).digest()).decode()
            )
            for name in names
        }
        items = [{"name": name, "size": str(len(self.files[name])), "md5Hash": md5[name]} for name in names]
        body = {"items": items[2 * page : 2 * page + 2]} | (
            {"nextPageToken": str(page + 1)} if 2 * page + 2 < len(items) else {}
        )
        self.send(http, json.dumps(body).encode(), content_type="application/json")

    def send_index(self, http, prefix):
        below = [name.removeprefix(prefix) for name in self.files if name.startswith(prefix)]
        entries = {name.split("/")[0] + ("/" if "/" in name else "") for name in below}
        if not entries:
            return self.send(http, b"not here", status=404)
        links = "".join(f'<li><a href="{entry}">{entry}</a>' for entry in sorted(entries))
        page = f'<a href="../">up</a><a href="?C=N">sort</a><a href="/elsewhere">x</a>{links}'
        return self.send(http, page.encode(), content_type="text/html; charset=utf-8")

    def send(
        self, http, body, *, status=200, headers=None, cut=None, content_type="application/octet-stream"
    ):
        http.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": content_type,
            **(headers or {}),
        }.items():
            http.send_header(name, value)
        http.end_headers()
        if urlsplit(http.path).path.lstrip("/") in self.silent:
            http.wfile.flush()
            self.ended.wait(20)
        http.wfile.write(body[:cut])
        if cut is not None:
            http.wfile.flush()
            http.close_connection = True


def without_waiting(monkeypatch):
    """Lets a download try again at once."""
    wait = Meter.wait
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    monkeypatch.setattr(Meter, "wait", lambda self, _: wait(self, 0))


@pytest.fixture
def server(monkeypatch):
    found = Server()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", found.url)
    without_waiting(monkeypatch)
    yield found
    found.ended.set()
    found.httpd.shutdown()
    found.httpd.server_close()


TREE = {
    "ck/params/_METADATA": b"{}",
    "ck/params/d/abc": BLOB,
    "ck/params/d/e f": b"odd",
    "ck/params/ocdbt.process_0/manifest.ocdbt": b"m" * 100,
}
FILES = {
    path.removeprefix("ck/params/"): (len(body), hashlib.sha256(body).hexdigest())
    for path, body in TREE.items()
}
