"""Tests `inspect --against`: how far each part of the weights moved since other weights.

The expected values come from plain numpy.
"""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from harness.artifacts import Checkpoint
from harness.checkpoint.inspect import inspect
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.show.checkpoint import checkpoint_table
from harness.show.moved_picture import write
from tests.support.item_writer import Q, normal, write_step
from tests.support.openpi_checkpoints import STEP, openpi_checkpoint


def test_moved_since_another_step(tmp_path: Path) -> None:
    before = {
        f"{Q}/w": normal(3, 4, 5),
        "PaliGemma/img/embedding/kernel": normal(4, 4),
        "action_in_proj/bias": np.zeros(4, np.float32),
    }
    after = {path: values.copy() for path, values in before.items()}
    after[f"{Q}/w"][1] += 0.5
    after["action_in_proj/bias"][:2] = 3
    write_step(tmp_path / "1", before)
    write_step(tmp_path / "2", after)
    moved = inspect(tmp_path, against="1").moved
    assert moved is not None
    groups = {part.name: part for part in moved.groups}
    assert groups["vision"].update_norm == 0
    assert groups["language"].update_norm == pytest.approx(0.5 * math.sqrt(20))
    assert groups["language"].relative == pytest.approx(
        0.5 * math.sqrt(20) / np.linalg.norm(before[f"{Q}/w"]), rel=1e-6
    )
    assert groups["language"].changed == pytest.approx(1 / 3)
    assert (groups["projections"].relative, groups["projections"].changed) == (None, 0.5)
    layers = {
        part.layer: bool(part.update_norm) for part in moved.blocks if part.name == "language attention"
    }
    assert layers == {0: False, 1: True, 2: False}
    assert (moved.against_step, moved.only_here, moved.only_there, moved.not_compared) == (1, [], [], [])


def test_trained_parameters_that_did_not_move_are_noted(tmp_path: Path) -> None:
    before = {"time_mlp_in/bias": normal(4), "action_in_proj/bias": normal(4)}
    for step, after in ((1, before), (2, before | {"action_in_proj/bias": normal(4, seed=1)})):
        write_step(tmp_path / str(step), after, list(before))
    moved = inspect(tmp_path, against="1").moved
    assert moved is not None
    assert [note for note in moved.notes if "time_mlp_in/bias" in note and "were trained" in note]
    assert not any("action_in_proj" in note for note in moved.notes)


def test_layers_are_told_apart_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {f"{Q}/w": normal(5, 3, 7)}
    after = {f"{Q}/w": before[f"{Q}/w"] + np.arange(5, dtype=np.float32)[:, None, None]}
    write_step(tmp_path / "1", before)
    write_step(tmp_path / "2", after)
    for block in (1, 10, 21, 50, 1000):
        monkeypatch.setattr("harness.checkpoint.deep.BLOCK", block)
        moved = inspect(tmp_path, against="1").moved
        assert moved is not None
        assert [part.update_norm for part in moved.blocks] == pytest.approx(
            [layer * math.sqrt(21) for layer in range(5)], rel=1e-5
        )


def test_rounding_to_another_dtype_is_no_movement(tmp_path: Path) -> None:
    values = normal(3, 4, 5)
    write_step(tmp_path / "1", {f"{Q}/w": values})
    write_step(tmp_path / "2", {f"{Q}/w": values.astype(ml_dtypes.bfloat16)})
    moved = inspect(tmp_path, against="1").moved
    assert moved is not None
    assert moved.groups[0].update_norm == 0
    assert any("another dtype" in note for note in moved.notes)
    assert any("nothing moved" in note for note in moved.notes)


def test_lora_against_the_weights_below_counts_as_its_product(tmp_path: Path) -> None:
    w, a, b = normal(3, 2, 8, 5), normal(3, 2, 8, 4, seed=1), normal(3, 2, 4, 5, seed=2)
    write_step(tmp_path / "base", {f"{Q}/w": w})
    write_step(
        tmp_path / "run/7", {f"{Q}/w": w.astype(ml_dtypes.bfloat16), f"{Q}/lora_a": a, f"{Q}/lora_b": b}
    )
    product = a.astype(np.float64) @ b
    bare = inspect(tmp_path / "run", against=str(tmp_path / "base")).moved
    smoke = load_recipe("smoke").model_dump()
    smoke["model"]["paligemma"]["lora"] = {"rank": 4, "alpha": 8}
    recipe = type(load_recipe("smoke")).model_validate(smoke)
    scaled = inspect(tmp_path / "run", against=str(tmp_path / "base"), recipe=recipe).moved
    assert bare is not None
    assert scaled is not None
    found = {part.name: part for part in bare.groups}
    rounded = np.linalg.norm(w.astype(ml_dtypes.bfloat16).astype(np.float64))
    assert found["language"].update_norm == 0
    assert found["adapters"].update_norm == pytest.approx(np.linalg.norm(product))
    assert found["adapters"].relative == pytest.approx(np.linalg.norm(product) / rounded, rel=1e-6)
    assert next(part for part in scaled.groups if part.name == "adapters").update_norm == pytest.approx(
        2 * np.linalg.norm(product)
    )
    assert bare.only_here == [f"{Q}/lora_a", f"{Q}/lora_b"]


def test_base_is_the_one_that_the_step_names(tmp_path: Path) -> None:
    write_step(tmp_path / "base", {f"{Q}/w": normal(3, 4, 5), "action_in_proj/bias": np.ones(4, np.float32)})
    write_step(tmp_path / "run/7", {"action_in_proj/bias": np.full(4, 2, np.float32)})
    (tmp_path / "run/7/harness").mkdir()
    (tmp_path / "run/7/harness/record.json").write_text("{}")
    (tmp_path / "run/7/harness/base.json").write_text(f'{{"source": "{tmp_path / "base"}", "sha256": "x"}}')
    found = inspect(tmp_path / "run", against="base")
    assert found.base == str(tmp_path / "base")
    assert found.moved is not None
    assert [(part.name, part.relative) for part in found.moved.groups] == [
        ("projections", pytest.approx(1.0))
    ]
    assert found.moved.only_there == [f"{Q}/w"]


@pytest.mark.parametrize(
    ("against", "code"),
    [("base", "nothing-to-compare"), ("9", "nothing-to-compare"), ("nowhere", "checkpoint-missing")],
)
def test_nothing_to_compare_with(tmp_path: Path, against: str, code: str) -> None:
    write_step(tmp_path / "1", {"action_in_proj/bias": np.ones(4, np.float32)})
    with pytest.raises(HarnessError) as caught:
        inspect(tmp_path, against=against)
    assert caught.value.code == code


def test_other_shapes_and_codes_are_named_not_compared(tmp_path: Path) -> None:
    write_step(
        tmp_path / "1",
        {"action_in_proj/bias": np.ones(4, np.float32), "time_mlp_in/bias": np.ones(4, np.float32)},
    )
    write_step(
        tmp_path / "2",
        {"action_in_proj/bias": np.ones(5, np.float32), "time_mlp_in/bias": np.ones(4, np.int8)},
    )
    moved = inspect(tmp_path, against="1").moved
    assert moved is not None
    assert moved.not_compared == ["action_in_proj/bias", "time_mlp_in/bias"]
    assert moved.groups == []


def test_golden_steps_and_the_picture(tmp_path: Path) -> None:
    root = openpi_checkpoint("lora", tmp_path)
    found = inspect(root, deep=True, against=str(openpi_checkpoint("full", tmp_path) / str(STEP["full"])))
    assert found.moved is not None
    assert {part.name: bool(part.update_norm) for part in found.moved.groups} == {
        "vision": False,
        "language": False,
        "expert": False,
        "adapters": True,
        "projections": False,
    }
    assert len(found.adapters) == 10
    assert all(
        each.effective_rank and 1 <= each.effective_rank[0] <= each.effective_rank[2] <= 4
        for each in found.adapters
    )
    assert write(found, root, tmp_path).read_bytes().startswith(b"\x89PNG")
    assert Checkpoint.model_validate_json(found.model_dump_json()) == found
    same = inspect(root, against=str(STEP["lora"]))
    assert write(same, root, tmp_path).read_bytes().startswith(b"\x89PNG")
    assert checkpoint_table(found)
