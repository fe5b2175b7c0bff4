"""Tests redirects: never from https to plain http, never into a private network, wherever a name leads.

The servers are real, and the name service is our own.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.download import web
from harness.download.web import LINK_LOCAL, LOOPBACK, PRIVATE, PUBLIC, kind_of, kind_of_host, open_url
from harness.errors import HarnessError

ADDRESSES = [
    ("8.8.8.8", PUBLIC),
    ("2001:4860:4860::8888", PUBLIC),
    ("127.0.0.1", LOOPBACK),
    ("127.8.8.8", LOOPBACK),
    ("0.0.0.0", LOOPBACK),
    ("::1", LOOPBACK),
    ("::", LOOPBACK),
    ("::ffff:127.0.0.1", LOOPBACK),
    ("::127.0.0.1", LOOPBACK),
    ("64:ff9b::7f00:1", LOOPBACK),
    ("2002:7f00:1::", LOOPBACK),
    ("169.254.169.254", LINK_LOCAL),
    ("::ffff:169.254.169.254", LINK_LOCAL),
    ("64:ff9b::a9fe:a9fe", LINK_LOCAL),
    ("fe80::1%eth0", LINK_LOCAL),
    ("10.0.0.1", PRIVATE),
    ("172.16.0.1", PRIVATE),
    ("192.168.1.1", PRIVATE),
    ("100.64.0.1", PRIVATE),
    ("224.0.0.1", PRIVATE),
    ("fd00::1", PRIVATE),
    ("64:ff9b:1::a9fe:a9fe", LINK_LOCAL),
    ("64:ff9b:1:a9fe:a9:fe00:808:808", LINK_LOCAL),
    ("::ffff:0:10.0.0.1", PRIVATE),
    ("192.0.0.192", PRIVATE),
]


@pytest.mark.parametrize(("address", "kind"), ADDRESSES)
def test_where_an_address_leads(address: str, kind: str) -> None:
    assert kind_of(address) == kind
    assert kind_of_host(f"[{address}]" if ":" in address else address) == kind


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("huggingface.co", PUBLIC),
        ("localhost", LOOPBACK),
        ("LOCALHOST.", LOOPBACK),
        ("a.localhost", LOOPBACK),
        ("2130706433", LOOPBACK),
        ("0x7f000001", LOOPBACK),
        ("0177.0.0.1", LOOPBACK),
        ("127.1", LOOPBACK),
        ("127%2e0.0.1", LOOPBACK),
        ("2852039166", LINK_LOCAL),
        ("metadata.google.internal", PRIVATE),
        ("router", PRIVATE),
        ("nas.lan", PRIVATE),
    ],
)
def test_where_a_name_leads_when_a_proxy_resolves_it(host: str, kind: str) -> None:
    assert kind_of_host(host) == kind


class Places:
    """A server that redirects `/to?ADDRESS`, says `/end`, and keeps what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if self.path.startswith("/to?"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/to?"))
                else:
                    self.send_response(200)
                self.end_headers()
                if self.path.startswith("/to?"):
                    endless(self.wfile)
                else:
                    self.wfile.write(b"end")

            def log_message(self, *_: object) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.httpd.server_port
        if context is not None:
            self.httpd.socket = context.wrap_socket(self.httpd.socket, server_side=True)
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()


def endless(out: Any) -> None:
    """The body of a redirect, which nobody should read."""
    try:
        for _ in range(10_000):
            out.write(b"x" * 2**16)
    except OSError:
        return


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = Places()
    yield found
    found.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A name service of our own; whatever is connected to is this machine."""
    known = {
        "public.test.example": "93.184.216.34",
        "rebinds.test.example": "10.0.0.7",
        "meta.test.example": "169.254.169.254",
    }
    real_info, real_connection = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host in known:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], port))]
        return real_info(host, port, *args, **options)

    def create_connection(address: tuple[str, int], *args: Any) -> socket.socket:
        return real_connection(("127.0.0.1", address[1]) if address[0] in known.values() else address, *args)

    monkeypatch.setattr(web.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(web.socket, "create_connection", create_connection)
    return known


def refused(url: str) -> str:
    with pytest.raises(HarnessError) as caught:
        open_url(url, timeout_s=10)
    return caught.value.code


def test_a_typed_local_address_may_redirect_to_itself(places: Places) -> None:
    base = f"http://127.0.0.1:{places.port}"
    assert open_url(f"{base}/to?{base}/end", timeout_s=10).read() == b"end"
    assert open_url(f"{base}/to?/end", timeout_s=10).read() == b"end"
    assert open_url(f"{base}/to?http://localhost:{places.port}/end", timeout_s=10).read() == b"end"


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "10.1.2.3",
        "169.254.169.254",
        "localhost",
        "printer",
        "0",
    ],
)
def test_a_public_address_leads_to_no_private_one(places: Places, host: str) -> None:
    assert (
        refused(f"http://public.test.example:{places.port}/to?https://{host}:{places.port}/end")
        == "download-redirect"
    )
    assert len(places.asked) == 1


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("host", ["rebinds.test.example", "meta.test.example"])
def test_a_public_name_that_resolves_to_a_private_address_is_not_connected_to(
    places: Places, host: str
) -> None:
    assert (
        refused(f"http://public.test.example:{places.port}/to?https://{host}:{places.port}/end")
        == "download-redirect"
    )
    assert len(places.asked) == 1


def test_a_local_address_leads_to_no_other_network_of_the_user(places: Places) -> None:
    assert refused(f"http://127.0.0.1:{places.port}/to?https://169.254.169.254/latest") == "download-redirect"
    assert refused(f"http://127.0.0.1:{places.port}/to?https://192.168.1.1/") == "download-redirect"


@pytest.mark.parametrize(
    "target",
    ["http://example.com/", "ftp://127.0.0.1/x", "file:///etc/passwd", "gs://bucket/x", "http://127.0.0.2/"],
)
def test_a_redirect_to_another_scheme_is_not_followed(places: Places, target: str) -> None:
    code = None
    try:
        open_url(f"http://127.0.0.1:{places.port}/to?{target}", timeout_s=10)
    except HarnessError as error:
        code = error.code
    except OSError:
        # urllib itself refuses what is not of the web.
        code = "download-scheme"
    assert code == "download-scheme"


@pytest.mark.parametrize(
    "target", ["http://[::1", "https://[x]/", "https://a]b/", "//[", "https://a:b:c/", "https://[::1/"]
)
def test_a_redirect_to_what_is_no_address_is_refused(places: Places, target: str) -> None:
    assert refused(f"http://127.0.0.1:{places.port}/to?{target}") in ("download-redirect", "download-scheme")


@pytest.mark.parametrize("host", ["a..b.com", ".example.com", "a" * 64 + ".example.com"])
def test_a_name_that_no_name_service_takes_is_no_traceback(places: Places, host: str) -> None:
    with pytest.raises((HarnessError, OSError)):
        open_url(f"http://127.0.0.1:{places.port}/to?https://{host}/x", timeout_s=10)
    with pytest.raises((HarnessError, OSError)):
        open_url(f"https://{host}/x", timeout_s=10)


def test_redirects_have_an_end(places: Places) -> None:
    base = f"http://127.0.0.1:{places.port}/to?"
    with pytest.raises(OSError, match="302"):
        open_url(base * 8 + "/end", timeout_s=10)
    assert len(places.asked) <= 7


@pytest.mark.usefixtures("names")
def test_behind_a_proxy_names_and_literal_addresses_are_looked_at(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy is this machine, which is the user's choice; the address that it is asked for is not."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{places.port}")
    with open_url("http://public.test.example/end", timeout_s=10) as response:
        assert response.read() == b"end"
    assert places.asked == ["http://public.test.example/end"]
    trip = web._Trip("https://public.test.example/")
    for host in ("127.0.0.1", "metadata.google.internal", "2130706433"):
        with pytest.raises(HarnessError) as caught:
            trip.redirect("https://public.test.example/", f"https://{host}/")
        assert caught.value.code == "download-redirect"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_https_is_not_left_by_a_redirect(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "k.pem", tmp_path / "c.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run([*made, "-addext", "subjectAltName=DNS:localhost"], check=True, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setattr(web, "_tls", lambda: ssl.create_default_context(cafile=str(certificate)))
    secure = Places(context)
    base = f"https://localhost:{secure.port}"
    try:
        assert open_url(f"{base}/to?{base}/end", timeout_s=10).read() == b"end"
        assert refused(f"{base}/to?http://localhost:{places.port}/end") == "download-scheme"
        assert refused(f"{base}/to?http://127.0.0.1:{places.port}/end") == "download-scheme"
    finally:
        secure.close()
    assert places.asked == []
