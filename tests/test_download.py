"""Tests downloads: once, whole, resumed, refused by name, and never out of the cache."""

import errno
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest

from harness.download import cache as download
from harness.download import transfer
from harness.download.cache import fetch_file, fetch_tree
from harness.errors import HarnessError
from tests.support.file_server import BLOB, FILES, TREE, server, without_waiting

__all__ = ["server"]


def _whole(cache):
    """Everything in the cache that a reader could take for a whole file."""
    return sorted(
        path.name
        for path in cache.rglob("*")
        if path.is_file() and path.name != "lock" and "part" not in path.parts[-2:] and path.suffix != ".part"
    )


def test_file_is_fetched_once_and_then_needs_no_network(server, tmp_path):
    server.files["models/tokenizer.model"] = BLOB
    url = f"{server.url}/models/tokenizer.model"
    seen = []
    first = fetch_file(url, cache=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert first.path.read_bytes() == BLOB
    assert first.path.name == "tokenizer.model"
    assert (first.bytes, first.sha256) == (len(BLOB), hashlib.sha256(BLOB).hexdigest())
    assert seen[-1] == (len(BLOB), len(BLOB))
    assert seen == sorted(seen)
    server.httpd.shutdown()
    server.httpd.server_close()
    assert fetch_file(url, cache=tmp_path) == first


def test_cache_directory_is_taken_from_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "here"))
    server.files["a.bin"] = b"abc"
    assert fetch_file(f"{server.url}/a.bin").path.is_relative_to(tmp_path / "here")


def test_local_paths_are_used_in_place(tmp_path):
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/x").write_bytes(b"123")
    digest = hashlib.sha256(b"123").hexdigest()
    assert fetch_file(tmp_path / "d/e/x") == (tmp_path / "d/e/x", 3, digest)
    assert fetch_tree(tmp_path / "d") == (tmp_path / "d", {"e/x": (3, digest)})


def test_a_broken_transfer_goes_on_by_itself_where_it_ended(server, tmp_path):
    server.files["w.bin"] = BLOB
    server.cut_after["w.bin"] = 300_000
    found = fetch_file(f"{server.url}/w.bin", cache=tmp_path)
    assert found.path.read_bytes() == BLOB
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-"]


def test_truncated_download_is_an_error_and_the_next_call_resumes(server, tmp_path):
    server.files["w.bin"] = BLOB
    server.cut_after["w.bin"] = 100_000
    server.always_cut = True
    url = f"{server.url}/w.bin"
    with pytest.raises(HarnessError) as caught:
        fetch_file(url, cache=tmp_path)
    assert caught.value.code == "download-truncated"
    assert _whole(tmp_path) == []
    server.always_cut, server.cut_after = False, {}
    server.requests.clear()
    assert fetch_file(url, cache=tmp_path).path.read_bytes() == BLOB
    assert server.requests[0][1] == "bytes=400000-"


@pytest.mark.parametrize(
    ("ranges", "weak"), [(True, False), (False, False), ("of any version", False), ("of any version", True)]
)
def test_a_file_that_changed_since_is_fetched_anew(server, tmp_path, ranges, weak):
    server.files["w.bin"] = BLOB
    server.any_version = ranges == "of any version"
    if weak:
        server.headers["w.bin"] = {"ETag": 'W/"1"'}
    server.cut_after["w.bin"], server.always_cut = 100_000, True
    with pytest.raises(HarnessError):
        fetch_file(f"{server.url}/w.bin", cache=tmp_path)
    server.cut_after, server.always_cut, server.ranges = {}, False, ranges
    server.files["w.bin"] = BLOB[::-1]
    if weak:
        server.headers["w.bin"] = {"ETag": 'W/"2"'}
    assert fetch_file(f"{server.url}/w.bin", cache=tmp_path).path.read_bytes() == BLOB[::-1]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "download-login"),
        (403, "download-login"),
        (404, "download-missing"),
        (500, "download-unreachable"),
        (400, "download-unreachable"),
    ],
)
def test_refusals(server, tmp_path, status, code):
    server.status["/w.bin"] = status
    with pytest.raises(HarnessError) as caught:
        fetch_file(f"{server.url}/w.bin", cache=tmp_path)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_refusals_at_the_same_time_and_then_a_success(server, tmp_path):
    """One call removes the empty entry that another waits for; neither it nor a later one is lost."""
    server.status["/w.bin"] = 404
    with ThreadPoolExecutor(4) as pool:
        refused = [pool.submit(fetch_file, f"{server.url}/w.bin", cache=tmp_path) for _ in range(8)]
    assert {future.exception().code for future in refused} == {"download-missing"}
    del server.status["/w.bin"]
    server.files["w.bin"] = BLOB
    assert fetch_file(f"{server.url}/w.bin", cache=tmp_path).bytes == len(BLOB)


def test_an_entry_that_vanishes_before_its_lock_is_made(server, tmp_path, monkeypatch):
    """Another process removes an empty entry between the directory and its lock; both are made again."""
    server.files["w.bin"] = BLOB
    mkdir, vanished = Path.mkdir, []

    def vanishing(self, *arguments, **options):
        mkdir(self, *arguments, **options)
        if self.parent == tmp_path and len(vanished) < 3:
            vanished.append(self)
            self.rmdir()

    monkeypatch.setattr(Path, "mkdir", vanishing)
    assert fetch_file(f"{server.url}/w.bin", cache=tmp_path).bytes == len(BLOB)
    assert len(vanished) == 3


def test_a_cache_that_is_a_link_to_nothing(server, tmp_path):
    server.files["w.bin"] = BLOB
    (tmp_path / "cache").symlink_to(tmp_path / "nothing")
    with pytest.raises(HarnessError) as caught:
        fetch_file(f"{server.url}/w.bin", cache=tmp_path / "cache")
    assert caught.value.code == "download-not-writable"


def test_unreachable(tmp_path, monkeypatch):
    without_waiting(monkeypatch)
    with pytest.raises(HarnessError) as caught:
        fetch_file("http://127.0.0.1:9/w.bin", cache=tmp_path)
    assert caught.value.code == "download-unreachable"


@pytest.mark.parametrize(
    "source", ["http://example.com/w.bin", "ftp://example.com/w.bin", "s3://bucket/w.bin"]
)
def test_schemes_that_are_not_taken(source, tmp_path):
    with pytest.raises(HarnessError) as caught:
        fetch_file(source, cache=tmp_path)
    assert caught.value.code == "download-scheme"


def test_wrong_hash_is_refused_and_removed(server, tmp_path):
    server.files["w.bin"] = BLOB
    with pytest.raises(HarnessError) as caught:
        fetch_file(f"{server.url}/w.bin", cache=tmp_path, sha256="0" * 64)
    assert caught.value.code == "download-corrupt"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == len(BLOB)]


def test_disk_that_fills_up_leaves_the_cache_clean(server, tmp_path, monkeypatch):
    server.files["w.bin"] = BLOB
    monkeypatch.setattr(transfer.Meter, "update", _no_space_left)
    with pytest.raises(HarnessError) as caught:
        fetch_file(f"{server.url}/w.bin", cache=tmp_path)
    assert caught.value.code == "download-no-space"
    assert list(tmp_path.iterdir()) == []


def _no_space_left(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_tree_larger_than_the_disk_is_not_begun(server, tmp_path, monkeypatch):
    server.files["ck/params/a"] = BLOB
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(HarnessError) as caught:
        fetch_tree("gs://bucket/ck/params", cache=tmp_path)
    assert caught.value.code == "download-no-space"
    assert not any("alt=media" in path for path, _ in server.requests)


def test_a_disk_that_has_become_too_small_keeps_what_came(server, tmp_path, monkeypatch):
    server.files |= TREE
    server.cut_after["ck/params/d/abc"], server.always_cut = 1000, True
    with pytest.raises(HarnessError):
        fetch_tree("gs://bucket/ck/params", cache=tmp_path)
    came = {path: path.stat().st_size for path in tmp_path.rglob("*.part")}
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(HarnessError, match="are kept") as caught:
        fetch_tree("gs://bucket/ck/params", cache=tmp_path)
    assert caught.value.code == "download-no-space"
    assert {path: path.stat().st_size for path in tmp_path.rglob("*.part")} == came != {}


def test_a_line_that_often_breaks_brings_a_large_file_in_pieces(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_PROGRESS_BYTES", 50_000)
    server.files["w.bin"] = BLOB
    server.cut_after["w.bin"], server.always_cut = len(BLOB) // 9, True
    assert fetch_file(f"{server.url}/w.bin", cache=tmp_path).path.read_bytes() == BLOB


@pytest.mark.parametrize(("asked", "waits"), [("7", 7), ("100000", 120), ("soon", 0.2), (None, 0.2)])
def test_a_busy_server_says_how_long_to_wait(asked, waits):
    headers = Message()
    if asked is not None:
        headers["Retry-After"] = asked
    assert transfer._wait_s(1, HTTPError("", 429, "busy", headers, None)) == waits


def test_bucket_is_listed_page_by_page_and_fetched(server, tmp_path):
    server.files |= TREE | {"ck/params/": b"", "ck/params2/other": b"x"}
    seen = []
    tree = fetch_tree(
        "gs://bucket/ck/params", cache=tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    assert tree.files == FILES
    assert (tree.path / "d/abc").read_bytes() == BLOB
    assert {str(path.relative_to(tree.path)) for path in tree.path.rglob("*") if path.is_file()} == set(FILES)
    assert seen[-1] == (sum(size for size, _ in FILES.values()),) * 2
    server.requests.clear()
    assert fetch_tree("gs://bucket/ck/params/", cache=tmp_path) == tree
    assert server.requests == []


def test_object_of_a_bucket(server, tmp_path):
    server.files["dir/paligemma.model"] = BLOB
    assert fetch_file("gs://bucket/dir/paligemma.model", cache=tmp_path).path.read_bytes() == BLOB


def test_wrong_bytes_from_a_bucket(server, tmp_path):
    server.files |= TREE
    server.wrong_md5 = True
    with pytest.raises(HarnessError) as caught:
        fetch_tree("gs://bucket/ck/params", cache=tmp_path)
    assert caught.value.code == "download-corrupt"
    assert not list(tmp_path.rglob("params"))


def test_a_tree_that_broke_off_keeps_what_came(server, tmp_path):
    server.files |= TREE
    server.cut_after["ck/params/d/abc"], server.always_cut = 1000, True
    with pytest.raises(HarnessError) as caught:
        fetch_tree("gs://bucket/ck/params", cache=tmp_path)
    assert caught.value.code == "download-truncated"
    assert not list(tmp_path.rglob("params"))
    server.cut_after, server.always_cut = {}, False
    server.requests.clear()
    assert fetch_tree("gs://bucket/ck/params", cache=tmp_path).files == FILES
    assert ("/storage/v1/b/bucket/o/ck%2Fparams%2Fd%2Fabc?alt=media", "bytes=4000-") in server.requests


def test_private_bucket(server, tmp_path):
    server.status["/storage/v1/b/bucket/o"] = 401
    with pytest.raises(HarnessError) as caught:
        fetch_tree("gs://bucket/ck/params", cache=tmp_path)
    assert caught.value.code == "download-login"


@pytest.mark.usefixtures("server")
def test_empty_prefix(tmp_path):
    with pytest.raises(HarnessError) as caught:
        fetch_tree("gs://bucket/nothing", cache=tmp_path)
    assert caught.value.code == "download-missing"


def test_directory_behind_an_index_page(server, tmp_path):
    server.files |= TREE
    assert fetch_tree(f"{server.url}/ck/params", cache=tmp_path).files == FILES


def test_directory_with_sums(server, tmp_path):
    server.index_pages = False
    sums = "".join(f"{digest}  ./{path}\n" for path, (_, digest) in FILES.items())
    server.files |= TREE | {"ck/params/SHA256SUMS": sums.encode()}
    assert fetch_tree(f"{server.url}/ck/params", cache=tmp_path).files == FILES
    server.files["ck/params/d/abc"] = BLOB[:-1] + b"x"
    with pytest.raises(HarnessError) as caught:
        fetch_tree(f"{server.url}/ck/params", cache=tmp_path / "other")
    assert caught.value.code == "download-corrupt"


def test_directory_that_cannot_be_listed(server, tmp_path):
    server.files |= TREE | {"ck/params/": b"no html"}
    server.index_pages = False
    with pytest.raises(HarnessError) as caught:
        fetch_tree(f"{server.url}/ck/params", cache=tmp_path)
    assert caught.value.code == "download-no-listing"


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../evil"])
def test_listed_names_do_not_lead_out_of_the_directory(server, tmp_path, name):
    server.index_pages = False
    server.files |= {"t/SHA256SUMS": f"{'0' * 64}  {name}\n".encode()}
    with pytest.raises(HarnessError) as caught:
        fetch_tree(f"{server.url}/t", cache=tmp_path)
    assert caught.value.code == "download-no-listing"


def test_calls_at_the_same_time_download_once(server, tmp_path, caplog):
    server.files |= TREE
    server.silent.add("storage/v1/b/bucket/o")
    threading.Timer(0.2, server.ended.set).start()
    with ThreadPoolExecutor(4) as pool:
        trees = list(pool.map(lambda _: fetch_tree("gs://bucket/ck/params", cache=tmp_path), range(4)))
    assert all(tree == trees[0] for tree in trees)
    assert sum("abc" in path for path, _ in server.requests) == 1
    assert "waiting for another process" in caplog.text


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(server, tmp_path):
    server.files["w.bin"] = BLOB
    first = fetch_file(f"{server.url}/w.bin", cache=tmp_path)
    first.path.write_bytes(BLOB[:1000])
    assert fetch_file(f"{server.url}/w.bin", cache=tmp_path).path.read_bytes() == BLOB


def test_unwritable_cache(server, tmp_path):
    server.files["w.bin"] = BLOB
    (tmp_path / "file").write_text("a file where the cache should be")
    with pytest.raises(HarnessError) as caught:
        fetch_file(f"{server.url}/w.bin", cache=tmp_path / "file")
    assert caught.value.code == "download-not-writable"


def test_an_address_of_a_directory_is_fetched_as_a_file_when_it_is_asked_for_as_one(server, tmp_path):
    server.files |= {"ck/a": b"1", "ck/b": b"2"}
    tree = fetch_tree(f"{server.url}/ck", cache=tmp_path)
    assert sorted(path.name for path in tree.path.iterdir()) == ["a", "b"]
    server.files = {"ck": b"3"}
    assert fetch_file(f"{server.url}/ck", cache=tmp_path).path.read_bytes() == b"3"
