"""Tests which episodes are held out, and that loader and statistics leave them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.dataset import describe
from harness.data.held_out import Kept, held_out
from harness.data.lerobot import open_dataset
from harness.data.loader import Loader
from harness.data.stats import compute
from harness.errors import HarnessError
from harness.recipe.holdout import Holdout
from harness.recipe.load import load_recipe

NUMBERS = st.lists(st.integers(0, 500), min_size=2, max_size=60, unique=True)


@given(NUMBERS, st.data())
def test_more_held_out_episodes_include_fewer_of_the_same_seed(
    numbers: list[int], data: st.DataObject
) -> None:
    fewer = data.draw(st.integers(1, len(numbers) - 1))
    more = data.draw(st.integers(fewer, len(numbers) - 1))
    one, other = (set(held_out(Holdout(episodes=n), numbers)) for n in (fewer, more))
    assert len(one) == fewer
    assert one <= other < set(numbers)


@given(NUMBERS, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_episodes(numbers: list[int], random: object) -> None:
    shuffled = list(numbers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert held_out(Holdout(episodes=1), numbers) == held_out(Holdout(episodes=1), shuffled)


def test_a_share_is_rounded_and_is_never_nothing() -> None:
    episodes = range(40)
    assert len(held_out(Holdout(episodes=0.1), episodes)) == 4
    assert len(held_out(Holdout(episodes=0.001), episodes)) == 1
    assert held_out(Holdout(episodes=0.1), episodes) != held_out(Holdout(episodes=0.1, seed=1), episodes)
    assert held_out(None, episodes) == []


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (5, "holdout-leaves-nothing"),
        (9, "holdout-leaves-nothing"),
        (0.99, "holdout-leaves-nothing"),
        (["0-4"], "holdout-leaves-nothing"),
        ([0, 7], "holdout-unknown-episode"),
    ],
)
def test_what_leaves_nothing_or_is_not_there_is_refused_by_key(asked: object, code: str) -> None:
    with pytest.raises(HarnessError, match=r"train\.holdout\.episodes") as refusal:
        held_out(Holdout.model_validate({"episodes": asked}), range(5))
    assert refusal.value.code == code
    assert "--set train.holdout" in refusal.value.fix


def test_kept_frames_are_those_of_the_other_episodes_in_their_order() -> None:
    recipe = load_recipe("smoke")
    data = open_dataset(Path(describe(recipe).path), state="state", actions="actions")
    kept = Kept(data.episodes, [1, 3])
    frames = [kept[n] for n in range(len(kept))]
    assert frames == [i for i in range(data.frames) if data.episode_of(i).index not in (1, 3)]


def test_no_step_of_three_epochs_sees_a_held_out_frame_and_each_epoch_sees_every_other() -> None:
    recipe = load_recipe("smoke", ["train.holdout.episodes=[1, 3]"])
    dataset = describe(recipe)
    loader = Loader(recipe, dataset, compute(recipe, dataset), batch_size=4, seed=1)
    assert dataset.held_out == [1, 3]
    others = [i for i in range(100) if loader.sources[0].pictures.data.episode_of(i).index not in (1, 3)]
    assert dataset.trained_frames == len(others) == 76
    seen = [int(i) for step in range(57) for i in loader.batch(step)["index"]]
    for epoch in range(3):
        assert sorted(seen[76 * epoch : 76 * (epoch + 1)]) == others


def test_statistics_are_those_of_the_episodes_that_are_trained_on() -> None:
    held = load_recipe("smoke", ["train.holdout.episodes=[4]"])
    dataset = describe(held)
    found = compute(held, dataset)
    data = open_dataset(Path(dataset.path), state="state", actions="actions")
    states = np.stack([data.state(i) for i in range(100) if data.episode_of(i).index != 4])
    np.testing.assert_allclose(found.norm_stats["state"].mean, states.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.norm_stats["state"].q01, np.quantile(states, 0.01, axis=0), rtol=1e-5)
    assert found.frames == len(states) == 87
    plain = load_recipe("smoke")
    assert compute(plain, describe(plain)).norm_stats["state"] != found.norm_stats["state"]


def test_less_than_a_batch_is_refused_with_the_holdout_named() -> None:
    recipe = load_recipe("smoke", ["train.holdout.episodes=6", "train.global_batch=32"])
    dataset = describe(recipe)
    with pytest.raises(HarnessError, match="holds out") as refusal:
        Loader(recipe, dataset, compute(recipe, dataset), batch_size=32, seed=1)
    assert refusal.value.code == "dataset-smaller-than-batch"
