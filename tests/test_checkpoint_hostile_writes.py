"""Tests what is written and deleted beside a checkpoint made by a stranger.

An export carries nothing from outside, and a store touches nothing of anybody else.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.checkpoint.export import export_openpi
from harness.checkpoint.format import outside
from harness.checkpoint.inspect import inspect
from harness.checkpoint.store import Store
from harness.recipe.schema import Expert, Lora, Model
from tests.support.item_writer import write_step
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint
from tests.support.strangers import SECRET, code_of


def lora_model() -> Model:
    expert = Expert(variant="dummy", lora=Lora(rank=4, alpha=4))
    return Model(paligemma=expert, action_expert=expert, vision="mu/14", vocab_size=512, prompt_tokens=16)


@pytest.mark.parametrize("what", ["directory", "file", "fifo", "assets"])
def test_an_export_carries_nothing_that_leaves_the_step(tmp_path: Path, what: str) -> None:
    step = openpi_checkpoint("lora", tmp_path) / str(STEP["lora"])
    home = tmp_path / "home/.ssh"
    home.mkdir(parents=True)
    (home / "id_ed25519").write_bytes(SECRET)
    if what == "assets":
        shutil.rmtree(step / "assets")
        (step / "assets").symlink_to(home)
    elif what == "fifo":
        os.mkfifo(step / "assets/pipe")
    else:
        (step / "assets/norm").symlink_to(home if what == "directory" else home / "id_ed25519")
    assert code_of(lambda: export_openpi(step, tmp_path / "out", model=lora_model())) in (
        "checkpoint-leads-out",
        "file-leaves-root",
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_an_export_removes_nothing_of_anybody_else(tmp_path: Path) -> None:
    step = openpi_checkpoint("lora", tmp_path) / str(STEP["lora"])
    kept = tmp_path / "out.orbax-checkpoint-tmp/mine"
    kept.parent.mkdir()
    kept.write_text("keep")
    export_openpi(step, tmp_path / "out", model=lora_model())
    assert kept.read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == [
        "out",
        "out.orbax-checkpoint-tmp",
    ]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~_umask()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert code_of(lambda: export_openpi(step, tmp_path / "dangling", model=lora_model())) == "export-exists"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_store_never_touches_the_run_beside_it(tmp_path: Path) -> None:
    theirs = tmp_path / "best/checkpoints"
    write_step(theirs / "3", {"action_in_proj/bias": np.ones(2, np.float32)})
    (tmp_path / "received").mkdir()
    (tmp_path / "received/checkpoints").symlink_to("../best/checkpoints")
    store = Store(tmp_path / "received/checkpoints", keep_every_steps=1000)
    before = sorted(theirs.rglob("*"))
    assert code_of(store.steps) == "file-leaves-root"
    assert code_of(store.latest) == "file-leaves-root"
    save = {"params": {}, "train_state": {}, "norm_stats_json": "{}", "asset_id": "a", "record": {}}
    assert code_of(lambda: store.save(4, **save)) == "file-leaves-root"
    assert sorted(theirs.rglob("*")) == before


def test_an_item_that_is_a_link_to_another_run_is_not_restored(tmp_path: Path) -> None:
    step = tmp_path / "run/checkpoints/3"
    write_step(step, {"action_in_proj/bias": np.ones(2, np.float32)}, ["action_in_proj/bias"])
    (step / "harness").mkdir()
    (step / "harness/record.json").write_text("{}")
    (step / "params").rename(tmp_path / "theirs")
    (step / "params").symlink_to(tmp_path / "theirs")
    store = Store(step.parent, keep_every_steps=1)
    assert store.steps() == [3]
    assert code_of(lambda: store.restore(3, params={}, train_state={})) == "file-leaves-root"


def test_pruning_leaves_links_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("keep")
    checkpoints = tmp_path / "run/checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("1", "1.orbax-checkpoint-tmp-deleted-1", "x.orbax-checkpoint-tmp-deleted-1"):
        (checkpoints / name).symlink_to(tmp_path / "mine")
    Store(checkpoints, keep_every_steps=1000)._prune()
    assert len(list(checkpoints.iterdir())) == 3
    assert (tmp_path / "mine/file").read_text() == "keep"


def test_a_step_that_cannot_be_deleted_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS while another process reads from it. The rest of it is deleted, and later all of it."""
    heard: list[str] = []
    for name in ("params/.nfs000000000123", "train_state/x"):
        path = tmp_path / f"1.orbax-checkpoint-tmp-deleted-1/{name}"
        path.parent.mkdir(parents=True)
        path.write_text("")
    unlink = os.unlink

    def busy(path: str, **where: int) -> None:
        if path.startswith(".nfs"):
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        unlink(path, **where)

    store = Store(tmp_path, keep_every_steps=1000, warn=heard.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", busy)
        store._prune()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".nfs000000000123"]
    assert "takes space (" in heard.pop()
    store._prune()
    assert (heard, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("asset_id", ["/tmp/x", "../../x", "", "a/../..", "a\0", "a//b", "~/x"])
def test_statistics_are_saved_below_the_step_only(tmp_path: Path, asset_id: str) -> None:
    store = Store(tmp_path / "checkpoints", keep_every_steps=1)
    save = {"params": {}, "train_state": {}, "norm_stats_json": "{}", "asset_id": asset_id, "record": {}}
    assert code_of(lambda: store.save(1, **save)) == "name-leads-out"
    assert outside(asset_id)
    assert not (tmp_path / "checkpoints").exists()


def test_a_linked_interrupted_save_is_not_deleted(tmp_path: Path) -> None:
    from harness.checkpoint.scan import delete_interrupted

    write_step(tmp_path / "c/1", {"action_in_proj/bias": np.ones(2, np.float32)})
    (tmp_path / "c/2.orbax-checkpoint-tmp").symlink_to("1")
    found = inspect(tmp_path / "c")
    assert (found.interrupted, delete_interrupted(found)) == ([], [])
    assert (tmp_path / "c/1/params").is_dir()
