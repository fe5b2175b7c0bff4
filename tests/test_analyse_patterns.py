"""Tests that no regular expression of the package takes more than linear time."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.analyse.forms import take_apart
from harness.plan import cards, more_cards
from harness.received import yaml
from tests.support.source import nodes

PACKAGE = Path(__file__).parents[1] / "harness"
CALLS = {"compile", "search", "match", "fullmatch", "split", "sub", "subn", "findall", "finditer"}
# Patterns that are made from a value: what they are made from is this package's own text, escaped or a
# constant.
MADE = {
    ("plan/cards.py", "spelling"),
    ("plan/more_cards.py", "pattern"),
    ("run/directory.py", "re.escape(name) + '-(\\\\d{3,})'"),
    ("analyse/lines.py", "form.pattern"),
    ("received/yaml.py", "_OLD_NUMBER + pattern.pattern"),
    # Constants, on a line that is cut to 100 characters.
    ("image/licences.py", "pattern"),
    # Constants, on a text that is cut to 20,000 characters.
    ("image/copyrights.py", "pattern"),
}
MB = 1_000_000
PIECES = [
    "a",
    " ",
    "1",
    "=",
    "-",
    "0.",
    "a ",
    "1,",
    "1 ",
    ": ",
    "a=1 ",
    "step ",
    "step=1 loss=",
    "Step 1: a=1, ",
    "token=",
    "1/1 [",
    "\x1b]",
    "\x1b[",
    "://",
    "a/",
    "_a",
    '"',
    "\\",
    "{",
    "\n",
]
LINES = [
    b"Step 10: grad_norm=1.5705, loss=0.1146, param_norm=1803.1594",
    (
        b"INFO 2025-11-17 21:51:55 ot_train.py:351 step:200 smpl:6K ep:9 epch:0.03 loss:0.543 grdn:2.421"
        b" lr:5.0e-06 updt_s:0.478 data_s:0.038"
    ),
    b"12:30:01.500 [I] loss 0.5 at step 3  (1234:train.py:269)",
    b'{"step":4,"loss":0.5,"grad_norm":1.0}',
    b"Training:   0%|  | 11/8000 [00:04<53:20,  2.50it/s, loss=0.0299, lr=5.50e-08, step=11]",
    b"Steps:   0%|  | 11/8000 [00:04<53:20,  2.50it/s, lr=5.50e-08, step_loss=0.1]",
    b"step 3/60  loss 2.2422  grad_norm 1.794  5 min 03 s a step  4 h 40 min left",
]


def calls() -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    """(file, the pattern, its flags) of every call of `re` in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in nodes(path):
            function = getattr(node, "func", None)
            if (
                isinstance(node, ast.Call)
                and isinstance(function, ast.Attribute)
                and function.attr in CALLS
                and ast.unparse(function.value) == "re"
            ):
                yield path.relative_to(PACKAGE).as_posix(), node.args[0], flags_of(node, function.attr)


def flags_of(call: ast.Call, function: str) -> ast.expr | None:
    named = next((keyword.value for keyword in call.keywords if keyword.arg == "flags"), None)
    return call.args[1] if function == "compile" and len(call.args) > 1 else named


def evaluated(file: str, pattern: ast.expr) -> Any:
    module = importlib.import_module("harness." + file.removesuffix(".py").replace("/", "."))
    return eval(compile(ast.Expression(pattern), file, "eval"), dict(vars(module)))


def patterns() -> list[Any]:
    found = []
    for file, expression, flags in calls():
        if (file, ast.unparse(expression)) in MADE:
            continue
        source = evaluated(file, expression)
        # What is compiled elsewhere was seen there.
        pattern = (
            source
            if isinstance(source, re.Pattern)
            else re.compile(source, 0 if flags is None else evaluated(file, flags))
        )
        found.append(pytest.param(pattern, id=f"{file}:{expression.lineno}"))
    return [
        *found,
        *(pytest.param(spelling, id=f"spelling of {card}") for card, spelling in cards._spellings().items()),
        *(
            pytest.param(pattern, id=f"series {pattern}")
            for pattern, _ in (*more_cards._SERIES, *more_cards._OLD)
        ),
        *(
            pytest.param(pattern, id=f"a number of YAML that begins with {first}")
            for first in "1."
            for tag, pattern in yaml._Loader.yaml_implicit_resolvers[first]
            if tag in yaml._NUMBERS
        ),
        *(
            pytest.param(form[0].pattern, id=f"form of {line[:30]!r}")
            for line in LINES
            if (form := take_apart(line))
        ),
    ]


def literals(source: str | bytes) -> list[str]:
    """Words of the pattern itself: what it looks for, again and again, is its worst input."""
    text = source.decode("latin-1") if isinstance(source, bytes) else source
    plain = re.sub(r"\\[A-Za-z]|\(\?[^:)]*\)?|[][(){}|?*+^$\\]", "\0", text)
    return list(dict.fromkeys(part for part in plain.split("\0") if 0 < len(part) < 40))[:6]


def seconds(pattern: re.Pattern[Any], text: str) -> float:
    data: Any = text.encode("utf-8", "surrogatepass") if isinstance(pattern.pattern, bytes) else text
    start = time.process_time()
    for _ in pattern.finditer(data):
        pass
    pattern.fullmatch(data)
    return time.process_time() - start


def of(pattern: re.Pattern[Any], piece: str, size: int) -> float:
    """Seconds of processor for so many characters of one piece."""
    # What ends otherwise than it went on fails last.
    return seconds(pattern, piece * (size // len(piece)) + "!")


def too_slow(pattern: re.Pattern[Any], pieces: list[str], size: int, walks: float) -> dict[str, float]:
    """The pieces that take longer than so many walks, three times. Once it may have been another process."""
    limit = walks * unit()
    found = {piece: min(of(pattern, piece, size) for _ in range(2)) for piece in pieces}
    return {piece: taken for piece, taken in found.items() if taken > limit}


@functools.cache
def unit() -> float:
    """Seconds in which this processor finds every letter of a megabyte, one by one."""
    return min(of(re.compile("."), "a", MB) for _ in range(3))


@pytest.mark.parametrize("source", patterns())
def test_a_megabyte_of_its_worst_input_takes_a_pattern_no_longer_than_a_walk(
    source: str | bytes | re.Pattern[Any],
) -> None:
    """Twelve walks are about a second. A processor half as fast takes two for both."""
    pattern = re.compile(source)
    # A time that grows with the square is seen at a fiftieth of the size already: ten times its share.
    small = {piece: of(pattern, piece, MB // 50) for piece in [*PIECES, *literals(pattern.pattern)]}
    slow = [piece for piece, taken in small.items() if taken > 2.4 * unit()]
    assert not too_slow(pattern, slow, MB // 50, 2.4)
    worst = sorted(small, key=small.__getitem__, reverse=True)[:4]
    slow = [piece for piece in worst if of(pattern, piece, MB) > 12 * unit()]
    assert not too_slow(pattern, slow, MB, 12)


def test_a_quadratic_pattern_is_found() -> None:
    pattern = re.compile(r"a+b")
    assert of(pattern, "a", MB // 50) > 20 * of(pattern, "1", MB // 50)


def test_every_pattern_was_found() -> None:
    assert len(patterns()) > 40
    assert {(file, ast.unparse(expression)) for file, expression, _ in calls()} >= MADE
