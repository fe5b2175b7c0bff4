"""Tests that printed fixes are commands that run.

Each fix in the source is collected, its gaps are filled, and the real command line parses it. Nothing is
executed. A command begins with `harness VERB` and ends where prose begins again. An option that stands alone
must belong to some verb.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import typer.main

from harness.cli import VERBS as NAMES
from harness.cli import app
from tests.support.source import nodes, parsed

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app)
VERBS: dict[str, Any] = {name: COMMANDS.get_command(None, name) for name in NAMES}  # type: ignore[attr-defined]
# Typer brings a click of its own; this is what it raises for words that it does not take.
REFUSED = typer.BadParameter.__mro__[1]
# What stands for a gap of an f-string, by a word in its expression; anything else is a path.
# The words of a gap belong to the command all of them, so its blanks are marked.
BLANK = "␣"
GAPS = (
    (r"option_for", "--gpu a100_80:2"),
    (r"\.device$", "2 x a100_80"),
    (r"^what$", "recipe"),
    (r"retry|again|elsewhere|kept\b", ""),
    (r"largest|otherwise|fix|mend|otherwise|nearest|close|names|said|why|reason|other", "text"),
    (r"dotted|key\b|written", "train.seed"),
    (r"count|rows|devices|step|frames|number|rank|alpha|value|batch|_s\b|bytes|episode|limit|only", "2"),
    (r"PUBLISHED|recipe", "pi05_libero"),
)
# Options of other programs that a fix may name, each with its program in the same text; those of openpi's
# backend are openpi's.
OTHERS = {
    "docker", "nvidia-smi", "timedatectl", "hwclock", "pip", "git", "xla", "XLA", "modprobe", "CDI",
    "ci/lock", "python", "chown", "scripts/", "torchrun", "srun",
    "huggingface-cli", "hf ", "gcloud", "openpi", "curl", "rsync", "tar ", "dmesg", "apt",
}  # fmt: skip


class Text(NamedTuple):
    """A text of the source with its gaps filled; `is_fix` where it is given as one."""

    place: str
    text: str
    is_fix: bool


def filled(node: ast.expr) -> str | None:
    """A string's text, gaps of an f-string filled; None for what is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else gap(part) for part in node.values)  # type: ignore[misc]
    return None


def gap(part: ast.expr) -> str:
    assert isinstance(part, ast.FormattedValue)
    if isinstance(part.value, ast.IfExp):
        return filled(part.value.body) or gap(ast.FormattedValue(value=part.value.body, conversion=-1))
    expression = ast.unparse(part.value)
    value = next((value for pattern, value in GAPS if re.search(pattern, expression)), "runs/smoke-001")
    return value.replace(" ", BLANK)


def texts(path: Path) -> Iterator[Text]:
    """Every text of a module that may be shown: no docstrings, no help of options, no parts of a larger
    text.
    """
    inner = {
        id(part)
        for node in nodes(path)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    docs = {
        id(node.value)
        for node in nodes(path)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    fixes = set(fix_ids(parsed(path)))
    for node in nodes(path):
        text = filled(node) if isinstance(node, ast.expr) and id(node) not in inner | docs else None
        if text:
            yield Text(f"{path.relative_to(ROOT)}:{node.lineno}", text, id(node) in fixes)


def fix_ids(tree: ast.AST) -> Iterator[int]:
    """What is given as `fix=…`, or assigned to a name of a fix, or the last argument of a finding; with all
    strings inside of it.
    """
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            found = [keyword.value for keyword in node.keywords if keyword.arg == "fix"]
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            found += node.args[3:4] if name in ("error", "warning", "unknown") else []
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = (
                [node.value]
                if any(
                    isinstance(target, ast.Name) and re.search("fix|mend", target.id, re.IGNORECASE)
                    for target in targets
                )
                else []
            )
        yield from (id(part) for value in found for part in ast.walk(value))


TEXTS = [text for path in sorted((ROOT / "harness").rglob("*.py")) for text in texts(path)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `harness VERB …` in a text, up to where the prose goes on."""
    for match in re.finditer(r"(?<![\w/.-])harness ((?:import )?[a-z]+)(?![\w-])", text):
        verb = match[1].split()
        command = VERBS.get(verb[0])
        if hasattr(command, "commands"):
            command = command.commands.get(verb[1]) if len(verb) > 1 else None
        if command is None or "import harness" in text:
            continue
        rest = re.split(r"[;`)…|&\n]|, | \(|: |\.$|\. | or (?=harness)", text[match.end() :])[0]
        yield [*verb, *own_words(command, rest)]


def own_words(command: Any, rest: str) -> list[str]:
    """The options with their values, and what can be an argument: a path, a name in capitals, a name with a
    digit; not the prose behind them.
    """
    options = {
        name: param for param in command.params for name in param.opts if param.param_type_name == "option"
    }
    room = sum(
        param.nargs if param.nargs > 0 else 9
        for param in command.params
        if param.param_type_name == "argument"
    )
    try:
        words = shlex.split(rest)
    except ValueError:
        words = rest.split()
    taken: list[str] = []
    while words:
        word = words.pop(0)
        if BLANK in word:
            taken += word.split(BLANK)
        elif word.startswith("-") and len(word) > 1:
            taken.append(word)
            option = options.get(word)
            if option is not None and not option.is_flag and words:
                taken += words.pop(0).split(BLANK)
        elif room and (re.search(r"[/.\d_]", word) or word.isupper()):
            taken.append(word)
            room -= 1
        else:
            break
    return taken


def problem(words: list[str]) -> str | None:
    """Why the command line does not take these words; None where it does.

    What only lacks an argument that prose names is taken.
    """
    command, rest = VERBS[words[0]], words[1:]
    if hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    # A number is written as X where it is the reader's own.
    rest = ["2" if word in ("X", "N") else word for word in rest]
    try:
        command.make_context(words[0], rest)
    except REFUSED as refused:
        missing = type(refused).__name__ == "MissingParameter" and refused.param.param_type_name == "argument"
        return None if missing else str(refused.format_message())
    return None


SAID = [(each.place, words) for each in TEXTS for words in commands(each.text)]


@pytest.mark.parametrize(
    ("place", "words"), SAID, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_command_that_is_printed_is_one_that_the_command_line_takes(place: str, words: list[str]) -> None:
    assert problem(words) is None, f"{place}: harness {shlex.join(words)}"


def test_enough_was_collected_to_be_worth_the_name() -> None:
    assert len(SAID) > 60
    assert sum(each.is_fix for each in TEXTS) > 250


def test_an_option_that_a_fix_names_is_an_option_of_some_verb() -> None:
    known = {
        name
        for command in walk(COMMANDS)
        for param in command.params
        for name in (*param.opts, *param.secondary_opts)
    }
    strange = {
        f"{each.place}: {option} in {each.text!r}"
        for each in TEXTS
        if each.is_fix and "openpi/" not in each.place and not any(other in each.text for other in OTHERS)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", each.text)
        if option not in known
    }
    assert not strange


def walk(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from walk(inner)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (
            filled(
                ast.parse("f'or: harness plan --recipe pi05_libero --gpu {plan.device}'", mode="eval").body
            )
            or "",
            True,
        ),
        (
            filled(
                ast.parse(
                    "f'or: harness plan --recipe pi05_libero {option_for(plan.device)}'", mode="eval"
                ).body
            )
            or "",
            False,
        ),
        ("harness plan --gpus rtx_4090", True),
        ("harness plan --vram-gib much", True),
        ("harness plan --vram-gib X says how much", False),
        ("harness inspect runs/a --clean; then --resume", False),
        ("harness inspect runs/a --purge", True),
        ("harness doctor --online asks it", False),
    ],
)
def test_a_command_that_does_not_run_would_be_found(text: str, refused: bool) -> None:
    assert any(problem(words) for words in commands(text)) == refused
