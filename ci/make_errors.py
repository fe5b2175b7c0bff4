"""docs/errors.md from the source: every code that a HarnessError can have, what it says, and its fix.

    python ci/make_errors.py            writes the page
    python ci/make_errors.py --check    exit code 1 when the page is not what the source says

Read from the syntax tree, so that nothing is imported. What a message takes from the moment (a path, a
number) stands as `…`.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
# HarnessError and its kinds. Their first two arguments are the code and what went wrong.
_RAISED = ("HarnessError", "UnsafeFile")
_HEAD = """# Errors, by code

`harness` ends with exit code 2 and one message: `error [CODE] what`, then `got`, `need` and `fix`.
The codes are stable. Look yours up here.

`python ci/make_errors.py` writes this page from the source, and a test keeps it current.
`…` stands for what the moment fills in.

| code | what it says | fix | raised in |
| --- | --- | --- | --- |
"""


class Raised(NamedTuple):
    code: str
    what: str
    fix: str
    module: str


def text_of(node: ast.expr | None, known: dict[str, ast.expr]) -> str:
    """The words of an expression that makes a text; what is computed stands as `…`."""
    match node:
        case ast.Constant(value=value):
            text = str(value)
        case ast.JoinedStr(values=parts):
            text = "".join(text_of(part, known) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            text = text_of(left, known) + text_of(right, known)
        case ast.IfExp(body=body, orelse=other):
            text = " / ".join(dict.fromkeys((text_of(body, known), text_of(other, known))))
        case ast.BoolOp(values=values):
            text = " / ".join(dict.fromkeys(text_of(value, known) for value in values))
        case ast.Name(id=name) if name in known:
            text = text_of(known[name], {})
        case ast.Call(func=ast.Name(id=name)) if name in _answers():
            text = " / ".join(dict.fromkeys(text_of(answer, {}) for answer in _answers()[name]))
        case _:
            text = "…"
    return text


@functools.cache
def _answers() -> dict[str, list[ast.expr]]:
    """What each function of the package returns, by its name: a fix is often put together by one."""
    found: dict[str, list[ast.expr]] = {}
    for path in sorted((ROOT / "harness").rglob("*.py")):
        for function in (
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
        ):
            returned = [
                node.value
                for node in _own(function)
                if isinstance(node, ast.Return) and node.value is not None
            ]
            if function.returns is not None and ast.unparse(function.returns) == "str":
                found.setdefault(function.name, []).extend(returned)
    return found


@functools.cache
def raised_in(path: Path) -> list[Raised]:
    """Every error that the module makes."""
    tree, found = ast.parse(path.read_text()), []
    for scope in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Module)]:
        known = {
            target.id: node.value
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        calls = (
            node
            for node in _own(scope)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _RAISED
        )
        for call in calls:
            named = {keyword.arg: keyword.value for keyword in call.keywords}
            code, what = (
                call.args[i] if len(call.args) > i else named.get(name)
                for i, name in enumerate(("code", "what"))
            )
            for one in text_of(code, known).split(" / "):
                found.append(
                    Raised(
                        one,
                        text_of(what, known),
                        text_of(named.get("fix"), known),
                        str(path.relative_to(ROOT)),
                    )
                )
    return found


def _own(scope: ast.AST) -> list[ast.AST]:
    """The nodes of a scope that are in no function inside of it."""
    found, waiting = [], list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef):
            found.append(node)
            waiting += ast.iter_child_nodes(node)
    return found


def page() -> str:
    """The whole page."""
    by_code: dict[str, list[Raised]] = defaultdict(list)
    for path in sorted((ROOT / "harness").rglob("*.py")):
        for each in raised_in(path):
            # A code that is handed on was named where it was made.
            if "…" not in each.code:
                by_code[each.code].append(each)
    return _HEAD + "".join(_row(code, by_code[code]) for code in sorted(by_code))


def _row(code: str, all_of: list[Raised]) -> str:
    texts = (
        list(dict.fromkeys(_cell(text) for text in column))
        for column in zip(*((each.what, each.fix, each.module) for each in all_of), strict=True)
    )
    return f"| `{code}` | " + " | ".join("<br>".join(column) for column in texts) + " |\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def main() -> int:
    """0 when the page is current or was written."""
    new = page()
    if "--check" in sys.argv:
        return int(not PAGE.is_file() or PAGE.read_text() != new)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
