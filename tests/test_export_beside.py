"""Tests what an export does beside writing: reading the next leaf, hashing the source, flushing."""

from __future__ import annotations

import hashlib
import json
import os
import time
import weakref
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from harness.checkpoint import merge, sink, weights
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


def test_the_digest_of_a_base_is_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("top", "base"):
        (tmp_path / name / "params").mkdir(parents=True)
    (tmp_path / "top/harness").mkdir()
    # It was compared with this one when the weights were opened.
    (tmp_path / "top/harness/base.json").write_text(json.dumps({"source": "base", "sha256": "ab" * 32}))
    hashed: list[Path] = []
    monkeypatch.setattr(weights, "directory_sha256", lambda location, _: hashed.append(location) or "own")
    with weights.digests_beside([tmp_path / "top/params", tmp_path / "base/params"]) as sha256:
        assert sha256() == ["own", "ab" * 32]
    assert hashed == [tmp_path / "top/params"]


SIZES = [(0,), (1,), (7,), (511, 8), (1024,), (1000, 3), (3, 1000), (2, 2048), (5001,)]


@pytest.mark.parametrize("way", ["direct", "refused when it is asked for", "refused by the first write"])
def test_a_file_is_the_same_past_the_page_cache_and_through_it(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    given = [(str(n), rng.standard_normal(size).astype(np.float32)) for n, size in enumerate(SIZES)]
    plan = [Planned(name, array.shape, "float32") for name, array in given]
    flushed = through_cache(way, monkeypatch)
    monkeypatch.setattr(sink, "_BLOCK_BYTES", 5000)
    monkeypatch.setattr(sink, "_FLUSH_BYTES", 10_000)
    written = write_tensors(tmp_path / "file", plan, given)
    data = (tmp_path / "file").read_bytes()
    assert data[8 + int.from_bytes(data[:8], "little") :] == b"".join(array.tobytes() for _, array in given)
    assert written == (len(data), hashlib.sha256(data).hexdigest())
    assert way == "direct" or flushed


def through_cache(way: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What will hold the descriptors that were flushed on the way, after direct writes are refused."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    if way == "refused when it is asked for":
        monkeypatch.setattr(sink, "_set_direct", lambda *_: False)
    elif way == "refused by the first write":
        answers = [True, False]
        monkeypatch.setattr(sink, "_set_direct", lambda *_: answers.pop(0))
        write = os.pwrite

        def refuse(descriptor: int, data: Any, offset: int) -> int:
            if answers:
                raise OSError(22, "Invalid argument")
            return write(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", refuse)
    return flushed


@pytest.mark.parametrize("fails", ["pwrite", "fdatasync", "fsync"])
def test_a_disk_that_fails_on_the_way_is_told(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).random((300, 1000), np.float32)
    if fails == "fdatasync":
        through_cache("refused when it is asked for", monkeypatch)
    monkeypatch.setattr(sink, "_FLUSH_BYTES", 1000)
    monkeypatch.setattr(sink, "_BLOCK_BYTES", 4000)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "three", [Planned("w", array.shape, "float32")], [("w", array)])
