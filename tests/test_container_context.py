"""Tests the build context: all files of git, and no key, wherever one lies.

Files are matched as the engine's own client matches them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

ROOT = Path(__file__).parents[1]
PATTERNS = [
    line.strip()
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
# `!/ci` and `!ci` are the same to the engine, which this reading of it does not know.
PATTERNS = [pattern.replace("!/", "!", 1) if pattern.startswith("!/") else pattern for pattern in PATTERNS]
KEYS = (
    *(
        ".env",
        ".env.local",
        ".env.production",
        ".env_mine",
        ".envrc",
        "docker/.env",
        "harness/.env",
        "harness/openpi/.env.local",
        "tests/fixtures/.env",
    ),
    *(
        ".netrc",
        "_netrc",
        ".git-credentials",
        ".ssh/id_ed25519",
        "id_rsa",
        "docker/id_ed25519",
        "ci/server.pem",
        "docs/private.key",
        "harness/a.p12",
    ),
    *(
        "wandb_api_key",
        "hf_token",
        "docker/hf_token",
        "ci/wandb_api_key.txt",
        ".aws/credentials",
        "docker/.docker/config.json",
        ".huggingface/token",
    ),
    *(
        "secrets/anything",
        "harness/secrets/wandb",
        "benchmarks/kaggle.json",
        "tests/my-service-account-1.json",
        ".pypirc",
        "ci/.npmrc",
    ),
    # Names that no list knows, beside the code: nothing goes in there that is not asked for.
    *(
        "key",
        "mine.txt",
        "notes/password",
        "token",
        ".config/wandb/settings",
        "run.sh",
        "wandb/latest-run/config.yaml",
        "runs/a/manifest.json",
    ),
    *(
        "cache/huggingface/token",
        "datasets/me/info.json",
        ".git/config",
        ".git/credentials",
        ".git/logs/HEAD",
        ".venv-local/x",
    ),
)


def given(root: Path) -> set[str]:
    """The files of `root` that a build is given."""
    return {path for path in exclude_paths(str(root), PATTERNS) if (root / path).is_file()}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_reaches_no_build(tmp_path: Path, key: str) -> None:
    for name in (key, "harness/cli.py", "docker/entrypoint", ".git/HEAD"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert given(tmp_path) == {"harness/cli.py", "docker/entrypoint", ".git/HEAD"}


def test_an_example_may_be_built_in(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / ".env.example").write_text("WANDB_API_KEY=\n")
    assert given(tmp_path) == {"docs/.env.example"}


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(),
    reason="git says what belongs to the checkout; the test image has none",
)
def test_all_that_git_has_is_built_in() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    assert tracked - given(ROOT) == set()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is asked; the test image has none")
@pytest.mark.parametrize("key", [*KEYS[:28]])
def test_git_does_not_add_a_key(tmp_path: Path, key: str) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path / ".gitignore")
    (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / key).write_text("x")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    added = subprocess.run(
        ["git", "add", "--all", "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert added == "add '.gitignore'\n"


def test_both_lists_are_the_same() -> None:
    def keys(text: str) -> list[str]:
        return [
            line.replace("**/", "")
            for line in text.partition("# Where keys are kept")[2].splitlines()[1:]
            if line and not line.startswith("#")
        ]

    assert keys((ROOT / ".gitignore").read_text()) == keys((ROOT / ".dockerignore").read_text())
