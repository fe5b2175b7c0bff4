"""Settings for all tests: no GPU, no network, no account, and fast compilation instead of fast programs.

A test of a law compiles many small programs and runs each once, so LLVM's optimization costs more than it
saves. Processes that a test starts inherit these settings. Equal programs are compiled once per session.
"""

from __future__ import annotations

import json
import os
import tempfile

# What pytest was started with, for tests that start what a person would start; a worker of it is told.
_TOLD = "HARNESS_TESTS_OUTSIDE"
OUTSIDE: dict[str, str] = json.loads(os.environ.pop(_TOLD, "null")) or dict(os.environ)
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ[_TOLD] = json.dumps(OUTSIDE)

# These need a container engine, which the container that runs the tests has not: ci/confinement, ci/chaos and
# ci/cuda ask for them by path.
collect_ignore = ["container"]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-cache-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
