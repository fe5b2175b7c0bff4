"""Tests that shown text stays text.

No markup is read in data, no data controls a terminal, and no fix is cut off at the width of a pipe.
"""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.show.dataset import stats_table
from harness.show.progress import Progress, spinner
from harness.show.verdict import verdict_table
from harness.verbs.answers import answer
from tests.support.hostile_artifacts import FIX, HOSTILE, TABLES, finding, stats

ROOT = Path(__file__).parents[1]
NAMES = [table.__name__ for _, table in TABLES]


def shown(renderable: Any, width: int, *, color: bool = False) -> str:
    stream = io.StringIO()
    Console(
        file=stream, width=width, force_terminal=color, color_system="truecolor" if color else None
    ).print(renderable, crop=False)
    return stream.getvalue()


@pytest.mark.parametrize(("make", "table"), TABLES, ids=NAMES)
def test_no_table_obeys_what_it_shows(make: Callable[[], Any], table: Callable[[Any], Any]) -> None:
    text = " ".join(shown(table(make()), 2000).split())
    assert "[/x][green]equal[/green] :boom: \\x1b[2J\\x1b]0;t\\x07 \\u202e \\x9b1A end" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\x9b"}
    coloured = shown(table(make()), 2000, color=True)
    assert "\x1b]" not in coloured
    assert "\x1b[2J" not in coloured


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize(("make", "table"), TABLES, ids=NAMES)
def test_no_table_cuts_a_text_off(make: Callable[[], Any], table: Callable[[Any], Any], width: int) -> None:
    """The one sign that a text is cut off; `verify` shortens long values by itself, and `data` a long list of
    tasks.
    """
    if table is not verdict_table:
        assert "…" not in shown(table(make()), width)


@pytest.mark.parametrize(
    ("make", "table"),
    [
        pair
        for pair in TABLES
        if pair[1].__name__ in ("curve_table", "stats_table", "doctor_table", "openpi_view")
    ],
)
def test_a_fix_stands_on_one_line_however_narrow_the_terminal(
    make: Callable[[], Any], table: Callable[[Any], Any]
) -> None:
    assert FIX in shown(table(make()), 80)


def test_a_fix_is_whole_in_what_a_verb_prints_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    answer(stats(), False, stats_table)
    assert FIX in capsys.readouterr().out


def test_every_table_is_made_of_the_cells_that_are_text() -> None:
    """A new table cannot forget it: only show/rows.py knows rich's own table, and no other module reads
    markup.
    """
    for path in [*(ROOT / "harness/show").glob("*.py"), *(ROOT / "harness/verbs").glob("*.py")]:
        tree = ast.parse(path.read_text())
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
        }
        names |= {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert "from_markup" not in names, path
        if path.name != "rows.py":
            assert not names & {"Table", "add_row", "add_column", "Panel", "Markdown"}, path


def test_what_a_run_says_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    console = Progress()
    console.say(HOSTILE)
    console.warn(HOSTILE)
    console.finding(finding())
    with spinner("planning") as say:
        say(HOSTILE)
    said = capsys.readouterr().err
    assert said.count("[/x][green]equal[/green] :boom: \\x1b[2J") == 6
    assert not set(said) & {"\x1b", "\x07", "\u202e", "\x9b"}
    assert "warning: error" not in said
    assert f"\n  fix:  {FIX}\n" in said


def test_a_traceback_and_a_warning_of_a_download_are_text() -> None:
    name = "\x1b[1A\x1b[2K\x1b[32mverdict: equal\x1b[0m\nforged"
    crash = "import sys, harness.cli as c\ndef app(): raise RuntimeError(sys.argv[1])\nc.app = app\nc.main()"
    done = subprocess.run([sys.executable, "-c", crash, name], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "\\x1b[2K" in done.stderr
    assert "\x1b" not in done.stderr
    warn = (
        "import sys\nfrom harness.received.consent import Named, announce\n"
        "announce(sys.argv[1], Named(by=sys.argv[1]), 1)"
    )
    done = subprocess.run([sys.executable, "-c", warn, name], capture_output=True, text=True, check=False)
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_spinner_on_a_terminal_reads_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with spinner("[/x]") as say:
        say("[/x]")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_recipe_of_any_characters_is_compiled_under_any_encoding(tmp_path: Path, encoding: str) -> None:
    """The child that compiles is told the recipe in UTF-8, whatever the terminal's encoding is."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        (ROOT / "harness/recipe/smoke.yaml").read_text().replace("A tiny π0.5", "把碗放在盘子上 π0.5"),
        encoding="utf-8",
    )
    environment = os.environ | {
        "PYTHONIOENCODING": encoding,
        "PYTHONPATH": str(ROOT),
        "HARNESS_CACHE": str(tmp_path / "cache"),
    }
    command = [
        sys.executable,
        "-m",
        "harness.cli",
        "plan",
        "--recipe",
        str(recipe),
        "--device",
        "cpu",
        # The step of tests/support/tiny.py, which other tests compile too.
        "--set=model.image_size=56",
        "--set=data.augment=false",
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert json.loads(done.stdout)["chosen"]
