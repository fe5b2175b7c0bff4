"""Settings for all tests: no GPU, no network, no account, and fast compilation instead of fast programs.

A test of a law compiles many small programs and runs each once, so LLVM's optimization costs more than it
saves. Processes that a test starts inherit these settings. Equal programs are compiled once per session.
"""

from __future__ import annotations

import os
import tempfile

import pytest

# What this process was started with, for tests that start what a person would start.
OUTSIDE = dict(os.environ)

# These need a container engine, which the container that runs the tests has not: ci/confinement, ci/chaos and
# ci/cuda ask for them by path.
collect_ignore = ["container"]

os.environ["JAX_PLATFORMS"] = "cpu"
# The test image is ours too; a run of a test is not about it, and each verify would read all of it.
os.environ.pop("HARNESS_IMAGE", None)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-cache-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Files that take long, the longest first: a worker that got one of them last would keep the others waiting.
_LONG = (
    "train_step",
    "train_sharding",
    "model_quantize",
    "model_parity",
    "train_approximate",
    "train_levers",
    "plan_tiny",
    "verify",
    "train_loop",
    "openpi_worker",
    "openpi_run",
    "model_pi05",
    "train_augment",
    "predict",
    "supervise",
    "analyse_curve",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of long files first; within a file their order stays."""
    rank = {f"test_{name}": number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(_LONG)))
