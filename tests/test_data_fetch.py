"""Tests datasets by name, with the real hub client and a small hub on localhost, in separate processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.data import paths
from harness.data.fetch import resolve
from harness.errors import HarnessError
from harness.flow import chain
from harness.recipe.load import load_recipe
from tests.support import lerobot_writer as writer

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Datasets of `lab` that the hub does not give. It takes no wrong token, not even for what needs none.
REFUSED = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "public": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
}


class Hub(BaseHTTPRequestHandler):
    """One dataset `lab/robot` with one commit, reachable as `main` and `v1`."""

    root: Path
    # Files that end in the middle at the first try.
    broken: set[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        refused = next((name for name in REFUSED if f"/datasets/lab/{name}" in path), None)
        if refused is not None:
            status, headers = REFUSED[refused]
            return self._send(status, b"{}", headers, body=body)
        if not path.startswith(("/api/datasets/lab/robot/", "/datasets/lab/robot/")):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        if path.startswith("/api/"):
            return self._api(path, body=body)
        revision, name = path.removeprefix("/datasets/lab/robot/resolve/").split("/", 1)
        if revision not in (COMMIT, "main", "v1"):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        content = (self.root / name).read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if body and name in self.broken:
            self.broken.discard(name)
            self.send_response(200)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return self.connection.close()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(206 if start else 200, content[start:], headers, body=body)

    def _api(self, path: str, *, body: bool) -> None:
        parts = path.removeprefix("/api/datasets/lab/robot/").split("/")
        if parts[1] not in (COMMIT, "main", "v1"):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        files = sorted(p for p in self.root.rglob("*") if p.is_file())
        answer: Any
        if parts[0] == "tree":
            answer = [
                {
                    "type": "file",
                    "path": p.relative_to(self.root).as_posix(),
                    "size": p.stat().st_size,
                    "oid": "0" * 40,
                }
                for p in files
            ]
        else:
            answer = {
                "id": "lab/robot",
                "sha": COMMIT,
                "siblings": [{"rfilename": p.relative_to(self.root).as_posix()} for p in files],
            }
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body=body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    Hub.root, Hub.broken = writer.write(tmp_path / "served"), set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


ASK = """
import json, os, sys
from harness.flow import chain
from harness.data import dataset
from harness.data.fetch import resolve
from harness.data.dataset import content_hash
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
try:
    data = load_recipe("smoke", sys.argv[1:]).data
    if "NOBODY_TYPED" in os.environ:
        del os.environ["HARNESS_MAY_FETCH"]
    found = resolve(data)
    print(json.dumps([str(found.path), found.source, found.revision, content_hash(found.path)[0]]))
except HarnessError as error:
    print(json.dumps(error.code))
"""


def _ask(endpoint: str, cache: Path, *overrides: str, **more: str) -> Any:
    """What `resolve` says in a process that knows only this hub.

    Its client reads the environment when it is imported.
    """
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
        "NO_PROXY": "*",
    } | more
    done = subprocess.run(
        [sys.executable, "-c", ASK, *overrides],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_hub_id_is_downloaded_once_and_then_read_offline(hub: str, tmp_path: Path) -> None:
    path, source, revision, digest = _ask(hub, tmp_path / "cache", "data.dataset=lab/robot@v1")
    assert (source, revision) == ("lab/robot", COMMIT)
    assert Path(path).is_relative_to(tmp_path / "cache")
    again = _ask("http://127.0.0.1:9", tmp_path / "cache", "data.dataset=lab/robot", "data.revision=v1")
    assert again == [path, source, revision, digest]


def test_of_what_nobody_typed_the_hub_hears_nothing_and_what_is_kept_is_used(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Hub, "log_message", lambda self, *_: asked.append(self.path))
    nobody = {"NOBODY_TYPED": "1", "HF_TOKEN": "hf_" + "a" * 34}
    assert _ask(hub, tmp_path / "cache", "data.dataset=lab/robot", **nobody) == "fetch-not-asked"
    assert _ask(hub, tmp_path / "cache", "data.dataset=lab/robot", HARNESS_OFFLINE="1") == "offline"
    assert asked == []
    kept = _ask(hub, tmp_path / "cache", "data.dataset=lab/robot")
    asked.clear()
    assert _ask(hub, tmp_path / "cache", "data.dataset=lab/robot", **nobody) == kept
    assert asked == []


def test_a_download_that_breaks_off_is_completed(hub: str, tmp_path: Path) -> None:
    Hub.broken = {"data/chunk-000/episode_000001.parquet"}
    whole = _ask(hub, tmp_path / "one", "data.dataset=lab/robot")
    if isinstance(whole, str):
        assert whole == "hub-unreachable"
        whole = _ask(hub, tmp_path / "one", "data.dataset=lab/robot")
    assert whole[3] == _ask(hub, tmp_path / "two", "data.dataset=lab/robot")[3]
    assert not Hub.broken


@pytest.mark.parametrize(
    ("dataset", "code"),
    [
        ("lab/robot@v9", "hub-revision-missing"),
        ("lab/nothing", "hub-not-found"),
        ("lab/gated", "hub-login"),
        ("lab/public", "hub-token"),
    ],
)
def test_what_the_hub_does_not_give_is_named(hub: str, tmp_path: Path, dataset: str, code: str) -> None:
    assert _ask(hub, tmp_path / "cache", f"data.dataset={dataset}") == code


def test_no_hub_and_no_cache(tmp_path: Path) -> None:
    assert _ask("http://127.0.0.1:9", tmp_path / "cache", "data.dataset=lab/robot") == "hub-unreachable"


def test_a_directory_wins_over_the_hub(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text("{}")
    found = resolve(load_recipe("smoke", [f"data.dataset={tmp_path}"]).data)
    assert (found.path, found.revision) == (tmp_path.resolve(), None)


@pytest.mark.parametrize(
    "name", ["nothing", "./no/such/place", "/no/such/place", "a b/c", "", "lab/robot/extra"]
)
def test_neither_a_directory_nor_a_hub_id(name: str) -> None:
    recipe = load_recipe("smoke")
    with pytest.raises(HarnessError) as caught:
        resolve(recipe.data.model_copy(update={"dataset": name}))
    assert caught.value.code == "dataset-not-found"


@pytest.mark.parametrize("name", ["~", "/", "/usr", "DIR"])
def test_a_directory_that_is_no_dataset_is_refused_before_anything_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(paths, "walk", lambda *_, **__: pytest.fail("it was walked"))
    with pytest.raises(HarnessError) as caught:
        chain.Chain(
            None, load_recipe("smoke", [f"data.dataset='{tmp_path if name == 'DIR' else name}'"])
        ).dataset()
    assert caught.value.code == "not-a-dataset"


def test_a_revision_of_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        resolve(load_recipe("smoke", [f"data.dataset={tmp_path}", "data.revision=v1"]).data)
    assert caught.value.code == "revision-needs-hub"


def test_two_revisions_are_refused() -> None:
    with pytest.raises(HarnessError) as caught:
        resolve(load_recipe("smoke", ["data.dataset=lab/robot@v1", "data.revision=v2"]).data)
    assert caught.value.code == "revision-twice"


def test_a_cache_that_cannot_be_written_is_named(hub: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert _ask(hub, tmp_path / "file" / "cache", "data.dataset=lab/robot") == "not-writable"
