"""Tests that what is saved is on the disk, not only in memory, before anything counts on it."""

import errno

import pytest

from harness.checkpoint.store import Store
from harness.checkpoint.whole import whole_or_nothing
from harness.errors import HarnessError
from tests.support.faults import Disk, on
from tests.test_checkpoint_store import _save, _state


def test_an_older_step_is_deleted_only_once_the_new_one_is_on_the_disk(tmp_path):
    """A power cut may leave files empty, and names unmade, that nothing brought to the disk."""
    (params, train_state), steps = _state(), tmp_path / "checkpoints"
    store = Store(steps, keep_every_steps=100)
    _save(store, 1, params, train_state)
    store.wait()
    with on(Disk(tmp_path)) as disk:
        _save(store, 2, params, train_state)
        store.close()
    deleted = disk.points.index(("rename", str(steps / "1")))
    flushed = {name for what, name in disk.points[:deleted] if what == "fsync"}
    assert {str(path) for path in (steps, *(steps / "2").rglob("*"))} <= flushed
    assert store.steps() == [2]


def test_a_step_that_does_not_reach_the_disk_costs_no_older_one(tmp_path, monkeypatch):
    params, train_state = _state()
    store = Store(tmp_path, keep_every_steps=100)
    _save(store, 1, params, train_state)
    store.wait()

    def fails(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("harness.checkpoint.store.to_disk", fails)
    _save(store, 2, params, train_state)
    with pytest.raises(HarnessError, match="checkpoint of step 2") as caught:
        store.close()
    assert caught.value.code == "save-failed"
    assert 1 in store.steps()


def test_an_export_has_its_name_only_once_it_is_on_the_disk(tmp_path):
    to = tmp_path / "exports"
    to.mkdir()
    with on(Disk(tmp_path)) as disk, whole_or_nothing(to / "out", 1) as made:
        (made / "params").mkdir()
        (made / "params" / "a").write_bytes(b"array")
    named = next(n for n, (what, name) in enumerate(disk.points) if what == "rename")
    flushed = [name for what, name in disk.points[:named] if what == "fsync"]
    assert {str(made), str(made / "params"), str(made / "params" / "a")} <= set(flushed)
    assert ("fsync", str(to)) in disk.points[named:]
