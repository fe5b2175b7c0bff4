"""Tests that names from an address, a server or a sidecar are never paths.

None leads out of the cache entry, and none removes a file beside it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.download import listing, transfer
from harness.download.cache import fetch_file, fetch_tree, kept_tree
from harness.download.listing import _LINK, list_tree
from harness.errors import HarnessError
from tests.support.file_server import FILES, TREE, Server, server, without_waiting

__all__ = ["server"]

# What an address may end in that no entry of the cache may be called.
ENDS = [
    "..",
    ".",
    "../..",
    "%2e%2e",
    "%2E.",
    "a%2Fb",
    "a%2f..%2f..",
    "lock",
    "part",
    "source.json",
    "%6cock",
    "a%00",
    "a%0ab",
    "a\\b",
    "~x",
    "-x",
    "x" * 300,
]
# Whole addresses that are none.
ADDRESSES = [
    "gs://bucket/..",
    "gs://bucket/a/../..",
    "gs://bucket/a?x",
    "gs://bucket/a#x",
    "gs:///a",
    "https:///a",
    "https://host:99999/a",
    "https://[::1/a",
]
ADDRESSES += [
    "https://host/a\0",
    "https://host/a\n",
    " https://host/a",
    "https://host/a\x1b[2J",
    "https://host/" + "a/" * 3000,
    "https://me:secret@host/a.bin",
]


def files_of(cache: Path) -> dict[str, str]:
    return {str(path.relative_to(cache)): path.read_text() for path in cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fetch", [fetch_file, fetch_tree])
@pytest.mark.parametrize("end", [*ENDS, *(f"{end}/" for end in ENDS[:4])])
def test_no_address_names_anything_beside_its_own_entry(
    server: Server, fetch: Callable[..., object], end: str, tmp_path: Path
) -> None:
    server.answer = lambda http: server.send(
        http, f"{hashlib.sha256(b'x').hexdigest()}  f\n".encode() if "SUMS" in http.path else b"x"
    )
    cache = tmp_path / "cache"
    (cache / "huggingface").mkdir(parents=True)
    (cache / "huggingface/data").write_text("mine")
    (tmp_path / "beside").write_text("mine")
    with pytest.raises(HarnessError) as caught:
        fetch(f"{server.url}/ckpt/{end}", cache=cache)
    assert caught.value.code == "download-address"
    assert files_of(cache) == {"huggingface/data": "mine"}
    assert (tmp_path / "beside").read_text() == "mine"
    assert server.requests == []


@pytest.mark.parametrize("fetch", [fetch_file, fetch_tree])
@pytest.mark.parametrize("address", ADDRESSES)
def test_what_is_no_address_is_refused_before_anything_is_made(
    fetch: Callable[..., object], address: str, tmp_path: Path
) -> None:
    with pytest.raises(HarnessError) as caught:
        fetch(address, cache=tmp_path / "cache")
    assert caught.value.code == "download-address"
    assert not (tmp_path / "cache").exists()
    assert kept_tree(address, cache=tmp_path / "cache") is None


def test_an_entry_of_an_older_harness_is_used_as_it_is(tmp_path: Path) -> None:
    source = "https://nowhere.invalid/ck/params"
    entry = tmp_path / f"params-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    (entry / "params/d").mkdir(parents=True)
    (entry / "params/d/a").write_text("abc")
    (entry / "lock").touch()
    (entry / "source.json").write_text(
        json.dumps({"source": source, "files": {"d/a": {"bytes": 3, "sha256": "0" * 64}}})
    )
    assert fetch_tree(source, cache=tmp_path).path == kept_tree(source, cache=tmp_path) == entry / "params"


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "d/../../../secret", "d/\0", ""])
def test_a_sidecar_that_names_files_elsewhere_counts_as_none(name: str, tmp_path: Path) -> None:
    source = "https://nowhere.invalid/ck/params"
    entry = tmp_path / f"params-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    (entry / "params").mkdir(parents=True)
    (tmp_path / "secret").write_text("abc")
    (entry / "source.json").write_text(
        json.dumps({"source": source, "files": {name: {"bytes": 3, "sha256": "0" * 64}}})
    )
    assert kept_tree(source, cache=tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"files": 1}',
        '{"files": {"a": 1}}',
        "[" * 100_000,
        '{"files": {"a": {"bytes": 1e999, "sha256": ""}}}',
    ],
)
def test_a_sidecar_that_is_none_counts_as_none(text: str, tmp_path: Path) -> None:
    source = "https://nowhere.invalid/ck/params"
    entry = tmp_path / f"params-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    (entry / "params").mkdir(parents=True)
    (entry / "source.json").write_text(text)
    assert kept_tree(source, cache=tmp_path) is None


NAMES = [
    ["../x"],
    ["/x"],
    ["a/../../x"],
    ["a//b"],
    ["a/"],
    ["./a/./b"],
    ["a\\b"],
    ["a\x1b[2J"],
    ["-rf"],
    ["a/~"],
    [" a"],
    ["a" * 300],
    ["a/" * 40 + "b"],
]
TWICE = [["a", "a"], ["a", "a/b"], ["a/b", "a"], ["a", "a.part"], ["a", "a.part.etag"], ["a", "a.part/b"]]


@pytest.mark.parametrize("names", [*NAMES, *TWICE], ids=lambda names: repr(names)[:30])
def test_a_listing_whose_names_cannot_lie_in_one_directory_is_refused(
    server: Server, names: list[str], tmp_path: Path
) -> None:
    server.index_pages = False
    server.files = {"t/SHA256SUMS": "".join(f"{'0' * 64}  {name}\n" for name in names).encode()}
    with pytest.raises(HarnessError) as caught:
        fetch_tree(f"{server.url}/t", cache=tmp_path)
    assert caught.value.code == "download-no-listing"
    assert list(tmp_path.iterdir()) == []


def gcs(*pages: object) -> Callable[[str], tuple[bytes, str]]:
    served = iter(pages)
    return lambda _: (json.dumps(next(served)).encode(), "application/json")


BUCKET = [
    [[]],
    [{"items": {"a": 1}}],
    [{"items": [1]}],
    [{"items": [{"name": "ck/a"}]}],
    [{"items": [{"name": "ck/a", "size": "x"}]}],
    [{"items": [{"name": "ck/a", "size": -1}]}],
    [{"items": [{"name": "ck/a", "size": 10**30}]}],
    [{"items": [{"name": "other/a", "size": 1}]}],
    [{"items": [{"name": "ck/../../a", "size": 1}]}],
    [{"nextPageToken": 7}],
    [{"nextPageToken": "a"}, {"nextPageToken": "b"}, {"nextPageToken": "a"}],
]


@pytest.mark.parametrize("pages", BUCKET, ids=lambda pages: json.dumps(pages)[:40])
def test_a_bucket_that_answers_nonsense_is_refused(pages: list[object]) -> None:
    with pytest.raises(HarnessError) as caught:
        list_tree("gs://bucket/ck", gcs(*pages))
    assert caught.value.code == "download-no-listing"


def test_a_listing_without_an_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_MAX_PAGES", 50)
    asked: list[str] = []

    def read(url: str) -> tuple[bytes, str]:
        asked.append(url)
        return json.dumps({"nextPageToken": str(len(asked))}).encode(), "application/json"

    with pytest.raises(HarnessError) as caught:
        list_tree("gs://bucket/ck", read)
    assert (caught.value.code, len(asked)) == ("download-no-listing", 50)
    # An index page whose every directory has another one.
    with pytest.raises(HarnessError) as caught:
        list_tree(
            "https://host/t",
            lambda url: (
                None if url.endswith("SUMS") else (b'<a href="a/">a</a><a href="b/">b</a>', "text/html")
            ),
        )
    assert caught.value.code == "download-no-listing"


def test_a_listing_of_too_many_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_MAX_FILES", 10)
    sums = "".join(f"{'0' * 64}  f{number}\n" for number in range(11))
    with pytest.raises(HarnessError) as caught:
        list_tree("https://host/t", lambda _: (sums.encode(), "text/plain"))
    assert caught.value.code == "download-no-listing"


def test_a_page_without_an_end_is_refused_and_not_kept_in_memory(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_PAGE_BYTES", 2**20)
    server.answer = endless
    with pytest.raises(HarnessError) as caught:
        fetch_tree(f"{server.url}/t", cache=tmp_path)
    assert caught.value.code == "download-no-listing"


def endless(http: object) -> None:
    """A body without a length and without an end."""
    http.send_response(200)  # type: ignore[attr-defined]
    http.end_headers()  # type: ignore[attr-defined]
    http.close_connection = True  # type: ignore[attr-defined]
    try:
        while True:
            http.wfile.write(b"x" * 2**16)  # type: ignore[attr-defined]
    except OSError:
        return


def test_a_body_longer_than_the_bucket_says_is_left_there(server: Server, tmp_path: Path) -> None:
    server.files |= TREE
    answer = server.answer
    server.answer = lambda http: endless(http) if "abc" in http.path else answer(http)
    with pytest.raises(HarnessError) as caught:
        fetch_tree("gs://bucket/ck/params", cache=tmp_path)
    assert caught.value.code == "download-corrupt"
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert kept <= sum(size for size, _ in FILES.values()) + 2**20


def test_a_file_whose_size_nobody_tells_leaves_the_disk_some_room(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_LOOK_EVERY_BYTES", 2**20)
    monkeypatch.setattr(transfer, "_LEAVE_FREE_BYTES", 2**60)
    server.answer = endless
    with pytest.raises(HarnessError) as caught:
        fetch_file(f"{server.url}/w.bin", cache=tmp_path)
    assert caught.value.code == "download-no-space"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 40, "1" + "0" * 18])
def test_a_length_that_is_none_or_a_lie_is_an_error_and_no_traceback(
    server: Server, length: str, tmp_path: Path
) -> None:
    server.answer = lambda http: (
        server.send(http, b"abc", headers={"Content-Length": length, "ETag": '"é\r\n b"'}),
        setattr(http, "close_connection", True),
    )
    code = "whole"
    try:
        fetch_file(f"{server.url}/w.bin", cache=tmp_path)
    except HarnessError as error:
        code = error.code
    assert code in ("whole", "download-truncated", "download-no-space", "download-unreachable")


@pytest.mark.parametrize(
    "worst", ["<a ", '<a href="', "<a href='", "<a " + "href " * 8, "<a href=", "<" + "a" * 9 + " href"]
)
def test_links_are_found_in_linear_time(worst: str) -> None:
    page = worst * (2**20 // len(worst))
    start = time.monotonic()
    sum(1 for _ in _LINK.finditer(page))
    assert time.monotonic() - start < 10


def test_the_fix_names_the_key_that_a_local_copy_is_given_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.data.tokenizer import tokenizer_path
    from harness.recipe.load import load_recipe

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    without_waiting(monkeypatch)
    load_recipe("pi05_libero")
    with pytest.raises(HarnessError) as caught:
        tokenizer_path("paligemma")
    assert caught.value.code == "download-unreachable"
    assert caught.value.fix.endswith("give the local path: --set data.tokenizer=FILE.model")
