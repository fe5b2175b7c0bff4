"""What the images that run have: the lock and nothing else; it imports and fits together without a GPU."""

from __future__ import annotations

import json

import pytest

from tests.container.engine import CPU_IMAGE, Ended, Engine
from tests.test_repo_locks import on, project

IMAGES = {"cuda": "harness:cuda", "cpu": CPU_IMAGE}
IMPORTED = """
import json, sys
from importlib.metadata import distributions

import jax, flax, orbax.checkpoint, wandb, pynvml

there = {one.name.lower().replace("_", "-").replace(".", "-"): one.version for one in distributions()}
print(json.dumps(["%d.%d" % sys.version_info[:2], there]))
"""


def confined(engine: Engine, name: str, *command: str) -> Ended:
    return engine.run(
        engine.image(IMAGES[name]), *command, network_mode="none", read_only=True, tmpfs={"/tmp": ""}
    )


@pytest.mark.parametrize("name", IMAGES)
def test_the_image_imports_what_it_has_and_has_what_the_lock_says(engine: Engine, name: str) -> None:
    ended = confined(engine, name, "python", "-c", IMPORTED)
    assert ended.code == 0, ended.said
    python, there = json.loads(ended.out.splitlines()[-1])
    # pip comes with the virtual environment.
    there.pop("pip")
    locked = {package: str(version) for package, version in on(name, python).items()}
    assert there == locked | {"harness": project()["version"]}


def test_the_cuda_image_has_cuda(engine: Engine) -> None:
    ended = confined(engine, "cuda", "python", "-c", IMPORTED)
    assert ended.code == 0, ended.said
    _, there = json.loads(ended.out.splitlines()[-1])
    wanted = ("jaxlib", "jax-cuda12-pjrt", "nvidia-cudnn-cu12", "nvidia-nccl-cu12", "nvidia-ml-py")
    assert [package for package in wanted if package not in there] == []


@pytest.mark.parametrize("name", IMAGES)
def test_no_package_of_the_image_misses_another(engine: Engine, name: str) -> None:
    ended = confined(engine, name, "pip", "check")
    assert (ended.code, ended.out) == (0, "No broken requirements found.\n"), ended.said
