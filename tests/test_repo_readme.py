"""The README is short, and the map in docs/architecture.md is the tree."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What is here only on some machines, when there is no git to ask (in the test image): see .gitignore.
PASSING = re.compile(r"__pycache__|.*\.egg-info|build|dist|wandb|revision")


def tree(root: Path) -> set[str]:
    """Top-level entries and the entries of harness/, without hidden ones and package marks; what git ignores does not count."""
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False) if shutil.which("git") else None
    if listed and listed.returncode == 0:
        paths = [Path(name) for name in listed.stdout.split("\0") if name and (root / name).exists()]
    else:
        paths = [path.relative_to(root) for path in [*root.iterdir(), *(root / "harness").iterdir()] if not PASSING.fullmatch(path.name)]
    entries = {path.parts[0] for path in paths} | {"/".join(path.parts[:2]) for path in paths if path.parts[0] == "harness" and len(path.parts) > 1}
    return {name for name in entries if not name.startswith(".") and not name.endswith("__init__.py")}


def tree_map(page: str) -> set[str]:
    """First word of each line of the fenced block after `<!-- tree -->`."""
    block = re.search(r"<!-- tree -->\s*```text\n(.*?)```", page, re.DOTALL)
    assert block, "docs/architecture.md has no fenced text block after <!-- tree -->"
    return {line.split()[0].rstrip("/") for line in block[1].splitlines() if line.strip()}


def test_map_is_the_tree() -> None:
    mapped, there = tree_map((ROOT / "docs/architecture.md").read_text()), tree(ROOT)
    assert (sorted(there - mapped), sorted(mapped - there)) == ([], []), "(not on the map, not in the tree)"


def test_map_is_read_line_by_line() -> None:
    text = "x\n<!-- tree -->\n```text\nDockerfile        images\nharness/          the package\n\nharness/data/     data\n```\n"
    assert tree_map(text) == {"Dockerfile", "harness", "harness/data"}


def test_tree_without_git(tmp_path: Path) -> None:
    for name in ("harness/data/x.py", "harness/__init__.py", "harness/__pycache__/y.pyc", "harness.egg-info/z", "README.md", ".gitignore"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert tree(tmp_path) == {"harness", "harness/data", "README.md"}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_license_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_readme_shows_what_the_commands_printed() -> None:
    text = (ROOT / "README.md").read_text()
    assert "@@" not in text
    assert re.search(r"\$ docker compose run --rm smoke\nrun .*\n(.*\n)+?step 60/60 .*\nloss: .*\nreport: ", text)
    assert re.search(r"\$ docker compose run --rm --build test\n(.*\n)*?\d+ passed", text)
