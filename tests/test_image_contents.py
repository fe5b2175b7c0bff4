"""Tests the list of an image's contents and its digest, from a directory and from a tar."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.image.contents import Entry, counts, digest, listing, of_directory, of_tar, parse
from harness.image.owners import Owners
from tests.support.image_root import SITE, as_tar, make_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


def of(root: Path) -> str:
    return digest(of_directory(root).entries)


def test_a_directory_and_its_tar_have_one_digest(root: Path) -> None:
    tree, other = of_directory(root), of_tar(as_tar(root))
    assert listing(tree.entries) == listing(other.entries)
    assert tree.texts == other.texts
    assert parse(listing(tree.entries)).keys() == tree.entries.keys()
    assert digest(parse(listing(tree.entries))) == digest(tree.entries)


def test_times_change_nothing(root: Path) -> None:
    before = of(root)
    for path in root.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert of(root) == before


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": lambda root: (root / "usr/lib/libc.so.6").write_text("elg"),
    "a mode": lambda root: (root / "usr/lib/libc.so.6").chmod(0o755),
    "the mode of a directory": lambda root: (root / "opt").chmod(0o700),
    "a set-uid bit": lambda root: (root / "opt/venv/bin/f2py").chmod(0o4755),
    "a file more": lambda root: (root / SITE / "evil.pth").write_text("import os\n"),
    "an empty directory more": lambda root: (root / "srv").mkdir(),
    "a file less": lambda root: (root / "etc/ld.so.conf").unlink(),
    "another target": lambda root: (
        (root / "etc/localtime").unlink(),
        (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/Europe/Paris"),
    ),
    "a link in the place of a file": lambda root: (
        (root / "etc/ld.so.conf").unlink(),
        (root / "etc/ld.so.conf").symlink_to("/dev/null"),
    ),
    "a FIFO": lambda root: os.mkfifo(root / "etc/fifo"),
    "another user": lambda root: (root / "etc/passwd").open("a").write("eve:x:0:0::/:/bin/sh\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_change_is_another_digest_in_both_forms(root: Path, change: Callable[[Path], object]) -> None:
    before = of(root)
    change(root)
    assert of(root) != before
    assert digest(of_tar(as_tar(root)).entries) == of(root)


def test_who_built_it_changes_nothing(root: Path) -> None:
    before = of(root)
    passwd = (root / "etc/passwd").read_text()
    (root / "etc/passwd").write_text(
        passwd.replace("caller:x:0:0", "caller:x:31415:31415").replace("harness:x:1000:1000", "harness:x:7:8")
    )
    (root / "etc/group").write_text("root:x:0:\nharness:x:8:\ncaller:x:31415:\n")
    assert of(root) == before
    (root / "etc/group").write_text("root:x:5:\nharness:x:8:\ncaller:x:31415:\n")
    assert of(root) != before


@pytest.mark.parametrize(
    "path",
    [
        "proc/1/environ",
        "sys",
        "dev/null",
        "tmp/x",
        "runs/a/b",
        "cache",
        ".dockerenv",
        "etc/hosts",
        "run/secrets/k",
    ],
)
def test_what_a_container_is_given_is_not_counted(path: str) -> None:
    assert not counts(path)


@pytest.mark.parametrize(
    "path", ["process", "etc/hosts.allow", "run/lock", "opt/tmp/x", "usr/cache", "devices"]
)
def test_a_name_that_only_looks_like_it_is_counted(path: str) -> None:
    assert counts(path)


def test_a_second_name_of_one_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "b")
    assert of(tmp_path) == digest(of_tar(as_tar(tmp_path)).entries)


def test_what_cannot_be_read_is_taken_from_the_list(root: Path) -> None:
    whole = of_directory(root)
    hidden = whole.entries["etc/ld.so.conf"]._replace(sha256="?")
    entries = {path: entry for path, entry in whole.entries.items() if not path.startswith("opt/venv/bin/")}
    seen = whole._replace(entries=entries | {hidden.path: hidden}, closed=("opt/venv/bin",))
    assert digest(seen.completed(whole.entries).entries) == digest(whole.entries)
    # Only what lies below a closed directory is taken on trust.
    lost = {path: entry for path, entry in whole.entries.items() if path != "etc/ld.so.conf"}
    assert "etc/ld.so.conf" not in whole._replace(entries=lost).completed(whole.entries).entries


def test_the_program_gives_one_digest_on_the_host_and_in_a_build(root: Path) -> None:
    command = [sys.executable, "-m", "harness.image.contents"]
    here = subprocess.run([*command, str(root)], capture_output=True, text=True, check=True).stdout
    told = subprocess.run([*command, "-"], input=as_tar(root).read(), capture_output=True, check=True).stdout
    assert here == told.decode() == f"{of(root)}\n"


@pytest.mark.parametrize("text", ["{}", '["a"]', '["a","f","9","0:0","",""]', "no json"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse(text)


def test_what_is_no_tar_is_refused() -> None:
    import tarfile

    with pytest.raises(tarfile.TarError):
        of_tar(io.BytesIO(b"nothing of the kind" * 100))


def test_names_that_are_no_text_are_listed(tmp_path: Path) -> None:
    name = b"\xff\n".decode(errors="surrogateescape")
    (tmp_path / name).write_text("x")
    tree = of_directory(tmp_path)
    assert listing(tree.entries).count("\n") == 1
    assert parse(listing(tree.entries))[name].sha256 == tree.entries[name].sha256


WHOSE = {
    "usr/lib/libc.so.6": "system package libc6",
    "usr/lib/python3.11/__pycache__/os.cpython-311.pyc": "system package python3.11-minimal",
    "usr/lib/python3.11/__pycache__": "system package python3.11-minimal",
    "var/lib/dpkg/info/libc6:amd64.postinst": "system package libc6",
    "var/lib/dpkg/info/python3.11-minimal.list": "system package python3.11-minimal",
    "etc/ssl/one.pem": "system package libc6",
    "etc/localtime": "file /etc/localtime",
    f"{SITE}/certifi/__pycache__/__init__.cpython-311.pyc": "Python package certifi",
    f"{SITE}/certifi": "Python package certifi",
    "opt/venv/bin/f2py": "Python package numpy",
    f"{SITE}/harness/cli.py": "our source",
    "opt/harness/docker/entrypoint": "our source",
    f"{SITE}/evil.pth": f"file /{SITE}/evil.pth",
    "opt/harness/image/environment.json": "file /opt/harness/image/environment.json",
}


@pytest.mark.parametrize(("path", "owner"), WHOSE.items())
def test_each_file_is_somebodys(root: Path, path: str, owner: str) -> None:
    assert Owners(of_directory(root)).of(path) == owner


def test_an_entry_is_one_line_without_time_and_size() -> None:
    entry = Entry("a b", "f", 0o4755, "0:0", "", "00")
    assert entry.line == '["a b","f","4755","0:0","","00"]'
