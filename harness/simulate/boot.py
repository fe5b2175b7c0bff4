"""How a process of the simulator is started: in its own Python, with a clean environment and no secrets.

`$HARNESS_SIMULATOR` names the virtual environment with mujoco, robosuite and LIBERO. Of the harness's own
packages that Python sees nothing but `harness` itself, which the bootstrap below hands to it by its path.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from harness.errors import HarnessError

VARIABLE = "HARNESS_SIMULATOR"
PACKAGE = Path(__file__).parents[1]
# What is handed on. All else stays behind: tokens and keys are in variables of any name.
_KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "NUMBA_CACHE_DIR",
    "XDG_RUNTIME_DIR",
)
_KEPT_PREFIXES = (
    "MUJOCO_",
    "EGL_",
    "__EGL_",
    "__GLX_",
    "LIBGL_",
    "MESA_",
    "GALLIUM_",
    "CUDA_VISIBLE",
    "NVIDIA_",
)
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "LP_NUM_THREADS",
)
# LIBERO takes the paths of its files from a config.yaml in this directory, if there is one. There is none.
_NO_CONFIG = "/nonexistent"

_BOOTSTRAP = """
import importlib, importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "harness", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]]
)
sys.modules["harness"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["harness"])
importlib.import_module(sys.argv[2]).main()
"""


def python(environ: Mapping[str, str] | None = None) -> Path:
    """The simulator's Python.

    Raises: HarnessError "simulator-missing".
    """
    environ = os.environ if environ is None else environ
    named = environ.get(VARIABLE, "")
    found = Path(named).expanduser() / "bin" / "python" if named else None
    if found is None or not os.access(found, os.X_OK):
        raise HarnessError(
            "simulator-missing",
            "there is no environment with the simulator",
            got=f"{VARIABLE}={named}" if named else f"no {VARIABLE}",
            need="a virtual environment with the packages of docker/lock/simulator.txt",
            fix="docker compose run --rm evaluate …, or without an engine ci/local evaluate …",
        )
    return found


def environment(environ: Mapping[str, str] | None = None, *, threads: int = 1) -> dict[str, str]:
    """The variables of a process of the simulator: no secret, `threads` in each library."""
    environ = os.environ if environ is None else environ
    kept = {key: value for key, value in environ.items() if key in _KEPT or key.startswith(_KEPT_PREFIXES)}
    return {**kept, **dict.fromkeys(_THREADS, str(threads)), "LIBERO_CONFIG_PATH": _NO_CONFIG}


def command(module: str = "harness.simulate.worker", environ: Mapping[str, str] | None = None) -> list[str]:
    """The command that runs `main()` of a module of this room in the simulator's Python.

    Raises: HarnessError "simulator-missing".
    """
    # -I: no PYTHONPATH, no user's packages, nothing of the working directory.
    return [str(python(environ)), "-I", "-c", _BOOTSTRAP, str(PACKAGE), module]


def start(
    log: IO[Any] | int, environ: Mapping[str, str] | None = None, *, threads: int = 1
) -> subprocess.Popen[bytes]:
    """A worker, whose stdin and stdout are for frames; what its libraries print goes to `log`.

    A signal to the terminal's group does not reach it. Raises: HarnessError "simulator-missing"; OSError.
    """
    return subprocess.Popen(
        command(environ=environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment(environ, threads=threads),
        cwd="/",
        start_new_session=True,
    )
