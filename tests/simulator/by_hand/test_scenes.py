"""Tests that scenes are whole: nothing of MuJoCo's model or state differs from the loop that they are of."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest

from harness.simulate import boot, scenes
from tests.simulator import inside

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("suite", SUITES)
def test_the_whole_model_and_the_state_after_waiting_are_those_of_openpis_loop(suite: str) -> None:
    found = inside.run("whole_state", list(itertools.product([suite], range(10))))
    assert len(found) == 10
    for each in found.values():
        assert each["compared"] > 300
        assert each["differ"] == []


def test_lerobots_scenes_and_pictures_are_lerobots() -> None:
    found = inside.run("lerobot_loop", [["libero_spatial", 4], ["libero_10", 9]])
    assert found == {"libero_spatial/4": [True] * 3, "libero_10/9": [True] * 3}


@pytest.mark.parametrize("name", ["libero_goal/5", "libero_10/9"])
@pytest.mark.parametrize("renderer", [False, True], ids=["without a renderer", "with one"])
def test_making_the_table_again_gives_the_same_numbers(name: str, renderer: bool, tmp_path: Path) -> None:
    options = ["--renderer"] if renderer else []
    subprocess.run(
        [str(boot.python()), str(ROOT / "ci/make_scenes.py"), str(tmp_path), "--only", name, *options],
        env={**boot.environment(), "MUJOCO_GL": "egl"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    rows = json.loads((tmp_path / f"{name.replace('/', '_')}.json").read_text())
    suite, task = name.split("/")
    assert len(rows) == scenes.table()["resets"]
    for episode, row in enumerate(rows):
        known = scenes.known(suite, int(task), episode, scenes.table()["seed"])
        assert known is not None
        assert {fixture: pose.tolist() for fixture, pose in known.items()} == row
