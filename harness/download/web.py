"""One HTTP request with restricted redirects: never from https to http, never into a private network.

A host's name is resolved once, and the connection goes to an address that was checked. Behind a proxy
(HTTPS_PROXY, HTTP_PROXY) the proxy resolves the names. Then only the name itself, or the address that it is,
is checked.
"""

from __future__ import annotations

import re
import socket
import ssl
import string
from functools import partial
from http.client import HTTPConnection, HTTPMessage, HTTPResponse, HTTPSConnection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from harness.errors import HarnessError
from harness.received.text import controls, one_line

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
PUBLIC, LOOPBACK, LINK_LOCAL, PRIVATE = "public", "loopback", "link-local", "private"
_MOST_REDIRECTS = 5
_LONGEST_ADDRESS = 4096
# Names that no public server has. Source: RFC 6761, RFC 6762, RFC 8375, and ICANN's reservation of .internal.
_PRIVATE_NAMES = (
    "localdomain",
    "local",
    "internal",
    "intranet",
    "lan",
    "home",
    "corp",
    "private",
    "home.arpa",
)
# 64:ff9b::/96 without its last 32 bits. Source: RFC 6052.
_NAT64 = 0x64FF9B << 64
# ::ffff:0:0:0/96 without its last 32 bits. Source: RFC 2765.
_TRANSLATED = 0xFFFF << 16
# A network's own translator, which alone knows where an address leads. Source: RFC 8215.
_LOCAL_NAT64 = ip_network("64:ff9b:1::/48")
# Addresses of the protocols themselves, a cloud's metadata server among them. Source: RFC 6890.
# `is_global` of Python 3.11.7 is True for most of them.
_PROTOCOLS = ip_network("192.0.0.0/24")
# Forms such as 2130706433, 0x7f.1 or 127.1, which the C library reads as an IPv4 address.
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+)){0,3}", re.IGNORECASE)


def open_url(url: str, headers: dict[str, str] | None = None, *, timeout_s: float) -> HTTPResponse:
    """The response to a GET of `url`, after at most five redirects.

    Raises: HarnessError "download-address", "download-scheme", "download-redirect"; HTTPError, URLError,
    HTTPException, OSError.
    """
    request = Request(_ascii(url), headers={"User-Agent": "harness", **(headers or {})})
    trip, opener = _Trip(url), OpenerDirector()
    # Only the handlers that are needed: no ftp, no file, no data.
    handlers = (
        ProxyHandler(),
        _Http(trip),
        _Https(trip),
        _Redirects(trip),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
        UnknownHandler(),
    )
    for handler in handlers:
        opener.add_handler(handler)
    try:
        return cast(HTTPResponse, opener.open(request, timeout=timeout_s))
    except ValueError as error:
        # The standard library takes a redirect apart before it asks: of `http://[::1` it raises this.
        raise _no_redirect(url, error) from error


def check_address(source: str) -> None:
    """Refuses a text that is not the address of a file or a directory on the web or in a bucket.

    Raises: HarnessError "download-address", "download-scheme".
    """
    why = _why_no_address(source)
    if why is not None:
        fix = "correct the address, or download it by hand and give the local path"
        raise HarnessError(
            "download-address",
            f"{one_line(source[:200])} is no address of a file or a directory: {why}",
            need="https://HOST/PATH",
            fix=fix,
        )
    parts = urlsplit(source)
    if parts.scheme in ("gs", "https") or (parts.scheme == "http" and parts.hostname in LOCAL_HOSTS):
        return
    raise HarnessError(
        "download-scheme",
        f"cannot download from {source}",
        got=f"{parts.scheme}://",
        need="a local path, gs://… or https://…",
        fix=(
            "use https:// instead of http://"
            if parts.scheme == "http"
            else "download it by hand, and give the local path"
        ),
    )


def kind_of(address: str) -> str:
    """The kind of an IP address: "public", "loopback", "link-local" or "private".

    A cloud's metadata address is link-local.
    """
    ip = _embedded(ip_address(address.partition("%")[0]))
    if ip.is_loopback or ip.is_unspecified:
        return LOOPBACK
    # Nobody types an address of the local translator, so it is of the strictest kind.
    if ip.is_link_local or ip in _LOCAL_NAT64:
        return LINK_LOCAL
    return PUBLIC if ip.is_global and not ip.is_multicast and ip not in _PROTOCOLS else PRIVATE


def kind_of_host(host: str) -> str:
    """The kind of a host by its name alone, which may be an address in any form.

    It is "public" if the name does not tell.
    """
    host = unquote(host).strip("[]").rstrip(".").lower()
    try:
        return kind_of(socket.inet_ntoa(socket.inet_aton(host)) if _NUMERIC.fullmatch(host) else host)
    except (ValueError, OSError):
        pass
    if host == "localhost" or host.endswith(".localhost"):
        return LOOPBACK
    return PRIVATE if "." not in host or any(host.endswith(f".{name}") for name in _PRIVATE_NAMES) else PUBLIC


def _embedded(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address contains, else the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    number = int(ip)
    if number >> 32 in (0, _NAT64, _TRANSLATED) and number > 1:
        return IPv4Address(number & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


def _why_no_address(source: str) -> str | None:
    if controls(source) or source != source.strip() or not source:
        return "it has control characters, or blanks around it"
    if len(source) > _LONGEST_ADDRESS:
        return f"it is longer than {_LONGEST_ADDRESS:,} characters"
    try:
        parts = urlsplit(source)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return str(error)
    refusals = (
        (not host or "\\" in parts.netloc, "it names no host"),
        ("@" in parts.netloc, "it has a user name before the host, and none is ever sent"),
        (
            any(part in (".", "..") for part in unquote(parts.path).split("/")),
            "a part of its path is '.' or '..'",
        ),
        (bool(parts.fragment), "it has a '#' part"),
        (parts.scheme == "gs" and bool(parts.query), "it has a '?' part"),
    )
    return next((reason for refused, reason in refusals if refused), None)


def _ascii(url: str) -> str:
    """`url` with only the characters that a request may contain."""
    try:
        parts = urlsplit(url)
        host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
        return urlunsplit(
            (parts.scheme, host, *(quote(part, safe=string.punctuation) for part in parts[2:4]), "")
        )
    except ValueError as error:
        raise HarnessError(
            "download-address", f"{one_line(url[:200])} is no address: {error}", fix="correct the address"
        ) from error


class _Trip:
    """One request and its redirects.

    The original address decides to which kinds of address a redirect may lead.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._kinds = {PUBLIC, kind_of_host(urlsplit(url).hostname or "")}
        self._redirected = False

    def begin(self, kind: str) -> None:
        """Records the kind of address to which the original address leads."""
        if not self._redirected:
            self._kinds.add(kind)

    def redirect(self, old: str, new: str) -> None:
        """Refuses a redirect to another scheme, or to a name of a kind that is not allowed.

        Raises: HarnessError "download-scheme", "download-redirect".
        """
        self._redirected = True
        was, parts = urlsplit(old), urlsplit(new)
        host = parts.hostname or ""
        if parts.scheme != "https" and not (was.scheme == parts.scheme == "http" and host in LOCAL_HOSTS):
            raise HarnessError(
                "download-scheme",
                f"{self.url} redirects to {one_line(new[:200])}; that was not followed",
                got=f"{parts.scheme}://",
                need=(
                    "https://, as the address that was given"
                    if was.scheme == "https"
                    else "https://, or http:// on this machine"
                ),
                fix=(
                    "do not use this source unless you trust the other address; then give that one, with"
                    " https://"
                ),
            )
        self.check(host, kind_of_host(host))

    def check(self, host: str, kind: str) -> None:
        """Refuses an address of a kind that is not allowed, after a redirect.

        Raises: HarnessError "download-redirect".
        """
        if self._redirected and kind not in self._kinds:
            raise HarnessError(
                "download-redirect",
                f"{self.url} redirects to {one_line(host)}, which is not on the public internet; that was not"
                " followed",
                got=f"a {kind} address",
                need=(
                    "a public address, since the given one is public"
                    if self._kinds == {PUBLIC}
                    else f"an address that is {' or '.join(sorted(self._kinds))}"
                ),
                fix="do not use this source; when the other server is your own, give its address itself",
            )


def _no_redirect(url: str, error: ValueError) -> HarnessError:
    return HarnessError(
        "download-redirect",
        f"{one_line(url[:200])} redirects to something that is not an address: {one_line(str(error))}",
        fix="do not use this source",
    )


class _Redirects(HTTPRedirectHandler):
    max_redirections = _MOST_REDIRECTS

    def __init__(self, trip: _Trip) -> None:
        self._trip = trip

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        # The caller would read the body, which may be endless.
        fp.close()
        try:
            if controls(newurl):
                raise ValueError("control characters")
            self._trip.redirect(req.full_url, newurl)
        except ValueError as error:
            raise _no_redirect(self._trip.url, error) from error
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None:
            # This header is for the proxy alone. The next host may not be behind the proxy.
            found.remove_header("Proxy-authorization")
        return found


class _Http(HTTPHandler):
    def __init__(self, trip: _Trip) -> None:
        super().__init__()
        self._trip = trip

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(cast(Any, partial(_connection, HTTPConnection, self._trip, req)), req)


class _Https(HTTPSHandler):
    def __init__(self, trip: _Trip) -> None:
        super().__init__()
        self._trip = trip

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(
            cast(Any, partial(_connection, HTTPSConnection, self._trip, req)), req, context=_tls()
        )


def _connection(
    kind: type[HTTPConnection], trip: _Trip, request: Request, host: str, **options: Any
) -> HTTPConnection:
    """A connection that checks its target address. A proxy, which the user chose, is not checked."""
    made = kind(host, **options)
    if not request.has_proxy() and getattr(request, "_tunnel_host", None) is None:
        made._create_connection = partial(_connect, trip)  # type: ignore[attr-defined]
    return made


def _connect(trip: _Trip, address: tuple[str, int], timeout: Any, source: Any) -> socket.socket:
    """A socket to the first address of the host that answers. All addresses are checked first."""
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        # A part of the name is empty, or longer than the 63 characters that the name service has room for.
        raise OSError(f"{one_line(host[:200])} is no name of a host") from error
    resolved = [str(entry[4][0]) for entry in found]
    for ip in resolved:
        trip.check(host, kind_of(ip))
    failure: OSError = OSError(f"{host} has no address")
    for ip in resolved:
        try:
            made = socket.create_connection((ip, port), timeout, source)
        except OSError as error:
            failure = error
            continue
        trip.begin(kind_of(ip))
        return made
    raise failure


def _tls() -> ssl.SSLContext:
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):
        return ssl.create_default_context()
    # A slim container has no certificate authorities of its own.
    import certifi

    return ssl.create_default_context(cafile=certifi.where())
