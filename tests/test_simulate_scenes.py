"""Tests of the shipped table of scenes and of the recorded episodes: whole, exact, and small."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.simulate import certify, controls, protocol, scenes

# Of the numbers, by `scenes.sha256`: whoever makes the table again must get these.
SHA256 = "69eddcc483f67287f5c23734efd5c86d8cc627e08d909989b8a800fc5b3726f2"
# Tasks whose fixtures move from reset to reset; everything of libero_spatial and libero_goal does.
MOVING_10 = {"libero_10/2", "libero_10/3", "libero_10/5", "libero_10/8", "libero_10/9"}


def values(name: str) -> protocol.Values:
    return protocol.check(protocol.shipped(name).values)


def test_the_table_has_every_task_and_every_reset() -> None:
    table = scenes.table()
    suites = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    assert set(table["scenes"]) == {f"{suite}/{task}" for suite, task in itertools.product(suites, range(10))}
    assert (table["seed"], table["resets"]) == (7, 50)
    assert {name: table["versions"][name] for name in ("mujoco", "robosuite")} == {
        "mujoco": "3.2.3",
        "robosuite": "1.4.1",
    }
    for rows in table["scenes"].values():
        for row in rows.values():
            assert len(row["still"]) == scenes.POSE
            assert set(row["moving"]) == {str(at) for at, value in enumerate(row["still"]) if value is None}
            assert all(len(column) == 50 for column in row["moving"].values())


def test_the_table_is_this_one_to_the_bit_and_small() -> None:
    assert scenes.sha256(values("openpi")) == SHA256
    assert scenes.TABLE.stat().st_size < 200_000
    assert controls.RECORDED.stat().st_size < 100_000
    assert certify.PICTURES.stat().st_size < 100_000


def test_fixtures_move_in_the_25_tasks_where_they_were_seen_to() -> None:
    moving = {
        name for name, rows in scenes.table()["scenes"].items() if any(row["moving"] for row in rows.values())
    }
    both = {f"{suite}/{task}" for suite in ("libero_spatial", "libero_goal") for task in range(10)}
    assert moving == both | MOVING_10


def test_quaternions_are_of_length_one_and_positions_on_the_table() -> None:
    for name in scenes.table()["scenes"]:
        suite, task = name.split("/")
        for episode in (0, 49):
            for pose in (scenes.known(suite, int(task), episode, 7) or {}).values():
                assert np.linalg.norm(pose[3:]) == pytest.approx(1)
                assert np.abs(pose[:3]).max() < 2


def test_another_seed_task_or_episode_is_not_in_the_table() -> None:
    assert scenes.known("libero_goal", 5, 49, 7) is not None
    for suite, task, episode, seed in (
        ("libero_goal", 5, 50, 7),
        ("libero_goal", 5, -1, 7),
        ("libero_goal", 5, 0, 8),
        ("libero_90", 0, 0, 7),
    ):
        assert scenes.known(suite, task, episode, seed) is None


def test_packing_keeps_every_bit() -> None:
    random = np.random.default_rng(0)
    rows = [
        {"stove": np.concatenate((random.normal(size=3), [-0.0 if at == 3 else 0.0, 1, 0.1, 1 / 3]))}
        for at in range(7)
    ]
    packed = scenes.packed(rows)
    assert set(packed["stove"]["moving"]) == {"0", "1", "2", "3"}
    for at, row in enumerate(rows):
        assert scenes.unpacked(packed["stove"], at).tobytes() == row["stove"].tobytes()


def test_protocols_of_other_scenes_have_another_digest() -> None:
    openpi = values("openpi")
    digests = {
        scenes.sha256(each)
        for each in (openpi, openpi._replace(seed=8), values("lerobot"), values("lerobot")._replace(seed=7))
    }
    assert len(digests) == 4


def test_the_recorded_episodes_are_twelve_with_their_fixtures() -> None:
    found = controls.recordings()
    assert len(found) == 12
    assert sorted(each.steps for each in found) == [
        103,
        104,
        108,
        115,
        116,
        119,
        121,
        123,
        124,
        134,
        136,
        153,
    ]
    for each in found:
        assert each.actions.dtype == np.float32
        assert each.actions.shape == (each.steps, 7)
        assert set(each.fixtures) == set(scenes.known(each.suite, each.task, each.episode, 7) or {})
    with pytest.raises(HarnessError) as caught:
        controls.recording("libero_goal", 8, 4)
    assert caught.value.code == "recording-missing"
