"""Tests that ci/local refuses what it cannot do before it makes anything, with the fix and exit code 2."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def local(
    tmp_path: Path, *arguments: str, python: str = "exit 1", system: str = "Linux-x86_64"
) -> subprocess.CompletedProcess[str]:
    """ci/local with a `python3` whose whole program is `python`, on a machine of this kind."""
    bin_ = tmp_path / "bin"
    bin_.mkdir(exist_ok=True)
    kernel, _, machine = system.partition("-")
    for name, body in {
        "python3": python,
        "uname": f"case $1 in -s) echo {kernel};; -m) echo {machine};; esac",
    }.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin_ / name).chmod(0o755)
    env = {"PATH": f"{bin_}:{os.environ['PATH']}", "HARNESS_VENV": str(tmp_path / "venv")}
    return subprocess.run(
        [ROOT / "ci" / "local", *arguments], capture_output=True, text=True, check=False, env=env
    )


def answers(version: str, *, in_range: bool, venv: bool) -> str:
    """A python3 that tells its version, whether that is in range, and whether it has venv."""
    checks = (
        f'*"sys.exit"*) exit {0 if in_range else 1};; *ensurepip*) exit {0 if venv else 1};; *) echo'
        f" {version};;"
    )
    return f'case "$2" in {checks} esac'


@pytest.mark.parametrize(
    ("python", "system", "fix"),
    [
        (answers("3.9.2", in_range=False, venv=True), "Linux-x86_64", "HARNESS_PYTHON="),
        (answers("3.14.0", in_range=False, venv=True), "Linux-x86_64", "HARNESS_PYTHON="),
        (answers("3.12.3", in_range=True, venv=False), "Linux-x86_64", "apt-get install python3-venv"),
        (answers("3.12.3", in_range=True, venv=True), "Darwin-arm64", "docker compose run"),
        (answers("3.12.3", in_range=True, venv=False), "Linux-aarch64", "apt-get install python3-venv"),
        (answers("3.12.3", in_range=True, venv=True), "Linux-riscv64", "on a machine of"),
    ],
    ids=["old", "new", "no-venv", "other-system", "arm-goes-as-far", "other-processor"],
)
def test_refuses(tmp_path: Path, python: str, system: str, fix: str) -> None:
    done = local(tmp_path, "train", python=python, system=system)
    assert (done.returncode, done.stdout) == (2, "")
    assert fix in done.stderr.split("fix:")[1]
    assert not (tmp_path / "venv").exists()


def test_leaves_a_directory_that_it_did_not_make(tmp_path: Path) -> None:
    for name in ("cpu", "cuda"):
        (tmp_path / "venv" / name).mkdir(parents=True)
        (tmp_path / "venv" / name / "mine").touch()
    done = local(tmp_path, "train", python=answers("3.12.3", in_range=True, venv=True))
    assert done.returncode == 2
    assert "HARNESS_VENV=" in done.stderr.split("fix:")[1]
    assert (tmp_path / "venv" / "cpu" / "mine").exists()


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_says_how_it_is_used(tmp_path: Path, arguments: list[str]) -> None:
    done = local(tmp_path, *arguments)
    assert done.returncode == 2
    assert "usage: ci/local VERB" in done.stderr
