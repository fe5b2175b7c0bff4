"""Tests how system packages come into an image: the lock, what is not as locked, the snapshot, and no times.

apt and dpkg are stood in for by scripts that say what the real ones say; the programs under test are real.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD, NEW = "2.5.0-1+deb12u1", "2.5.0-1+deb12u2"
# What apt says of a new package and of one that is replaced; and of each in its index.
PLANNED = """Inst libexpat1 (2.5.0-1+deb12u2 Debian:12.11/oldstable [amd64])
Inst libc6 [2.36-9+deb12u10] (2.36-9+deb12u14 Debian:12.11/oldstable, Debian-Security:12/x [amd64])
Conf libexpat1 (2.5.0-1+deb12u2 Debian:12.11/oldstable [amd64])
"""
INDEX = f"""Package: libexpat1
Version: 2.5.0-1+deb12u2
Description: SHA256: no field
SHA256: {"a" * 64}

Package: libc6
Version: 2.36-9+deb12u14
SHA256: {"b" * 64}
"""
LOCK = f"# comment\nlibexpat1 {NEW} {'a' * 64}\nlibc6 2.36-9+deb12u14 {'b' * 64}\n"


class Scene:
    """A copy of docker/apt, and on PATH stand-ins for apt that write down their calls."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, root / "calls"
        shutil.copytree(ROOT / "docker/apt", root / "apt")
        (root / "bin").mkdir()
        self.tool(
            "apt-get",
            f'echo "apt-get $*" >>{self.calls}\ncase " $* " in *" -s "*) cat {root}/planned ;; esac',
        )
        self.tool("apt-cache", f'echo "apt-cache $*" >>{self.calls}; cat {root}/index')
        self.apt("2.9.8")
        (root / "planned").write_text(PLANNED)
        (root / "index").write_text(INDEX)
        # What is removed is tested below, on a tree of its own.
        (root / "apt/tidy").write_text("echo tidied\n")
        release = dict(
            line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
        )
        name = f"{release['ID']}-{release.get('VERSION_ID', 'unknown')}".replace('"', "")
        self.lock = root / f"apt/apt-{name}.txt"

    def tool(self, name: str, text: str) -> None:
        (self.root / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.root / "bin" / name).chmod(0o755)

    def apt(self, version: str) -> None:
        """The version of apt; `ge 2.7` is answered by sort, as dpkg would for these."""
        self.tool("dpkg-query", f"echo {version}")
        self.tool("dpkg", f'[ "$(printf "%s\\n" {version} "$4" | sort -V | head -n 1)" = "$4" ]')

    def install(self, *packages: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.root}/bin:{os.environ['PATH']}"} | variables
        command = ["sh", str(self.root / "apt/install"), *packages]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def installed(scene: Scene) -> bool:
    return any("install -y" in line for line in scene.calls.read_text().splitlines())


def test_what_is_as_locked_is_installed_without_a_word(scene: Scene) -> None:
    scene.lock.write_text(LOCK)
    done = scene.install("libexpat1", APT_STRICT="1")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "tidied\n")
    assert installed(scene)


UNLIKE = {
    "another version": (LOCK.replace(NEW, OLD), f"libexpat1: {NEW} from the archive, {OLD} in the lock"),
    "another file": (LOCK.replace("a" * 64, "c" * 64), "another file of the same version"),
    "not in the lock": (
        LOCK.replace("libexpat1", "other"),
        f"libexpat1: {NEW} from the archive, not in the lock",
    ),
    "no lock": (None, "no lock for"),
}


@pytest.mark.parametrize(("lock", "said"), UNLIKE.values(), ids=UNLIKE)
def test_what_is_not_as_locked_is_named_and_refused_when_strict(
    scene: Scene, lock: str | None, said: str
) -> None:
    if lock is not None:
        scene.lock.write_text(lock)
    done = scene.install("libexpat1")
    assert done.returncode == 0
    assert f"warning [apt-unlike-lock]: {said}" in done.stderr.replace(
        "libexpat1 2.5.0-1+deb12u2: another", "another"
    )
    assert installed(scene)
    scene.calls.unlink()
    strict = scene.install("libexpat1", APT_STRICT="1")
    assert strict.returncode == 1
    assert "error [apt-unlike-lock]" in strict.stderr
    assert "fix:  " in strict.stderr
    assert not installed(scene)


def test_a_lock_is_printed_from_the_index(scene: Scene) -> None:
    done = scene.install("--print", "libexpat1")
    assert sorted(done.stdout.splitlines()) == sorted(LOCK.splitlines()[1:])
    assert not installed(scene)
    # Exactly these versions are asked of the index.
    assert f"apt-cache show libexpat1={NEW} libc6=2.36-9+deb12u14" in scene.calls.read_text()


def test_a_snapshot_is_given_to_every_call_of_apt(scene: Scene) -> None:
    scene.lock.write_text(LOCK)
    done = scene.install("libexpat1", APT_SNAPSHOT="20260801T000000Z")
    assert done.returncode == 0, done.stderr
    calls = [line for line in scene.calls.read_text().splitlines() if line.startswith("apt-get")]
    assert len(calls) == 3
    assert all("--snapshot 20260801T000000Z" in line for line in calls)


@pytest.mark.parametrize("moment", ["20260801", "yesterday", "20260801T000000Z; rm -rf /", "-x"])
def test_what_is_no_moment_is_refused(scene: Scene, moment: str) -> None:
    done = scene.install("libexpat1", APT_SNAPSHOT=moment)
    assert done.returncode == 1
    assert "error [apt-snapshot-invalid]" in done.stderr
    assert not scene.calls.exists()


@pytest.mark.parametrize(("version", "serves"), [("2.6.1", False), ("2.7.14build2", True), ("3.0.3", True)])
def test_an_apt_without_snapshots_is_refused(scene: Scene, version: str, serves: bool) -> None:
    scene.apt(version)
    scene.lock.write_text(LOCK)
    done = scene.install("libexpat1", APT_SNAPSHOT="20260801T000000Z")
    assert (done.returncode == 0) == serves
    assert serves or "error [apt-too-old]" in done.stderr


def test_nothing_to_install_is_no_question_of_the_index(scene: Scene) -> None:
    (scene.root / "planned").write_text("")
    scene.lock.write_text(LOCK)
    assert scene.install("libexpat1", APT_STRICT="1").returncode == 0
    assert "apt-cache" not in scene.calls.read_text()


def test_without_packages_the_usage_is_told(scene: Scene) -> None:
    assert scene.install().returncode == 2


def test_every_image_installs_by_this_script_alone() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "apt-get" not in text
    assert text.count("sh /apt/install ") == 5
    assert "apt-get install" not in (ROOT / "docker/openpi/install").read_text()


# --- bytecode without times ---


def bytecode(*roots: Path, seed: str) -> str:
    command = [sys.executable, str(ROOT / "docker/apt/bytecode"), *map(str, roots)]
    env = os.environ | {"PYTHONHASHSEED": seed}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def test_bytecode_is_the_same_whenever_and_in_whatever_company(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = 'x = {"a", "b", "c"}\ndef f(q):\n    return q in {"one", "two", "three", "four"}\n'
    found = []
    for number, (seed, others) in enumerate((("1", 0), ("2", 3), ("random", 20))):
        root = tmp_path / str(number) / "root"
        root.mkdir(parents=True)
        for other in range(others):
            (root / f"a{other}.py").write_text(f"one = two = three = {other}\ndef f(q): ...\n")
        (root / "m.py").write_text(source)
        os.utime(root / "m.py", (number + 1, number + 1))
        # The name of a file is part of its bytecode.
        monkeypatch.chdir(root.parent)
        assert f"{others + 1} files compiled" in bytecode(Path("root"), seed=seed)
        (made,) = (root / "__pycache__").glob("m.*.pyc")
        found.append(made.read_bytes())
    assert found[0] == found[1] == found[2]
    # PEP 552: a hash, that is not checked.
    assert found[0][4:8] == b"\1\0\0\0"


def test_bytecode_with_times_is_replaced_and_what_is_no_python_is_left(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/old.cpython-311.pyc").write_text("of long ago")
    (tmp_path / "bad.py").write_text("print 'of Python 2'\n")
    (tmp_path / "good.py").write_text("x = 1\n")
    assert "1 files compiled, 1 that are no Python" in bytecode(tmp_path, seed="0")
    assert [path.name.partition(".")[0] for path in (tmp_path / "__pycache__").iterdir()] == ["good"]
