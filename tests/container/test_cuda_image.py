"""Tests that the images contain the lock's packages and nothing else, and import without a GPU."""

from __future__ import annotations

import json

import pytest

from tests.container.engine import CPU_IMAGE, CUDA_IMAGE, CUDA_VERSION, Ended, Engine
from tests.test_repo_locks import on, project

OURS = f"cuda{CUDA_VERSION}"
IMAGES = {OURS: CUDA_IMAGE, "cpu": CPU_IMAGE}

IMPORTS = "import jax, flax, orbax.checkpoint, wandb, pynvml"
LISTS = """
import json, sys
from importlib.metadata import distributions
there = {one.name.lower().replace("_", "-").replace(".", "-"): one.version for one in distributions()}
print(json.dumps(["%d.%d" % sys.version_info[:2], there]))
"""
# Without these no program of JAX runs on an NVIDIA GPU.
CUDA = (
    "jaxlib",
    f"jax-cuda{CUDA_VERSION or 12}-pjrt",
    f"jax-cuda{CUDA_VERSION or 12}-plugin",
    f"nvidia-cudnn-cu{CUDA_VERSION or 12}",
    f"nvidia-nccl-cu{CUDA_VERSION or 12}",
    "nvidia-ml-py",
)


def confined(engine: Engine, name: str, *command: str) -> Ended:
    return engine.run(
        engine.image(IMAGES[name]), *command, network_mode="none", read_only=True, tmpfs={"/tmp": ""}
    )


def packages(engine: Engine, name: str) -> tuple[str, dict[str, str]]:
    """The image's Python, and the version of each package that is installed for it."""
    ended = confined(engine, name, "python", "-c", LISTS)
    assert ended.code == 0, ended.said
    python, there = json.loads(ended.out)
    return python, there


def test_what_the_cuda_image_trains_with_imports_without_a_gpu(engine: Engine) -> None:
    ended = confined(engine, OURS, "python", "-c", IMPORTS)
    assert ended.code == 0, ended.said


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_has_what_its_lock_says_and_nothing_else(engine: Engine, name: str) -> None:
    python, there = packages(engine, name)
    # pip comes with the virtual environment.
    there.pop("pip")
    locked = {package: str(version) for package, version in on(name, python).items()}
    assert there == locked | {"harness": project()["version"]}


def test_the_cuda_image_has_cuda(engine: Engine) -> None:
    _, there = packages(engine, OURS)
    assert [package for package in CUDA if package not in there] == []


@pytest.mark.parametrize("name", IMAGES)
def test_no_package_of_the_image_misses_another(engine: Engine, name: str) -> None:
    ended = confined(engine, name, "pip", "check")
    assert (ended.code, ended.out) == (0, "No broken requirements found.\n"), ended.said
