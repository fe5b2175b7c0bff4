"""Tests that a checkpoint with files that point outside is refused before anything outside is read."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import tensorstore as ts

from harness.checkpoint.format import outside
from harness.checkpoint.item import read_item
from harness.checkpoint.leaves import open_leaves
from harness.errors import HarnessError
from tests.support.ocdbt_writer import crc32c

GOLDEN = next((Path(__file__).parent / "golden").glob("openpi_checkpoint_full/*/params"))


def merged_item(item: Path, base: str) -> ts.KvStore:
    """An item whose data lies in the subdirectory `base`, as Orbax merges what its processes wrote."""
    context = ts.Context()
    config = {"max_inline_value_bytes": 1, "compression": None}

    def open_at(path: Path) -> ts.KvStore:
        return ts.KvStore.open(
            {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}, "config": config},
            context=context,
        ).result()

    child, parent = open_at(item / base), open_at(item)
    child["k/0"] = b"data of the array"
    transaction = ts.Transaction(atomic=True)
    child.experimental_copy_range_to(parent.with_transaction(transaction)).result()
    transaction.commit_sync()
    return parent


def test_the_files_of_a_sound_item_are_its_own(tmp_path: Path) -> None:
    merged_item(tmp_path, "zz")
    assert read_item(tmp_path).leads_out == []
    assert read_item(GOLDEN).leads_out == []


@pytest.mark.parametrize("target", [b"../", b"/z/"])
def test_a_node_that_names_a_file_outside_is_found(target: bytes, tmp_path: Path) -> None:
    merged_item(tmp_path / "item", "zz")
    [node] = [path for path in (tmp_path / "item" / "d").iterdir() if b"zz/" in path.read_bytes()]
    body = node.read_bytes()[:-4].replace(b"zz/", target)
    node.write_bytes(body + struct.pack("<I", crc32c(body)))
    (found,) = read_item(tmp_path / "item").leads_out
    assert found.startswith(target.decode())


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/../../b",
        "file:///etc/passwd",
        "",
        "a\\..\\b",
        "d/\0x",
        "d//x",
        "d/./x",
        "d/",
    ],
)
def test_names_that_lead_out(name: str) -> None:
    assert outside(name)


@pytest.mark.parametrize("name", ["d/0123", "params.PaliGemma.llm", "ocdbt.process_0/d/98"])
def test_names_that_do_not(name: str) -> None:
    assert not outside(name)


def test_metadata_that_names_an_array_elsewhere_is_refused(tmp_path: Path) -> None:
    copy = shutil.copytree(GOLDEN, tmp_path / "params")
    metadata = json.loads((copy / "_METADATA").read_text())
    entry = next(iter(metadata["tree_metadata"].values()))
    entry["key_metadata"][-1]["key"] = "../../../secret"
    (copy / "_METADATA").write_text(json.dumps(metadata))
    with pytest.raises(HarnessError) as caught:
        open_leaves(copy)
    assert caught.value.code == "checkpoint-leads-out"
