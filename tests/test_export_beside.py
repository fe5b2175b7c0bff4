"""Tests what an export does beside writing: reading the next leaf, hashing the source, flushing."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from harness.checkpoint import merge, tensor_writer, weights
from harness.checkpoint.merge import arrays, open_merging
from harness.checkpoint.tensor_writer import Planned, write_tensors
from tests.support.exported import recipe_of_kind, write_checkpoint


def test_the_next_leaf_is_read_beside_but_never_more_than_half_of_the_largest_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of_kind("full")
    opened = open_merging(write_checkpoint(tmp_path / "5", recipe), recipe.model)
    alive: dict[int, int] = {}
    most, together = 0, 0
    make = merge.whole

    def watched(*arguments: Any) -> np.ndarray:
        nonlocal most, together
        array = make(*arguments)
        alive[id(array)] = array.nbytes
        weakref.finalize(array, alive.pop, id(array))
        most, together = max(most, sum(alive.values())), max(together, len(alive))
        return array

    monkeypatch.setattr(merge, "whole", watched)
    largest = 0
    for _, array in arrays(opened):
        largest = max(largest, array.nbytes)
        # As long as writing takes.
        time.sleep(0.02)
        del array
    assert together == 2
    assert largest <= most <= 1.5 * largest


def test_a_failed_export_does_not_wait_for_the_hash_of_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(_: Path, stop: Event) -> str:
        assert stop.wait(60)
        return ""

    monkeypatch.setattr(weights, "directory_sha256", slow)
    begun = time.monotonic()
    with pytest.raises(ValueError, match="a full disk"), weights.digests_beside([tmp_path]):
        raise ValueError("a full disk")
    assert time.monotonic() - begun < 30


def test_the_hash_that_is_made_beside_is_that_of_the_source_and_its_error_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(bytes(3_000_000))
    with weights.digests_beside([tmp_path / "a"]) as sha256:
        assert sha256() == [weights.directory_sha256(tmp_path / "a")]
    (tmp_path / "a/out").symlink_to("/")
    with weights.digests_beside([tmp_path / "a"]) as sha256, pytest.raises(Exception, match="out"):
        sha256()


def test_a_disk_that_fails_on_the_way_is_told_and_the_file_is_the_same_with_flushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).random((300, 1000), np.float32)
    plan, given = [Planned("w", array.shape, "float32")], [("w", array)]
    whole = write_tensors(tmp_path / "one", plan, given)
    monkeypatch.setattr(tensor_writer, "_FLUSH_BYTES", 1000)
    monkeypatch.setattr(tensor_writer, "_BLOCK_BYTES", 4000)
    assert write_tensors(tmp_path / "two", plan, given) == whole
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "three", plan, given)
