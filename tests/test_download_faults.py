"""Tests of faults on the way: answers that are not the file, a network that goes away, a silent server."""

import errno
import ssl
from http.client import HTTPResponse
from urllib.error import URLError

import pytest

from harness.download import transfer
from harness.download.cache import fetch_file, fetch_tree
from harness.errors import HarnessError
from tests.support.file_server import BLOB, server

__all__ = ["server"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "text/html; charset=utf-8"}, "download-page"),
        ({"Content-Encoding": "gzip"}, "download-compressed"),
    ],
)
def test_what_is_not_the_bytes_of_the_file_is_not_kept(server, tmp_path, headers, code):
    server.files |= {"w.bin": BLOB, "w.html": BLOB, "w.tar.gz": BLOB}
    server.headers |= dict.fromkeys(server.files, headers)
    with pytest.raises(HarnessError) as caught:
        fetch_file(f"{server.url}/w.bin", cache=tmp_path)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []
    named = "w.html" if code == "download-page" else "w.tar.gz"
    assert fetch_file(f"{server.url}/{named}", cache=tmp_path).bytes == len(BLOB)


def test_a_failure_ends_a_transfer_of_which_nothing_comes(server, tmp_path):
    server.files |= {"d/a": BLOB, "d/b": BLOB}
    server.silent, server.status["/d/b"] = {"d/a"}, 404
    with pytest.raises(HarnessError) as caught:
        fetch_tree(f"{server.url}/d", cache=tmp_path)
    assert (caught.value.code, server.ended.is_set()) == ("download-missing", False)


def test_a_network_that_goes_away_is_no_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    server.files["w.bin"], read, seen = BLOB, HTTPResponse.read1, []

    def fails_once(self, size):
        seen.append(size)
        if len(seen) == 2:
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        return read(self, min(size, 1000) if len(seen) == 1 else size)

    monkeypatch.setattr(HTTPResponse, "read1", fails_once)
    assert fetch_file(f"{server.url}/w.bin", cache=tmp_path).path.read_bytes() == BLOB
    assert [asked for _, asked in server.requests] == [None, "bytes=1000-"]


def test_a_certificate_that_nobody_vouches_for_is_named_as_such():
    error = transfer._unreachable("https://x/y", URLError(ssl.SSLCertVerificationError(1, "self-signed")))
    assert (error.code, "SSL_CERT_FILE" in error.fix) == ("download-certificate", True)
