"""The source's syntax, which several tests walk: each file is parsed once per process."""

from __future__ import annotations

import ast
import functools
from pathlib import Path


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file, which nobody changes. Raises SyntaxError."""
    return ast.parse(path.read_text())


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """The nodes of a file as ast.walk gives them."""
    return tuple(ast.walk(parsed(path)))
