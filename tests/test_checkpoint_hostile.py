"""Tests checkpoints made by a stranger: indexes, links, special files, bases and metadata.

None of their files leads outside, hangs, or ends in a traceback.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.format import parse_location
from harness.checkpoint.inspect import inspect
from harness.checkpoint.item import read_item
from harness.checkpoint.leaves import open_leaves
from harness.checkpoint.locate import locate
from harness.checkpoint.weights import directory_sha256, params_directories
from harness.run.steps import BASE
from tests.support.ocdbt_writer import write_dag, write_loop, write_value_in
from tests.support.strangers import HANG_S, SECRET, a_step, code_of


@pytest.mark.parametrize("write", [write_loop, write_dag])
def test_an_index_that_never_ends_is_damaged(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "params")
    start = time.monotonic()
    item = read_item(tmp_path / "params")
    assert item.damaged
    assert "index is damaged" in item.problems[0]
    assert code_of(lambda: open_leaves(tmp_path / "params")) == "checkpoint-damaged"
    assert inspect(tmp_path / "params").steps[0].complete is False
    assert time.monotonic() - start < HANG_S


@pytest.mark.parametrize(
    "target", [b"d/\0x", b"", b"d\\..\\x", b"../x", b"/etc/passwd", b"d/./x", b"d//x", b"a\nb"]
)
def test_both_readers_refuse_data_that_is_named_outside(tmp_path: Path, target: bytes) -> None:
    write_value_in(tmp_path / "params", target)
    step = inspect(tmp_path / "params", deep=True).steps[0]
    assert not step.complete
    assert "outside of the item" in step.missing[0]
    assert code_of(lambda: open_leaves(tmp_path / "params")) == "checkpoint-leads-out"


@pytest.mark.parametrize(
    "text",
    ["", "a:b", "btreenode::d/x:0:-1", "btreenode::d/x:x:1", f"btreenode::d/x:{2**63}:1", "a:b:c:d:e:f"],
)
def test_no_location(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_location(text)


def test_escaped_dots_are_a_plain_name(tmp_path: Path) -> None:
    write_value_in(tmp_path / "params", b"%2e%2e/x")
    assert read_item(tmp_path / "params").problems == ["data file %2e%2e/x is missing"]


def test_a_chunk_that_is_a_link_out_is_read_by_nobody(tmp_path: Path) -> None:
    step = a_step(tmp_path)
    chunk = step / "params/params.action_in_proj.bias.value/0"
    (tmp_path / "secret").write_bytes(SECRET)
    chunk.unlink()
    chunk.symlink_to(tmp_path / "secret")
    found = inspect(step, deep=True)
    assert found.steps[0].complete is False
    assert [leaf.sha256 for leaf in found.leaves] == [None]
    assert code_of(lambda: open_leaves(step / "params")) == "checkpoint-leads-out"
    assert code_of(lambda: directory_sha256(step / "params")) == "checkpoint-leads-out"
    assert code_of(lambda: locate(str(step))) == "checkpoint-interrupted"


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("kind", ["fifo", "device", "link out", "loop"])
@pytest.mark.parametrize(
    "name",
    [
        "params/_METADATA",
        "params/more",
        "_CHECKPOINT_METADATA",
        "harness/record.json",
        "harness/digests.json",
        "harness/base.json",
    ],
)
def test_special_files_and_links_are_named_and_not_opened(
    tmp_path: Path, name: str, kind: str, ocdbt: bool
) -> None:
    step = a_step(tmp_path, ocdbt=ocdbt)
    (step / "harness").mkdir()
    (step / "harness/record.json").write_text("{}")
    place = step / name
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    else:
        (tmp_path / "outside").write_text('{"commit_timestamp_nsecs": 1, "item_handlers": {}}')
        place.symlink_to({"device": "/dev/zero", "link out": tmp_path / "outside", "loop": place}[kind])
    start = time.monotonic()
    found = inspect(step, deep=True)
    assert not found.steps[0].complete or found.partial
    assert code_of(lambda: locate(str(step))) == "checkpoint-interrupted"
    if name.startswith("params"):
        assert code_of(lambda: open_leaves(step / "params")) == "checkpoint-leads-out"
    assert time.monotonic() - start < HANG_S


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{}",
        '{"source": 5, "sha256": "x"}',
        "null",
        '{"source": "a\\u0000b", "sha256": "x"}',
        "\x00\xff",
    ],
)
def test_a_base_that_is_none(tmp_path: Path, text: str) -> None:
    step = a_step(tmp_path)
    (step / "harness").mkdir()
    (step / BASE).write_text(text)
    assert code_of(lambda: params_directories(step)) == "checkpoint-damaged"
    assert inspect(step).base is None


def test_a_base_that_names_itself(tmp_path: Path) -> None:
    step = a_step(tmp_path)
    (step / "harness").mkdir()
    (step / BASE).write_text(json.dumps({"source": str(step), "sha256": directory_sha256(step / "params")}))
    assert code_of(lambda: params_directories(step)) == "weights-base-circular"


@pytest.mark.parametrize(
    "change",
    [
        {"tree_metadata": [[]]},
        {"tree_metadata": {"a": {"key_metadata": [{"key": {}}], "value_metadata": {"value_type": "x"}}}},
        [],
    ],
)
def test_metadata_of_another_form(tmp_path: Path, change: Any) -> None:
    step = a_step(tmp_path)
    (step / "params/_METADATA").write_text(json.dumps(change))
    assert not inspect(step, deep=True).steps[0].complete
    assert code_of(lambda: open_leaves(step / "params")) == "checkpoint-damaged"


def test_digests_that_name_a_file_outside_are_damaged(tmp_path: Path) -> None:
    from harness.checkpoint.digests import read_digests

    step = a_step(tmp_path)
    (step / "harness").mkdir()
    for name in ("/etc/hostname", "../secret", "a\0"):
        (step / "harness/digests.json").write_text(json.dumps({"leaves": {}, "files": {name: "0" * 64}}))
        assert code_of(lambda: read_digests(step)) == "checkpoint-damaged"
