"""Tests what a replay does around the engine: refusals, what is mounted, what an answer means.

What needs an engine stands in tests/container/test_image.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Manifest
from harness.artifacts.verdict import Compared, Verdict
from harness.errors import HarnessError
from harness.image.contents import Entry, Tree
from harness.replay import engine, layers
from harness.replay.engine import check_version
from harness.replay.find import Looked, what_to_build
from harness.replay.layers import made_by
from harness.replay.replay import Asked, check_closed, replay, settings
from harness.replay.replay import _inside as inside
from harness.run.directory import RunDir
from tests.support.report_run import manifest as manifest_of_a_run
from tests.test_container_dockerfile import IMAGES

CONTENT = f"sha256:{'a' * 64}"
COMMIT = "c" * 40


def named(**changes: Any) -> Manifest:
    known = {
        "image": "harness:cpu on debian:12",
        "image_content": CONTENT,
        "source_revision": f"{COMMIT}+source.{'0' * 16}",
        "source_dirty": False,
    }
    return manifest_of_a_run(**known | changes)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    path = tmp_path / "smoke"
    path.mkdir()
    made = RunDir(path)
    made.write(named())
    return made


class NoImages:
    """An engine that has no image."""

    class images:
        @staticmethod
        def list(**_: object) -> list[object]:
            return []


def said(_: str) -> None: ...


def test_without_an_image_that_matches_nothing_can_be_told(run: RunDir) -> None:
    pytest.importorskip("docker")
    answer = replay(NoImages(), run, Asked(), said)
    assert answer.verdict == "cannot tell"
    assert CONTENT in str(answer.reason)
    assert "--build" in str(answer.reason)


def test_a_run_that_names_no_image_by_its_contents_cannot_be_told(run: RunDir) -> None:
    why = "the image is not what its list says: /x: added"
    run.write(named(image_content=None, unknown={"image_content": why}))
    answer = replay(NoImages(), run, Asked(), said)
    assert answer.verdict == "cannot tell"
    assert why in str(answer.reason)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="has no manifest"):
        replay(NoImages(), RunDir(tmp_path), Asked(), said)


@pytest.mark.parametrize("target", ["/etc/passwd", "../..", "/nowhere"])
def test_a_run_with_a_link_out_of_it_is_refused(run: RunDir, target: str) -> None:
    (run.path / "report.html").symlink_to(target)
    with pytest.raises(HarnessError) as error:
        check_closed(run)
    assert error.value.code == "file-leaves-root"
    assert "cp -rL" in error.value.fix


def test_a_link_inside_of_the_run_is_none_out_of_it(run: RunDir) -> None:
    (run.path / "copy.json").symlink_to("manifest.json")
    (run.path / "again").symlink_to(".")
    check_closed(run)


def test_the_links_of_wandbs_own_logs_are_left_alone(run: RunDir) -> None:
    (run.path / "wandb/offline/logs").mkdir(parents=True)
    (run.path / "wandb/offline/logs/debug-core.log").symlink_to("/tmp/.cache/wandb/logs/core.log")
    check_closed(run)


def test_a_run_with_a_fifo_is_refused(run: RunDir) -> None:
    os.mkfifo(run.path / "metrics.jsonl")
    with pytest.raises(HarnessError) as error:
        check_closed(run)
    assert error.value.code == "file-not-regular"


@pytest.mark.parametrize("told", [{"ApiVersion": "1.40", "Version": "19.03.15"}, {"ApiVersion": ""}, {}])
def test_an_engine_that_is_too_old_is_refused(told: dict[str, str]) -> None:
    with pytest.raises(HarnessError) as error:
        check_version(told)
    assert error.value.code == "engine-too-old"
    assert "20.10" in str(error.value.need)


@pytest.mark.parametrize("api", ["1.41", "1.50", "2.0"])
def test_newer_engines_serve(api: str) -> None:
    check_version({"ApiVersion": api})


def test_without_a_socket_it_says_so(run: RunDir, tmp_path: Path) -> None:
    pytest.importorskip("docker")
    env = os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/nothing.sock", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "harness.cli", "replay", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2
    assert "error [no-engine]" in done.stderr
    assert "DOCKER_HOST=" in done.stderr
    assert list(tmp_path.glob("*.replayed.json")) == []


FOUND = Looked("sha256:1", "harness:cpu", CONTENT, [], "found")


def test_a_container_may_read_the_run_and_nothing_else(run: RunDir) -> None:
    pytest.importorskip("docker")
    told = settings(named(), run, FOUND, Asked(steps=2, start=4))
    (mount,) = told["mounts"]
    assert (mount["Target"], mount["Source"], mount["ReadOnly"]) == ("/runs/smoke", str(run.path), True)
    assert told["command"] == ["verify", "/runs/smoke", "--steps", "2", "--from", "4", "--json"]
    assert (told["network_mode"], told["read_only"], told["cap_drop"]) == ("none", True, ["ALL"])
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert told["device_requests"] is None


def test_data_and_weights_are_mounted_read_only_when_they_are_given(run: RunDir, tmp_path: Path) -> None:
    pytest.importorskip("docker")
    told = settings(named(), run, FOUND, Asked(datasets=tmp_path, cache=tmp_path))
    places = {mount["Target"]: mount["ReadOnly"] for mount in told["mounts"]}
    assert places == {"/runs/smoke": True, "/datasets": True, "/cache": True}


def test_a_strangers_variables_name_no_file_and_load_nothing(run: RunDir) -> None:
    pytest.importorskip("docker")
    given = {
        "XLA_FLAGS": "--xla_gpu_cuda_data_dir=/runs/smoke",
        "LD_PRELOAD": "evil.so",
        "OMP_NUM_THREADS": "4",
    }
    told = settings(named(environment=given), run, FOUND, Asked())["environment"]
    assert told["OMP_NUM_THREADS"] == "4"
    assert not {"XLA_FLAGS", "LD_PRELOAD"} & told.keys()


@pytest.mark.parametrize("name", ["-rf", "a b", "a:b", "é", "x" * 200])
def test_a_run_of_any_name_is_mounted_under_a_plain_one(tmp_path: Path, name: str) -> None:
    pytest.importorskip("docker")
    path = tmp_path / name
    path.mkdir()
    assert settings(named(), RunDir(path), FOUND, Asked())["mounts"][0]["Target"] == "/runs/run"


# --- what the answer from inside means ---


def verdict(status: str) -> str:
    row = Compared(field="dataset", status=status, note="it is not here")  # type: ignore[arg-type]
    made = Verdict(
        run="/runs/x",
        against="this",
        fields=[row],
        replay=None,
        verdict=status,
        first_difference=None,  # type: ignore[arg-type]
    )
    return made.model_dump_json()


def test_an_answer_is_taken_with_its_exit_code() -> None:
    assert inside(0, verdict("equal"), "")["verdict"] == "equal"
    assert inside(1, verdict("differs"), "")["verdict"] == "differs"
    doubt = inside(1, verdict("cannot tell"), "")
    assert (doubt["verdict"], doubt["reason"]) == ("cannot tell", "dataset: it is not here")


@pytest.mark.parametrize(
    ("code", "out"),
    [
        (2, ""),
        (137, verdict("equal")),
        (0, ""),
        (0, "{}"),
        (0, "[1]"),
        (0, verdict("equal") + "x"),
        (1, verdict("equal")),
    ],
)
def test_what_is_no_answer_is_never_equal(code: int, out: str) -> None:
    told = inside(code, out, "error [x] y\n")
    assert "verdict" not in told
    assert told["reason"]


# --- what is built ---


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, str]:
    root = tmp_path / "clone"
    root.mkdir()
    (root / "Dockerfile").write_text("ARG BASE_IMAGE=debian:12\nFROM ${BASE_IMAGE}\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", "-C", str(root), *who, *command], check=True)
    told = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return root, told.stdout.strip()


@pytest.fixture
def _has_git() -> None:
    import shutil

    if shutil.which("git") is None:
        pytest.skip("the test image has no git")


@pytest.mark.usefixtures("_has_git")
@pytest.mark.parametrize("target", sorted({*IMAGES} - {"test"}))
def test_the_commit_that_the_manifest_names_is_built(checkout: tuple[Path, str], target: str) -> None:
    root, commit = checkout
    manifest = named(image=f"harness:{target} on debian:12", source_revision=f"{commit}+source.{'0' * 16}")
    assert what_to_build(manifest, root) == (target, "debian:12", commit)


@pytest.mark.usefixtures("_has_git")
@pytest.mark.parametrize(
    "changes",
    [
        {"image": None},
        {"image": "harness:cpu on evil.example/base:1"},
        {"image": "harness:cpu on --network=host"},
        {"image": "other:cpu on debian:12"},
        {"source_revision": None},
        {"source_revision": f"unknown+source.{'0' * 16}"},
        {"source_revision": "--help+source.0"},
        {"source_dirty": True},
        {"source_revision": f"{'d' * 40}+source.{'0' * 16}"},
    ],
)
def test_what_cannot_be_built_or_may_not_is_refused(
    checkout: tuple[Path, str], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BASE_IMAGE", raising=False)
    root, commit = checkout
    known = {"source_revision": f"{commit}+source.{'0' * 16}"}
    with pytest.raises(HarnessError) as error:
        what_to_build(named(**known | changes), root)
    assert error.value.code == "image-unbuildable"


def test_the_step_that_made_a_file_is_found_in_the_layers() -> None:
    import io
    import tarfile

    def tar(files: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return stream.getvalue()

    manifest = json.dumps([{"Layers": ["a/layer.tar", "b/layer.tar"]}]).encode()
    saved = tar(
        {
            "b/layer.tar": tar({"etc/x": b"2", "etc/y": b"1"}),
            "a/layer.tar": tar({"etc/x": b"1"}),
            "c.json": b"{}",
            "manifest.json": manifest,
        }
    )
    history = [
        {"CreatedBy": "ENV A=1", "Size": 0},
        {"CreatedBy": "RUN  second", "Size": 5},
        {"CreatedBy": "", "Size": 9},
    ]
    pieces = iter([saved[:700], saved[700:]])
    assert made_by(pieces, history, {"etc/x", "etc/y", "etc/z"}) == {
        "etc/x": "layer 2 of 2: RUN second",
        "etc/y": "layer 2 of 2: RUN second",
    }


def test_two_images_that_are_equal_are_not_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named:
        """An image; to save it costs the engine as much disk as it has, so that has to have a reason."""

        id, attrs = "sha256:1", {"Config": {"Env": ["A=1"]}}

    tree = Tree({"x": Entry("x", "f", 0o644, "0:0", "", "0" * 64)}, {})
    monkeypatch.setattr(layers, "get_image", lambda *_: Named())
    monkeypatch.setattr(layers, "contents", lambda *_: tree)
    found = layers.compare_layers(None, "a", "b")
    assert (found.differences, found.entries) == ([], (1, 1))


def test_of_what_a_container_says_only_so_much_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program may be a stranger's, and write for ever."""
    monkeypatch.setattr(engine, "_OUTPUT_BYTES", 10)

    class Container:
        def start(self) -> None: ...
        def remove(self, **_: object) -> None: ...
        def wait(self, **_: object) -> dict[str, int]:
            return {"StatusCode": 1}

        def logs(self, *, stdout: bool, follow: bool = False, **_: object) -> Iterator[bytes]:
            return iter([b"step"]) if follow else repeat(b"out " if stdout else b"err ")

    class client:
        class containers:
            @staticmethod
            def create(*_: object, **__: object) -> Container:
                return Container()

    heard: list[str] = []
    ended = engine.run(client, "sha256:1", heard.append)
    assert (ended, heard) == (engine.Ended(1, "out out ou", "err err er"), ["step"])
