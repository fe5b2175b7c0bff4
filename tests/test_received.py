"""Tests the room that opens other people's files.

Covered are names that are not paths, files below their root, bounded JSON, and text that controls nothing.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.received.files import UnsafeFile, open_received, read_received, stays, walk
from harness.received.json import parse_json, read_json
from harness.received.names import below, is_commit, why_no_name, why_no_relative_name
from harness.received.text import all_visible, controls, for_terminal, in_json, one_line, visible, word
from harness.received.writing import open_to_write
from harness.received.yaml import parse_yaml

HOSTILE = [
    "",
    " ",
    ".",
    "..",
    "/",
    "a/b",
    "a\\b",
    "/etc",
    "a\0",
    "a\nb",
    "a\x1b]0;x",
    "a\u202eb",
    " a",
    "a ",
    "~",
    "-x",
    "x" * 256,
    "\x85",
    "\ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name(text: str) -> None:
    assert why_no_name(text)


@pytest.mark.parametrize("text", ["libero", "pi05_libero-001", "日本", "a.b", "...", "x" * 255])
def test_a_name(text: str) -> None:
    assert why_no_name(text) is None


def test_reserved_names() -> None:
    assert why_no_name("lock", frozenset({"lock"}))


@pytest.mark.parametrize("text", ["/a", "a/..", "../a", "a//b", "a/", "", "a/./b", "a/../../b"])
def test_no_relative_name(text: str) -> None:
    assert why_no_relative_name(text)


@pytest.mark.parametrize("text", ["/a", "a/..", "../a", "a//b", "", "a\0"])
def test_a_name_below_a_directory(text: str) -> None:
    assert below(Path("/root"), "physical-intelligence/libero", "data.asset_id") == Path(
        "/root/physical-intelligence/libero"
    )
    with pytest.raises(HarnessError) as error:
        below(Path("/root"), text, "data.asset_id")
    assert (error.value.code, "data.asset_id" in error.value.fix) == ("name-leads-out", True)


def test_an_asset_id_of_openpi() -> None:
    assert why_no_relative_name("physical-intelligence/libero") is None


@given(st.text())
def test_a_name_stays_in_its_directory(text: str) -> None:
    if why_no_name(text) is None:
        assert Path("/root/x", text).parent == Path("/root/x")
        assert os.path.normpath(f"/root/x/{text}") == f"/root/x/{text}"


def test_commits() -> None:
    assert is_commit("15a9616f3c1d5ba8e7f1d9d6f0a3c2b1e4d5f6a7")
    assert not any(
        is_commit(text)
        for text in (
            "--upload-pack=x",
            "15a9616",
            None,
            5,
            "A" * 40,
            "15a9616f3c1d5ba8e7f1d9d6f0a3c2b1e4d5f6a7\n",
        )
    )


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_received(tmp_path / "a", tmp_path, 5) == b"12345"
    with pytest.raises(UnsafeFile) as error:
        read_received(tmp_path / "a", tmp_path, 4)
    assert error.value.code == "file-too-large"
    with pytest.raises(FileNotFoundError):
        read_received(tmp_path / "none", tmp_path, 4)


def test_links_are_followed_inside_of_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "below").mkdir(parents=True)
    (root / "file").write_text("mine")
    (tmp_path / "secret").write_text("secret")
    (root / "below/in").symlink_to("../file")
    (root / "below/out").symlink_to("../../secret")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    with pytest.raises(UnsafeFile):
        open_received(root / "a\0b", root)
    assert read_received(root / "below/in", root, 10) == b"mine"
    for stray in ("below/out", "up/secret", "loop"):
        with pytest.raises((UnsafeFile, OSError)) as error:
            read_received(root / stray, root, 10)
        assert stray == "loop" or (
            isinstance(error.value, UnsafeFile) and error.value.code == "file-leaves-root"
        )
    # The root itself may be a link: its owner made it.
    (tmp_path / "link").symlink_to(root)
    assert read_received(tmp_path / "link/file", tmp_path / "link", 10) == b"mine"


def test_the_hub_cache_keeps_its_files_beside_the_snapshot(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots/abc", tmp_path / "blobs"
    (snapshot / "meta").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("x")
    (snapshot / "meta/info.json").symlink_to("../../../blobs/1")
    assert stays(snapshot, snapshot / "meta/info.json")
    assert stays(snapshot / "meta", snapshot / "meta/info.json")
    (tmp_path / "other").write_text("x")
    (snapshot / "bad").symlink_to("../../other")
    assert not stays(snapshot, snapshot / "bad")


def test_special_files_are_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        (tmp_path / "zero").symlink_to("/dev/zero")
        begin = time.monotonic()
        for name in ("fifo", "s"):
            with pytest.raises(UnsafeFile) as error:
                open_received(tmp_path / name, tmp_path)
            assert error.value.code == "file-not-regular"
        with pytest.raises(UnsafeFile):
            open_received(tmp_path / "zero", tmp_path)
        with pytest.raises(UnsafeFile):
            open_received(Path("/dev/zero"), Path("/dev"))
        with pytest.raises(IsADirectoryError):
            open_received(tmp_path, tmp_path)
        assert time.monotonic() - begin < 5


def test_a_walk_visits_each_file_once_and_names_what_it_left(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/one").write_text("1")
    (root / "a/two").write_text("2")
    (root / "loop").symlink_to(".")
    (root / "in").symlink_to("a/two")
    (root / "out").symlink_to("/etc/hostname")
    os.mkfifo(root / "fifo")
    strays: list[Path] = []
    assert sorted(str(path.relative_to(root)) for path in walk(root, strays=strays)) == [
        "a/b/one",
        "a/two",
        "in",
    ]
    assert sorted(path.name for path in strays) == ["fifo", "loop", "out"]


def test_a_tree_that_is_too_deep(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 70)
    deep.mkdir(parents=True)
    with pytest.raises(UnsafeFile) as error:
        list(walk(tmp_path))
    assert error.value.code == "tree-too-large"


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
        "1:" + "59:" * 10**5 + "1",
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


def test_a_file_is_made_and_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        with os.fdopen(open_to_write(tmp_path / "log", append=True), "r+b") as file:
            file.write(b"x")
    assert (tmp_path / "log").read_bytes() == b"xx"


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "device", "directory"])
def test_what_is_no_file_is_not_written_to(tmp_path: Path, kind: str) -> None:
    path, outside = tmp_path / "log", tmp_path / "outside"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/null" if kind == "device" else outside)
    if kind == "link":
        outside.write_text("mine")
    with pytest.raises(UnsafeFile) as caught:
        open_to_write(path)
    assert caught.value.code == "file-not-regular"
    assert kind != "dangling" or not outside.exists()
    assert kind != "link" or outside.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "said"), [("a b", "'a b'"), ("-x", "./-x"), ("runs/a", "runs/a"), ("$(x)", "'$(x)'"), ("", "''")]
)
def test_one_word_of_a_command(text: str, said: str) -> None:
    assert word(text) == said
    assert word(Path(text)) == said or not text
