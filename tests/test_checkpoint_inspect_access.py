"""Tests `inspect` where it may not read, and where links lead out of the checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.checkpoint.inspect import inspect
from harness.errors import HarnessError
from tests.support.item_writer import write_step
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint


@pytest.mark.parametrize(
    "closed", [".", "{step}", "{step}/params", "{step}/params/_METADATA", "{step}/_CHECKPOINT_METADATA"]
)
def test_no_permission(tmp_path: Path, closed: str) -> None:
    root = openpi_checkpoint("full", tmp_path)
    with _not_root(tmp_path, root / closed.format(step=STEP["full"])), pytest.raises(HarnessError) as caught:
        inspect(root)
    assert caught.value.code == "checkpoint-unreadable"
    assert closed.format(step=STEP["full"]).strip(".") in caught.value.what


def test_no_permission_for_one_step_does_not_hide_the_others(tmp_path: Path) -> None:
    for step in (1, 2):
        write_step(tmp_path / str(step), {"action_in_proj/bias": np.ones(2, np.float32)})
    with _not_root(tmp_path, tmp_path / "2" / "params"):
        found = inspect(tmp_path)
    assert ([step.step for step in found.steps], found.step, found.partial) == ([1], 1, True)
    assert any(finding.startswith("step 2 cannot be read") for finding in found.findings)


@contextlib.contextmanager
def _not_root(inside: Path, closed: Path) -> Iterator[None]:
    """`closed` has no permission bits, and this process no right to overlook that."""
    above = [
        place
        for place in (inside, *inside.parents)
        if place.stat().st_mode & 0o005 != 0o005 and place.stat().st_uid == os.getuid()
    ]
    modes = {place: place.stat().st_mode for place in (*above, closed)}
    user = os.geteuid()
    for place in above:
        place.chmod(modes[place] | 0o055)
    closed.chmod(0)
    try:
        if user == 0:
            os.seteuid(65_534)
        yield
    finally:
        if user == 0:
            os.seteuid(0)
        for place, mode in modes.items():
            place.chmod(mode)


def test_symlinks_that_lead_out_are_said_and_not_followed(tmp_path: Path) -> None:
    write_step(tmp_path / "elsewhere/9", {"action_in_proj/bias": np.ones(2, np.float32)})
    root = tmp_path / "checkpoints"
    write_step(root / "3", {"action_in_proj/bias": np.ones(2, np.float32)})
    (root / "9").symlink_to(tmp_path / "elsewhere/9")
    (root / "3" / "train_state").symlink_to(tmp_path / "elsewhere")
    found = inspect(root)
    assert [step.step for step in found.steps] == [3]
    assert found.partial is True
    assert sum("symlink" in finding and "not followed" in finding for finding in found.findings) == 2
    assert inspect(root / "9").partial is False  # given by name, it is what was asked for


def test_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    # As huggingface_hub lays out a snapshot: every file is a link to a blob of the same repository.
    snapshot = tmp_path / "models--x--y/snapshots" / ("0" * 40)
    write_step(snapshot / "1", {"action_in_proj/bias": np.ones(2, np.float32)})
    (tmp_path / "models--x--y/blobs").mkdir()
    for number, file in enumerate(path for path in sorted(snapshot.rglob("*")) if path.is_file()):
        blob = tmp_path / "models--x--y/blobs" / str(number)
        file.rename(blob)
        file.symlink_to(blob)
    found = inspect(snapshot, deep=True)
    assert (found.steps[0].complete, found.non_finite, found.findings) == (True, 0, [])
    assert found.steps[0].items[1].bytes > 100


def test_a_file_that_is_a_link_out_of_its_item_leaves_the_step_not_whole(tmp_path: Path) -> None:
    write_step(tmp_path / "checkpoints/1", {"action_in_proj/bias": np.ones(2, np.float32)})
    file = tmp_path / "checkpoints/1/params/_METADATA"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    (step,) = inspect(tmp_path / "checkpoints").steps
    assert not step.complete
    assert step.missing[0].startswith("params: _METADATA: these lead out of it")
