"""Tests what is known of a served checkpoint: widths, statistics, contract; ours, openpi's, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.checkpoint.locate import Located, locate, recipe_of
from harness.data.dataset import open_for
from harness.data.lerobot import open_dataset
from harness.data.prompts import instruction
from harness.predict.predict import Device
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.serve.batch import stacked
from harness.serve.open import Opened, Wish, open_served, with_default_prompt
from harness.serve.robot import robot_of
from harness.serve.wire import unpack
from tests.support import robots
from tests.support.openpi_checkpoints import openpi_checkpoint
from tests.support.plain_engine import open_engine
from tests.support.served import libero, unit_stats
from tests.support.tiny import LORA
from tests.test_predict import save

CPU = Device("cpu", "cpu", None, None)


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    (directory / "manifest.json").write_text("{}")
    save(directory / "checkpoints", 3)
    return directory / "checkpoints/3"


def opened(path: Path, *sets: str, recipe: str | None = None) -> Opened:
    located = locate(str(path))
    found = recipe_of(located, recipe, list(sets))
    return open_served(located, found, Wish(steps=1), CPU, lambda _: None, open_engine)


def contract(one: Opened) -> dict[str, Any]:
    one.desk.batcher.close()
    found: dict[str, Any] = unpack(one.desk.metadata)
    return found


def test_the_handshake_says_what_the_robot_sends_and_gets(step: Path) -> None:
    found = contract(opened(step, "data.relative=0-2"))
    assert [each["camera"] for each in found["cameras"]] == ["base_0_rgb", "left_wrist_0_rgb"]
    assert found["cameras"][0]["keys"][:2] == ["image", "observation/image"]
    assert (found["cameras"][0]["height"], found["cameras"][0]["width"]) == (56, 56)
    assert (found["state"]["dimensions"], found["state"]["needed"]) == (8, True)
    assert (found["actions"]["horizon"], found["actions"]["dimensions"]) == (10, 7)
    assert found["actions"]["learned_relative_to_the_state"] == [0, 1, 2]
    assert (found["fps"], found["contract_version"]) == (None, 1)
    assert found["unknown"].keys() == {"fps", "actions.units", "state.names", "actions.names"}
    assert len(found["norm_stats_sha256"]) == len(found["checkpoint"]["sha256"]) == 64
    assert found["deviations"] == [
        "--steps 1: 1 Euler steps instead of 10; what it costs in success is not known"
    ]
    # A client learns nothing of the server's machine.
    assert str(step) not in repr(found)


def test_a_default_prompt_takes_the_place_of_the_recipes_one_for_all() -> None:
    """openpi's server puts its --default_prompt before that of the configuration."""
    recipe = load_recipe("pi05_aloha")
    assert instruction(recipe.data, "fold") == "uncap the pen"
    data = with_default_prompt(recipe, "take the toast").data
    assert [instruction(data, sent) for sent in ("", "fold")] == ["take the toast", "fold"]
    assert with_default_prompt(recipe, None) is recipe


def test_a_named_dataset_says_the_rate(step: Path) -> None:
    located = locate(str(step))
    recipe = recipe_of(located, None)
    robot = robot_of(located, recipe, open_for(recipe)[1])
    assert (robot.state, robot.actions, robot.fps, robot.unknown) == (8, 7, 20.0, {})


def test_a_named_dataset_says_what_its_dimensions_are_called(tmp_path: Path) -> None:
    made = robots.aloha()
    data = open_dataset(robots.write(tmp_path / "arms", made))
    recipe = load_recipe("pi05_aloha", [f"data.dataset={data.path}"])
    (tmp_path / "step/assets" / recipe.data.asset_id).mkdir(parents=True)
    body = {key: unit_stats(32).model_dump() for key in ("state", "actions")}
    for one in body.values():
        for values in one.values():
            if values:
                values[14:] = [0.0] * 18
    file = tmp_path / "step/assets" / recipe.data.asset_id / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": body}))
    located = Located(tmp_path / "step", None, None)
    named, alone = robot_of(located, recipe, data), robot_of(located, recipe, None)
    assert named.names == {"state": made.names["action"], "actions": made.names["action"]}
    assert (named.fps, alone.fps, alone.names) == (50.0, None, {})
    assert (named.state, named.actions) == (alone.state, alone.actions) == (14, 14)
    assert named.stats == alone.stats


def test_other_statistics_or_weights_have_other_hashes(step: Path, tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 4)
    first, second = contract(opened(step)), contract(opened(tmp_path / "checkpoints/4"))
    assert first["checkpoint"]["sha256"] != second["checkpoint"]["sha256"]
    assert first["norm_stats_sha256"] == second["norm_stats_sha256"]


@pytest.mark.parametrize(("kind", "sets"), [("full", ()), ("lora", tuple(LORA))])
def test_checkpoints_of_openpi_are_served(kind: str, sets: tuple[str, ...], tmp_path: Path) -> None:
    asset = "data.asset_id=physical-intelligence/libero"
    one = opened(openpi_checkpoint(kind, tmp_path), asset, *sets, recipe="smoke")
    asked = one.reader.read(libero())
    sampled = one.desk.batcher.submit(asked, 5).result(60)
    actions = one.reader.actions(sampled.actions, asked)
    assert actions.shape == (10, 7)
    assert contract(one)["actions"]["dimensions"] == 7


def test_a_row_is_the_same_bits_whoever_shares_its_batch(step: Path) -> None:
    """With the real model, on the CPU: the other rows are other requests, or nobody's."""
    located = locate(str(step))
    recipe: Recipe = recipe_of(located, None)
    engine = open_engine(located, recipe, on=CPU, steps=2, batches=(4,), say=lambda _: None)
    reader = opened(step).reader
    asked = [reader.read(libero(n, prompt="go " * n)) for n in range(4)]
    noise = np.random.default_rng(0).standard_normal((4, 10, 32)).astype(np.float32)
    together = engine.sample(stacked(asked, 4), noise)
    lone = np.zeros_like(noise)
    lone[0] = noise[2]
    alone = engine.sample(stacked([asked[2]], 4), lone)
    np.testing.assert_array_equal(together[2], alone[0])
    assert isinstance(located, Located)
