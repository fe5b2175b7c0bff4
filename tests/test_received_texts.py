"""Tests what the room for other people's files makes of their texts: bounded JSON and YAML, no controls."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.received.json import parse_json, read_json
from harness.received.text import all_visible, controls, for_terminal, in_json, one_line, visible, word
from harness.received.yaml import parse_yaml


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 200 + "]" * 200,
        '{"a":' * 200 + "1" + "}" * 200,
        "1" * 5_000,
        "9" * 21,
        "{",
        "\ud800",
    ],
)
def test_json_is_bounded(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each failure is one, by contract
        parse_json(text)


def test_json_is_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, {"b": ["x"]}], "bytes": 2**63 - 1, "minus": -(2**60)}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "a.json", tmp_path, 1_000) == value


def test_a_repeated_key_is_found_in_linear_time() -> None:
    keys = [*range(300_000), 299_999]
    text = "{" + ",".join(f'"{key}":0' for key in keys) + "}"
    start = time.monotonic()
    with pytest.raises(ValueError, match="the key '299999' twice"):
        parse_json(text, unique=True)
    # A comparison of each key with each would take minutes.
    assert time.monotonic() - start < 10
    assert len(parse_json(text)) == 300_000


def test_controls_stand_as_escapes() -> None:
    assert visible("a\x1b]0;PWNED\x07\x9bb\u202ec\nd\te") == "a\\x1b]0;PWNED\\x07\\x9bb\\u202ec\nd\te"
    assert one_line("a\nb\tc\r") == "a\\nb\\tc\\r"
    assert visible("Grüße 日本") == "Grüße 日本"
    assert all_visible({"a\x1b": ["\x07", 1, None]}) == {"a\\x1b": ["\\x07", 1, None]}


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert not controls(one_line(text))
    assert not controls(visible(text).replace("\n", "").replace("\t", ""))
    assert visible(visible(text)) == visible(text)


def test_our_own_colours_and_cursor_pass_and_nothing_else_does() -> None:
    ours = "\x1b[1;32mequal\x1b[0m\r\x1b[2K\x1b[1A\x1b[?25l"
    assert for_terminal(ours) == ours
    # Title, clipboard, hyperlink, clear screen, another charset, device control.
    for bad in (
        "\x1b]0;x\x07",
        "\x1b]52;c;eA==\x07",
        "\x1b]8;;http://x\x1b\\",
        "\x1b[2J",
        "\x1b[H",
        "\x1b(0",
        "\x1bP",
        "\x9b2J",
        "\x1b[?1049h",
    ):
        assert not set("\x1b\x9b") & set(for_terminal(bad))


@given(st.text())
def test_json_keeps_its_value(text: str) -> None:
    encoded = json.dumps({"a": text}, ensure_ascii=False)
    assert json.loads(in_json(encoded)) == {"a": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", {"a": 1}),
        ("a: &x 1\nb: *x", {"a": 1, "b": 1}),
        ("a: 2001-01-01", {"a": "2001-01-01"}),
        ("a: 2001-99-99", {"a": "2001-99-99"}),
        ("a: 1.0e-8", {"a": 1e-8}),
        ("[0, -7, 0x1f, 0.5, 08.5]", [0, -7, 31, 0.5, 8.5]),
        # Numbers in YAML 1.1 alone: 8, 90 and 45000.5 there.
        ("[010, 1:30, 12:30:00.5]", ["010", "1:30", "12:30:00.5"]),
        ("a: null", {"a": None}),
        ("- yes", [True]),
        ("日本: 'π0.5'", {"日本": "π0.5"}),
        ("", None),
    ],
)
def test_yaml_of_jsons_types(text: str, value: object) -> None:
    assert parse_yaml(text) == value


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
MERGES = "m0: &m0 {a: 1}\n" + "".join(
    f"m{i}: &m{i} {{<<: [{','.join([f'*m{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        MERGES,
        "a: {<<: {b: 1}}",
        "&x [*x]",
        "a: &x {b: *x}",
        "[" * 10**5,
        "- " * 10**4 + "x",
        "{a: " * 10**4,
        "? " * 10**4,
        "9" * 30,
        "9" * 10**4,
        "0x" + "f" * 10**4,
        "!!int 1:" + "59:" * 10**5 + "1",
        "a: 1\nb: {c: 1, d: 2, c: 3}",
        "1: x",
        "? [a]\n: x",
        "!!binary aGk=",
        "!!set {a}",
        "!!timestamp 2001-01-01",
        "!!python/object/apply:os.system ['true']",
        "!!bool x",
        "!!int ''",
        "\0",
        "'",
        "a: 1\n---\nb: 2",
        "- x\n" * 20_000,
    ],
    ids=lambda text: text[:12].replace("\0", "NUL"),
)
def test_yaml_that_is_refused(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"."):
        parse_yaml(text)
    assert time.monotonic() - began < 20


@given(st.text(alphabet="{}[]:,-&*!|>?%@'\"#\n\t \\<~=0x9._é", max_size=60))
def test_yaml_fails_in_one_way(text: str) -> None:
    with suppress(ValueError):
        parse_yaml(text)


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\udfff": 1}', '["\\ud83d"]'])
def test_half_a_character_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        parse_json(text)
    assert parse_json('"\\ud83d\\ude00"') == "😀"


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '{"a": 1e400}'])
def test_json_of_finite_numbers(text: str) -> None:
    parse_json(text)
    with pytest.raises(ValueError, match="not finite"):
        parse_json(text, finite=True)


@pytest.mark.parametrize(
    ("text", "said"), [("a b", "'a b'"), ("-x", "./-x"), ("runs/a", "runs/a"), ("$(x)", "'$(x)'"), ("", "''")]
)
def test_one_word_of_a_command(text: str, said: str) -> None:
    assert word(text) == said
    assert word(Path(text)) == said or not text
