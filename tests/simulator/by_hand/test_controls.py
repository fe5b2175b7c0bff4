"""Tests of the controls: twelve recorded episodes succeed at their steps, and doing nothing never does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.simulate import controls
from tests.simulator.inside import Talk, talking

KEYS = [each[:3] for each in controls.recordings()]


@pytest.fixture(scope="module")
def worker() -> Iterator[Talk]:
    with talking() as talk:
        yield talk


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_recorded_episode_succeeds_at_its_recorded_step(worker: Talk, key: tuple[str, int, int]) -> None:
    last, _ = worker.drive(*key, "replay")
    assert (last["outcome"], last["steps"]) == ("success", controls.recording(*key).steps)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_doing_nothing_never_succeeds(worker: Talk, key: tuple[str, int, int]) -> None:
    # Asked once in 100 steps: what is drawn does not change what happens.
    last, _ = worker.drive(*key, "zero", replan_steps=100)
    assert (last["outcome"], set(last["reached"].values())) == ("failure", {None})
    assert last["steps"] == {"libero_goal": 300, "libero_object": 280, "libero_spatial": 220}[key[0]]
