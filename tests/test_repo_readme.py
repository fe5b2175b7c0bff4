"""Tests that the README is easy to read, and that the map in docs/architecture.md matches the tree."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What is here only on some machines, when there is no git to ask (in the test image): see .gitignore.
PASSING = re.compile(r"__pycache__|.*\.egg-info|build|dist|wandb|revision")


def tree(root: Path) -> set[str]:
    """Top-level entries and the entries of harness/, without hidden ones and package marks; what git ignores
    does not count.
    """
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = (
        subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if shutil.which("git")
        else None
    )
    if listed and listed.returncode == 0:
        paths = [Path(name) for name in listed.stdout.split("\0") if name and (root / name).exists()]
    else:
        paths = [
            path.relative_to(root)
            for path in [*root.iterdir(), *(root / "harness").iterdir()]
            # image/ is what an image says of itself.
            if not PASSING.fullmatch(path.name) and path != root / "image"
        ]
    entries = {path.parts[0] for path in paths} | {
        "/".join(path.parts[:2]) for path in paths if path.parts[0] == "harness" and len(path.parts) > 1
    }
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
    text = (
        "x\n<!-- tree -->\n```text\nDockerfile        images\nharness/          the package\n\nharness/data/ "
        "    data\n```\n"
    )
    assert tree_map(text) == {"Dockerfile", "harness", "harness/data"}


def test_tree_without_git(tmp_path: Path) -> None:
    for name in (
        "harness/data/x.py",
        "harness/__init__.py",
        "harness/__pycache__/y.pyc",
        "harness.egg-info/z",
        "README.md",
        ".gitignore",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert tree(tmp_path) == {"harness", "harness/data", "README.md"}


def paragraphs(page: str) -> list[str]:
    """The prose of a page as a reader sees it, one text a paragraph or item of a list.

    Headings, tables, code blocks and pictures are left out.
    """
    text = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    lines = (
        "" if re.match(r"#|\||<", line) else re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", line)
        for line in text.splitlines()
    )
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", "\n".join(lines)) if part.strip()]


def sentences(paragraph: str) -> list[str]:
    """Its sentences. What stands in backticks is one word, and no dot in it ends a sentence."""
    plain = re.sub(r"`[^`]*`", "code", paragraph)
    return [part for part in re.split(r"(?<=[.!?])\s+", plain) if part]


def test_readme_has_short_paragraphs() -> None:
    long = {text: len(text) for text in paragraphs((ROOT / "README.md").read_text()) if len(text) > 400}
    assert not long


def test_readme_has_short_sentences() -> None:
    every = [
        sentence for text in paragraphs((ROOT / "README.md").read_text()) for sentence in sentences(text)
    ]
    assert len(every) > 50
    assert [sentence for sentence in every if len(sentence.split()) > 25] == []


def test_prose_is_told_from_tables_code_and_pictures() -> None:
    page = (
        "# Title\n\nOne [link](https://a.b/c).\nTwo `x. y z`!\n\n```console\n$ code. more\n```\n\n| a | table"
        " |\n\n- an item\n- another. With two\n\n![p](x)\n"
    )
    assert paragraphs(page) == ["One link. Two `x. y z`!", "an item", "another. With two"]
    assert [sentences(text) for text in paragraphs(page)] == [
        ["One link.", "Two code!"],
        ["an item"],
        ["another.", "With two"],
    ]


def test_links_of_the_pages_lead_to_files() -> None:
    broken = []
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60


def test_the_list_of_tasks_names_every_script_of_ci() -> None:
    tasks = (ROOT / "justfile").read_text()
    assert [
        path.name
        for path in sorted((ROOT / "ci").iterdir())
        if path.is_file() and f"ci/{path.name}" not in tasks
    ] == []


def test_no_task_and_no_stage_stands_twice() -> None:
    """`just` refuses the whole file then, and `ci/all` does the same work again."""
    tasks = re.findall(r"^([a-z-]+)[^\n:=]*:", (ROOT / "justfile").read_text(), re.MULTILINE)
    stages = re.findall(r'^stage "([^"]+)"', (ROOT / "ci/all").read_text(), re.MULTILINE)
    assert {"all", "contents"} <= {*tasks}
    assert len(stages) > 5
    assert [name for names in (tasks, stages) for name in names if names.count(name) > 1] == []


def test_the_table_of_benchmarks_names_every_program() -> None:
    table = (ROOT / "benchmarks" / "README.md").read_text()
    # A module that begins with the name of a program and an underscore is a part of it.
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    programs = {name for name in names if not any(name.startswith(f"{other}_") for other in names)}
    assert sorted(name for name in programs if f"`{name}" not in table) == []


def test_license_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_readme_shows_what_the_commands_printed() -> None:
    text = (ROOT / "README.md").read_text()
    assert "@@" not in text
    assert re.search(
        r"\$ docker compose run --rm smoke\nrun .*\n(.*\n)+?step 60/60 .*\nloss: .*\nreport: ", text
    )
    assert re.search(r"\$ docker compose run --rm --build test\n(.*\n)*?.*\b\d+ passed", text)
