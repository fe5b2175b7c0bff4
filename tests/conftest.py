"""Settings for all tests: no GPU, no network, no account, and fast compilation instead of fast programs.

A test of a law compiles many small programs and runs each once, so LLVM's optimization costs more than it
saves. Processes that a test starts inherit these settings. Equal programs are compiled once per session.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# What this process was started with, for tests that start what a person would start.
OUTSIDE = dict(os.environ)

# These need a container engine or a simulator, which the container that runs the tests has not.
# ci/confinement, ci/chaos, ci/cuda and ci/simulate ask for them by path.
collect_ignore = ["container", "simulator"]

os.environ["JAX_PLATFORMS"] = "cpu"
# The test image is ours too; a run of a test is not about it, and each verify would read all of it.
os.environ.pop("HARNESS_IMAGE", None)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Its threads would wait for the next product by spinning, and the products of these tests are small.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
# The older emitter of loops compiles a step in half the time of the fusion emitters, which go through MLIR.
# To split a module into 32, so that threads compile them at once, is a quarter of the work of a small step.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
# To walk the small objects that JAX keeps is 7 % of a small run (7.5 s of user time, then 7.0). This process
# collects seldom, and so do those that it starts: their interpreter reads sitecustomize.py from there.
gc.set_threshold(20_000, 20, 20)
STARTUP = os.path.join(os.path.dirname(__file__), "support", "startup")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (STARTUP, os.environ.get("PYTHONPATH"))))
# One directory a session, made by the process that starts the workers: nothing older can hide a change. What
# else lies there: tests/support/session.py.
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not _IS_WORKER or "PYTEST_SHARED" not in os.environ:
    os.environ["PYTEST_SHARED"] = tempfile.mkdtemp(prefix="session-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["PYTEST_SHARED"], "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# What this process may fetch, since a test loaded a recipe that names it (harness/received/consent.py).
_ALLOWANCE = "HARNESS_MAY_FETCH"
# What JAX sets in a process that imports it, and Pallas in one that first uses it.
_OF_JAX = {"TPU_SKIP_MDS_QUERY", "MOSAIC_GPU_CUDA_ROOT", "MOSAIC_GPU_RUNTIME_LIB_PATH"}

# Files of 7 s of processor and more, the longest first: a worker that got one last would keep the others
# waiting.
_LONG = (
    "train_loop",
    "train_sharding",
    "train_cluster",
    "verify",
    "checkpoint_store",
    "serve_rtc_program",
    "train_held_out",
    "train_levers",
    "model_parity",
    "doctor_looks",
    "evaluate_checkpoint",
    "serve_program",
    "repo_pickle",
    "run_contents",
    "flow_cluster",
    "plan_real_size",
    "plan_tiny",
    "openpi_worker",
    "data_given",
    "export_blocks",
    "train_approximate",
    "train_delay",
    "calibrate_stages",
    "calibrate_run",
    "analyse_patterns",
    "train_step",
    "model_quantize",
    "analyse_source",
    "predict",
    "train_held_out_composed",
    "serve_check",
    "cli",
    "export_adapters",
    "strangers",
    "export_pytorch",
    "evaluate_wrong",
    "serve_engine",
    "export_actions",
    "evaluate_verb",
    "run_strangers",
    "model_pi05",
    "checkpoint_export",
    "data_loader",
    "evaluate_measure",
    "train_moments",
    "serve_open",
    "analyse_curve",
    "openpi_run",
    "probe_nvml",
    "serve_rtc_model",
    "serve_openpi",
    "show_text",
    "data_fetch",
    "supervise",
    "report_page",
    "data_mixture",
    "evaluate_verdict",
    "analyse_verb",
    "probe_nvml_errors",
)


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    """Refuses a test that leaves the process in another directory, or with other variables.

    Later tests would start programs there, and with these.
    """
    directory, variables = os.getcwd(), dict(os.environ)
    yield
    names = {*variables, *os.environ} - {"PYTEST_CURRENT_TEST"}
    changed = {name for name in names if os.environ.get(name) != variables.get(name)}
    after = os.getcwd()
    os.chdir(directory)
    for name in changed:
        os.environ.pop(name, None)
        if name in variables:
            os.environ[name] = variables[name]
    assert after == directory, f"the test left the process in {after}"
    changed -= {_ALLOWANCE, *_OF_JAX}
    assert not changed, f"the test left variables changed: {changed}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of long files first; within a file their order stays."""
    rank = {f"test_{name}": number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(_LONG)))


def pytest_runtest_teardown(nextitem: pytest.Item | None, item: pytest.Item) -> None:
    """After each file, leaves what is alive to no later collection: a save asks for one, of all objects.

    A full collection of this process takes a second where many programs are kept, and finds nothing in them.
    """
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_collection_finish() -> None:
    """The same for what was imported to collect the tests."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Removes what the session shared; processes that a test has killed may have left half of a program."""
    if not _IS_WORKER:
        shutil.rmtree(os.environ["PYTEST_SHARED"], ignore_errors=True)
