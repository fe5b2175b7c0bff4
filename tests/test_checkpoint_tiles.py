"""Tests digests by tile, of leaves that no process holds whole, and which part of a leaf a process reads."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.checkpoint.digests import check, digest, leaf_digests, read_digests
from harness.checkpoint.inspect import inspect
from harness.checkpoint.leaves import open_leaves, tiles_inside
from harness.checkpoint.shared_digests import shared_digests
from harness.checkpoint.tiles import Tiled, cells, tile_digest
from harness.errors import HarnessError
from harness.run.peers import ALONE
from harness.run.steps import DIGESTS
from tests.test_checkpoint_digests import PARAMS, STATE, STEP, restore, save_step

LINEAR = "params/params/PaliGemma/llm/layers/mlp/linear/value"


def tiled(array: np.ndarray, grid: list[int]) -> Tiled:
    return Tiled(grid, [tile_digest(array[cell]) for cell in cells(array.shape, grid)])


@pytest.mark.parametrize(("shape", "grid"), [((8, 6), [4, 1]), ((8, 6), [2, 3]), ((5,), [5]), ((), [])])
def test_the_tiles_of_a_grid_are_the_array_each_element_once(shape: tuple[int, ...], grid: list[int]) -> None:
    seen = np.zeros(shape, int)
    for cell in cells(shape, grid):
        seen[cell] += 1
    assert (seen == 1).all()
    assert len(list(cells(shape, grid))) == math.prod(grid)


def test_where_every_process_has_every_leaf_the_digests_are_those_of_one_process() -> None:
    leaves = {"a": PARAMS["action_in_proj/bias"], "b": np.arange(6).reshape(2, 3), "c": 3}
    leaves |= {"d": PARAMS["PaliGemma/llm/layers/mlp/linear"], "e": jnp.int32(4)}
    assert shared_digests(leaves, ALONE) == (leaf_digests(leaves), {})


def test_a_changed_element_is_found_in_its_tile() -> None:
    array = np.arange(48.0).reshape(8, 6)
    known = tiled(array, [4, 1])
    check("x", array, known)
    other = array.copy()
    other[5, 2] += 1
    with pytest.raises(HarnessError) as caught:
        check("x", other, known)
    assert caught.value.code == "checkpoint-damaged"


@pytest.mark.parametrize("grid", [[4], [4, 1, 1]])
def test_a_grid_of_another_array_is_damage(grid: list[int]) -> None:
    with pytest.raises(HarnessError) as caught:
        check("x", np.zeros((8, 6)), Tiled(grid, ["0" * 64] * 4))
    assert caught.value.code == "checkpoint-damaged"


def test_a_part_is_compared_by_the_tiles_that_make_it_up() -> None:
    array = np.arange(48).reshape(8, 6)
    known = tiled(array, [4, 1])
    part = (slice(2, 6), slice(0, 6))
    inside = tiles_inside(array.shape, part, known)
    assert inside is not None
    assert [where for where, _ in inside] == [(slice(0, 2), slice(0, 6)), (slice(2, 4), slice(0, 6))]
    assert [tile_digest(array[part][where]) for where, _ in inside] == known.sha256[1:3]
    assert tiles_inside(array.shape, (slice(3, 6), slice(0, 6)), known) is None
    assert tiles_inside(array.shape, part, digest(array)) is None


@pytest.mark.parametrize("path", ["params/PaliGemma/llm/layers/mlp/linear", "params/action_in_proj/bias"])
def test_a_part_of_a_leaf_is_read_as_stored(saved: Path, path: str) -> None:
    leaf = open_leaves(saved / str(STEP) / "params")[f"{path}/value"]
    array = np.asarray(PARAMS[path.removeprefix("params/")])
    part = (slice(1, 4), *(slice(2, size) for size in array.shape[1:]))
    np.testing.assert_array_equal(leaf.read_part(part, leaf.dtype), array[part])
    cast: Any = leaf.read_part(part, np.dtype(np.float32))
    np.testing.assert_array_equal(cast, array[part].astype(np.float32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step whose sidecar has one leaf by tile, as several processes write it."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    save_step(directory)
    sidecar = directory / str(STEP) / DIGESTS
    body = json.loads(sidecar.read_text())
    assert "tiles" not in body, "one process writes what it always wrote"
    del body["leaves"][LINEAR]
    array = np.asarray(PARAMS["PaliGemma/llm/layers/mlp/linear"])
    body["tiles"] = {LINEAR: tiled(array, [10, 1])._asdict()}
    sidecar.write_text(json.dumps(body))
    return directory


def test_one_process_compares_what_several_saved(saved: Path) -> None:
    assert sorted(restore(saved).params) == sorted(PARAMS)
    report = inspect(saved, deep=True)
    assert not [finding for finding in report.findings if "sha256" in finding]
    digests = read_digests(saved / str(STEP))
    assert digests is not None
    assert json.loads(digests.to_json()) == json.loads((saved / str(STEP) / DIGESTS).read_text())
    assert len(digests.leaves) + 1 == len(jax.tree.leaves((PARAMS, STATE)))


def test_another_tile_is_refused_and_told(saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "checkpoints")
    sidecar = copy / str(STEP) / DIGESTS
    body = json.loads(sidecar.read_text())
    body["tiles"][LINEAR]["sha256"][3] = "0" * 64
    sidecar.write_text(json.dumps(body))
    with pytest.raises(HarnessError) as caught:
        restore(copy)
    assert caught.value.code == "checkpoint-damaged"
    report = inspect(copy, deep=True)
    assert [finding for finding in report.findings if "sha256" in finding and LINEAR in finding]


@pytest.mark.parametrize(
    "value",
    [
        {"grid": [3], "sha256": ["0" * 64]},
        {"grid": [0], "sha256": []},
        {"grid": ["x"], "sha256": ["0" * 64]},
        {"grid": [1], "sha256": ["0"]},
        {"sha256": ["0" * 64]},
        7,
    ],
)
def test_tiles_that_are_none_are_damage(saved: Path, tmp_path: Path, value: object) -> None:
    copy = shutil.copytree(saved, tmp_path / "checkpoints")
    sidecar = copy / str(STEP) / DIGESTS
    body = json.loads(sidecar.read_text())
    body["tiles"][LINEAR] = value
    sidecar.write_text(json.dumps(body))
    with pytest.raises(HarnessError) as caught:
        read_digests(copy / str(STEP))
    assert caught.value.code == "checkpoint-damaged"
