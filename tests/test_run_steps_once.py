"""Tests that the source has one definition of a run's steps, `harness.run.steps`, and no second."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.run.steps import (
    ASSETS,
    COMMIT,
    HARNESS,
    INTERRUPTED,
    METADATA,
    OCDBT_MANIFEST,
    PARAMS,
    TRAIN_STATE,
)
from tests.support.source import parsed

ROOT = Path(__file__).parent.parent

# Names on disk by the module that says them. What is not listed here may stand in one module only.
OWNED = {
    "run.steps": [
        *(COMMIT, INTERRUPTED, OCDBT_MANIFEST),
        *("record.json", "digests.json", "base.json", "export.json"),
    ],
}
# Whole words that are parts of a path somewhere: there they are these names.
PIECES = {
    "run.steps": {PARAMS, TRAIN_STATE, ASSETS, HARNESS, METADATA},
    "run.directory": {"checkpoints", "metrics.jsonl", "recipe.yaml", "report.html"},
}
# Other facts that have the same name.
OTHER_FACTS = {
    ("run.directory", HARNESS): "the cache of this package: ~/.cache/harness",
    ("replay.layers", "manifest.json"): "the engine's, in an archive of docker save",
    ("data.listings", "episodes.jsonl"): "LeRobot's, in a dataset's meta/",
}
FILE_NAME = re.compile(r"[\w./-]*\w\.(json|jsonl|yaml|html|txt|png|pbtxt|ocdbt|safetensors|parquet|lock|log)")
DIGITS = {"isdigit", "isdecimal", "isnumeric"}
LISTING = {"iterdir", "glob", "rglob", "scandir", "listdir"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "harness").rglob("*.py")):
        yield ".".join(path.relative_to(ROOT / "harness").with_suffix("").parts), parsed(path)


def texts(tree: ast.AST) -> list[str]:
    """The strings of a module that are no docstrings, parts of f-strings among them."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]


def pieces(tree: ast.AST) -> list[str]:
    """The words of a path: what is joined with `/`, split at the slashes that it has itself."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            for side in (node.left, node.right):
                found += [word for text in texts(side) for word in text.split("/")]
    return found


def second_definitions(name: str, tree: ast.Module) -> list[str]:
    """What the module `name` says itself that another one owns, and how it reads numbers of names."""
    said, joined, found = texts(tree), pieces(tree), []
    for owner, words in OWNED.items():
        found += [word for word in words if name != owner and any(word in text for text in said)]
    for owner, names in PIECES.items():
        found += [
            word for word in joined if word in names and name != owner and (name, word) not in OTHER_FACTS
        ]
    found += [METADATA for text in said if text == METADATA and name != "run.steps"]
    return sorted({*found, *numbers_of_names(tree)})


def numbers_of_names(tree: ast.Module) -> list[str]:
    """Where digits of a file's name are looked for beside `step_number`."""
    found = []
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)):
        calls = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        ]
        asked = {call.func.attr: call for call in calls if isinstance(call.func, ast.Attribute)}
        for call in calls:
            assert isinstance(call.func, ast.Attribute)
            if call.func.attr not in DIGITS | LISTING:
                continue
            of = ast.unparse(call.func.value)
            pattern = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else ""
            if call.func.attr in DIGITS and (of.endswith(("name", ".stem")) or asked.keys() & LISTING):
                found.append(f"{of}.{call.func.attr}")
            elif call.func.attr in LISTING and "[0-9]" in str(pattern) and "/proc" not in of:
                found.append(f"{call.func.attr}({pattern!r})")
    return found


def test_no_module_defines_a_step_again() -> None:
    assert {name: found for name, tree in modules() if (found := second_definitions(name, tree))} == {}


def test_a_file_name_stands_in_one_module() -> None:
    where = defaultdict(set)
    for name, tree in modules():
        for text in texts(tree):
            if FILE_NAME.fullmatch(text) and (name, text) not in OTHER_FACTS:
                where[text].add(name)
    assert {text: sorted(names) for text, names in where.items() if len(names) > 1} == {}


@pytest.mark.parametrize(
    "source",
    [
        "_COMMIT = '_CHECKPOINT_METADATA'",
        "def f(p):\n    return (p / '_METADATA').is_file()",
        "X = '_METADATA'",
        "def f(p):\n    return p / 'params' / 'manifest.ocdbt'",
        "def f(p):\n    return p / 'harness/record.json'",
        "def f(p):\n    return f'{p}/harness/base.json'",
        "def f(run):\n    return run / 'checkpoints'",
        "def f(p):\n    return p.name.isdigit()",
        "def f(p):\n    all = [x.name for x in p.iterdir()]\n    return [x for x in all if x.isdecimal()]",
        "def f(p):\n    return any(p.glob('[0-9]*'))",
        "def f(p):\n    return '.orbax-checkpoint-tmp' in p.name",
    ],
)
def test_the_law_sees_a_second_definition(source: str) -> None:
    assert second_definitions("somewhere.else", ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        '"""Of `_CHECKPOINT_METADATA` and harness/record.json."""',
        "def f(version):\n    return [int(part) for part in version.split('.') if part.isdigit()]",
        "def f():\n    return list(Path('/proc').glob('[0-9]*/fd/*'))",
        "X = {'params': 1, 'checkpoints': 2}",
    ],
)
def test_the_law_lets_the_rest_pass(source: str) -> None:
    assert second_definitions("somewhere.else", ast.parse(source)) == []
