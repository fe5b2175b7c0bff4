"""Tests that no name of a file, a directory or a user reaches a printed command unquoted.

A directory that someone sent may be called `a;rm -rf ~;b`. A fix that prints the name as it is would be that
command for whoever pastes the fix into a shell.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.checkpoint.inspect import inspect
from harness.errors import HarnessError
from harness.received.text import word
from tests.support.source import parsed
from tests.test_repo_fixes import fix_ids

ROOT = Path(__file__).parents[1]
GAP = "\0"
# Where a command begins. Prose takes over at a `;`, a comma or a bracket.
PLAIN = r"(?<![\w/.-])(?:harness [a-z]+|chmod|chown|cp|rm|mv)(?= )"
MORE = r"|(?<![\w/.-])(?:ls|stat|head|sed|zstd|unzip|cat|cd|git|diff)(?= )|(?<![\w-])--[a-z][a-z.-]*(?=[ =])"
REST = r"(?:\$\([^)]*\)|[^;,()])*"
# Any text may be given to a function as a fix, so these commands are looked for everywhere.
ANYWHERE = re.compile(f"(?:{PLAIN}){REST}")
IN_A_FIX = re.compile(f"(?:{PLAIN}{MORE}){REST}")
# What gives text that is one word, or several, of a shell.
QUOTERS = {"word", "shlex.quote", "shlex.join", "said", "option_for"}
# Gaps of commands that need no quotes.
OURS = {
    # Quoted where they are made.
    "both": "words",
    "run": "word(…)",
    "again": "words",
    "against": "a word behind its option",
    # Names of our own.
    "recipe": "a shipped recipe's name",
    "close[0]": "a configuration of openpi's table",
    "nearest[0] if nearest else DEFAULT": "a shipped recipe's name",
    "_KEYS[what]": "a key of the recipe",
    "key": "a key of the recipe",
    "said": "a constant of job.py",
    "only": "a constant of plan.py",
    "plain": "an expert's variant",
    "name": "an expert's name in plan.py",
    "expert": "an expert's name",
    "by_files": "a version of the dataset's form",
    "commit": "a commit's whole name, by `is_commit`",
    "command.name": "a configuration of openpi's table",
}
# Names of numbers and of constants.
NUMBER = re.compile(
    r"[A-Z_]+|(?:\w+\.)*(?:rows|devices|frames|vocab_size|rank|alpha|fsdp)|(?:max|min|math\.gcd|latest)\(.*"
    r"|saved(?: \+ steps)?|there\[0\]|below or above|_SHARDED_ROWS \* setup\.devices"
)


def unquoted(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, expression) of each gap that stands in a command unquoted and is not known to be ours."""
    fixes = set(fix_ids(tree))
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr) or id(node) in inner:
            continue
        for gap in in_commands(node, IN_A_FIX if id(node) in fixes else ANYWHERE):
            quoted = isinstance(gap, ast.Call) and ast.unparse(gap.func) in QUOTERS
            expression = ast.unparse(gap)
            if not (quoted or expression in OURS or NUMBER.fullmatch(expression)):
                yield node.lineno, expression


def in_commands(string: ast.JoinedStr, commands: re.Pattern[str]) -> Iterator[ast.expr]:
    """The expressions of an f-string that stand inside a command."""
    gaps = [part.value for part in string.values if isinstance(part, ast.FormattedValue)]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in string.values)
    for match in commands.finditer(text):
        first = text.count(GAP, 0, match.start())
        yield from gaps[first : first + match[0].count(GAP)]


def test_no_text_from_outside_is_in_a_command_unquoted() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {expression}: wrap it in harness.received.text.word"
        for path in sorted((ROOT / "harness").rglob("*.py"))
        for line, expression in unquoted(parsed(path))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("E(fix=f'chmod -R u+rX {path}, or run as another')", ["path"]),
        ("E(fix=f'chown $(id -u) {path.parent}; in compose')", ["path.parent"]),
        ("E(fix=f'--set weights.source={newest}')", ["newest"]),
        ("E(fix='a' if b else f'see (harness inspect {path.parent} lists)')", ["path.parent"]),
        ("refusal(path, f'harness inspect {nested.parent}' if nested else None)", ["nested.parent"]),
        ("fix = f'zstd -dc {name.strip()} | harness analyse -'", ["name.strip()"]),
        ("E(fix=f'harness inspect {word(path)} lists')", []),
        ("E(fix=f'free space in {path}, then --resume')", []),
        ("E(f'{path} is not a checkpoint')", []),
    ],
)
def test_an_unquoted_gap_would_be_found(source: str, found: list[str]) -> None:
    assert [expression for _, expression in unquoted(ast.parse(source))] == found


def test_a_plain_path_is_printed_as_it_is() -> None:
    for plain in ("runs/smoke-001", "/data/a_b.c/5", "gs://bucket/params", "weights.source=/w/5", "a100:2"):
        assert word(plain) == plain


def test_a_directory_called_like_a_command_is_one_word_of_the_fix(tmp_path: Path) -> None:
    outer = "a;touch PWNED;b"
    (tmp_path / "nest" / outer / "x" / "3" / "params").mkdir(parents=True)
    with pytest.raises(HarnessError) as refused:
        inspect(tmp_path / "nest")
    assert refused.value.code == "not-a-checkpoint"
    assert refused.value.fix is not None
    assert shlex.split(refused.value.fix) == ["harness", "inspect", str(tmp_path / "nest" / outer / "x")]
    assert f"'{tmp_path}/nest/{outer}/x'" in refused.value.fix
