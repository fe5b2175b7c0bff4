"""Tests that container tests run only if a path names them, and then fail where no engine answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.name for path in (ROOT / "tests" / "container").glob("test_*.py"))


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_ordinary_run_leaves_them_out() -> None:
    # Without the others, that would take a minute to be read.
    done = run("--collect-only", f"--ignore-glob={ROOT}/tests/test_*.py")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout
    assert "container" not in done.stdout


def test_each_is_found_by_its_path() -> None:
    found = run("--collect-only", "tests/container").stdout
    assert {name for name in FILES if f"tests/container/{name}" not in found} == set()


def test_without_an_engine_all_fail_and_none_is_skipped() -> None:
    done = run("tests/container", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "no container engine answers" in done.stdout
    assert re.fullmatch(r"\d+ errors in .*", done.stdout.splitlines()[-1]), done.stdout[-2000:]


@pytest.mark.parametrize("name", FILES)
def test_a_script_of_ci_runs_each(name: str) -> None:
    calls = [
        path.name
        for path in sorted((ROOT / "ci").iterdir())
        if path.is_file() and f"tests/container/{name}" in path.read_text()
    ]
    assert len(calls) == 1
    stages = [line for line in (ROOT / "ci" / "all").read_text().splitlines() if line.startswith("stage ")]
    assert len([stage for stage in stages if f"ci/{calls[0]}" in stage.split()]) == 1
