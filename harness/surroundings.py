"""What surrounds a run and can change its numbers: packages, image, environment variables, machine. Recorded before it, compared after it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

from harness.artifacts import Machine

# What can change a number of a run. The image holds more; the lock's hash stands for all of it.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "pyarrow", "pillow", "av", "sentencepiece", "wandb", "harness")
# By name, one by one: a key or a token is in none of these.
_ENVIRONMENT = (
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_DEFAULT_PRNG_IMPL",
    "JAX_THREEFRY_PARTITIONABLE",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "OMP_NUM_THREADS",
)


class Software(NamedTuple):
    """None where this process cannot know; `unknown` says why."""

    packages: dict[str, str]
    python: str
    lock_sha256: str | None
    source_revision: str | None
    image: str | None
    unknown: dict[str, str]


def software_here() -> Software:
    """The software of this process; the image says its own lock, revision and name in its environment."""
    named = {field: os.environ.get(name) for field, name in _IMAGE.items()}
    unknown = {field: f"{_IMAGE[field]} is not set: not in one of our images" for field, value in named.items() if value is None}
    packages = {name: _version(name) for name in _PACKAGES}
    return Software(packages, platform.python_version(), named["lock_sha256"], named["source_revision"], named["image"], unknown)


_IMAGE = {"lock_sha256": "HARNESS_LOCK_SHA256", "source_revision": "HARNESS_REVISION", "image": "HARNESS_IMAGE"}


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that change what is computed, as they are set."""
    return {name: environ[name] for name in _ENVIRONMENT if environ.get(name)}


def machine_facts(machine: Machine | None) -> dict[str, Any]:
    """Driver, cards and host, without what changes from minute to minute."""
    if machine is None:
        return {}
    cards = [f"{gpu.name} ({gpu.compute_capability})" for gpu in machine.gpus if gpu.visible and not gpu.error]
    host = machine.host
    return {
        "driver": machine.driver_version,
        "cuda": machine.cuda_driver_version,
        "gpus": cards,
        "host": host.hostname,
        "kernel": host.kernel,
        "cores": host.cores,
        "ram_total_bytes": host.ram_total_bytes,
        "container": host.container,
        "wsl": host.wsl,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
