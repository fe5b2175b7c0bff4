"""Tests that the image with the simulator has its two locks and nothing else, and what numba needs."""

from __future__ import annotations

import json

import pytest

from tests.container.engine import Engine
from tests.container.test_cuda_image import LISTS
from tests.test_repo_locks import on

IMAGE = "harness:simulator-cpu"
PYTHON = "/opt/simulator/bin/python"
CONFINED = {"network_mode": "none", "read_only": True, "tmpfs": {"/tmp": ""}}


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    return engine.image(IMAGE)


def test_it_has_what_its_locks_say_and_nothing_else(engine: Engine, image: str) -> None:
    ended = engine.run(image, PYTHON, "-c", LISTS, **CONFINED)
    assert ended.code == 0, ended.said
    python, there = json.loads(ended.out)
    # pip comes with the virtual environment.
    there.pop("pip")
    locked = on("simulator", python) | on("libero", python)
    assert there == {name: str(version) for name, version in locked.items()}


def test_the_harness_in_it_is_that_of_the_cpu_image(engine: Engine, image: str) -> None:
    ended = engine.run(image, "python", "-c", LISTS, **CONFINED)
    assert ended.code == 0, ended.said
    python, there = json.loads(ended.out)
    locked = {name: str(version) for name, version in on("cpu", python).items()}
    assert {name: there.get(name) for name in locked} == locked
    assert not {"mujoco", "robosuite"} & there.keys()


def test_it_is_not_root_and_what_numba_compiled_can_be_read(engine: Engine, image: str) -> None:
    ended = engine.run(image, "sh", "-c", "id -u; cat /opt/simulator/share/numba/*/*.nbc | wc -c", **CONFINED)
    assert ended.code == 0, ended.said
    uid, size = map(int, ended.out.split())
    assert uid > 0
    assert size > 100_000


def test_a_display_of_egl_opens_without_a_gpu(engine: Engine, image: str) -> None:
    opens = "from robosuite.utils.binding_utils import GLContext; GLContext(max_width=64, max_height=64)"
    ended = engine.run(image, PYTHON, "-c", opens, **CONFINED)
    assert "robosuite WARNING" not in ended.said
    assert "Error" not in ended.said.partition("Exception ignored")[0], ended.said
