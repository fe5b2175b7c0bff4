"""Hashes the code that makes the step. A new hash voids the compiler's answers for the old step."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.run.directory import sha256_json

# The modules from which the search starts. What they import of these rooms is followed.
_START = ("train/compiled.py", "train/phases.py", "recipe/parameters.py")
_ROOMS = ("harness.model.", "harness.train.")


def source_hash() -> str:
    """Hash of the code that makes the step: the modules that its compilation imports.

    Comments, docstrings, imports and blank lines do not count. Where a module lies does not change the
    hash.
    """
    package = Path(__file__).parent.parent
    waiting = [package / name for name in _START]
    found: dict[Path, list[str]] = {}
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
        found[file] = _code_lines(source, tree)
        waiting += [package / imported for imported in _imports(tree)]
    return sha256_json(sorted(found.values()))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(_ROOMS):
            yield node.module.removeprefix("harness.").replace(".", "/") + ".py"


def _code_lines(source: str, tree: ast.Module) -> list[str]:
    """The lines that the interpreter executes.

    Only line numbers are used, on which all versions of Python agree.
    """
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        body: Any = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            left_out.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = ((number, line.strip()) for number, line in enumerate(source.splitlines(), 1))
    return [line for number, line in lines if number not in left_out and line and not line.startswith("#")]
