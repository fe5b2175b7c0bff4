"""What the tests of a session share, in all its workers: a cache of plans, and runs that are only read."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from tests.support.real_runs import harness, small

SHARED = Path(os.environ["PYTEST_SHARED"])
# A plan is made once for each recipe, as on a person's machine.
CACHE = SHARED / "cache"


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The directory `name`, which the first test that asks for it fills with `make`. Nobody may change it."""
    path, done = SHARED / name, SHARED / f"{name}.done"
    with (SHARED / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(path)
            done.touch()
    return path


def whole_run() -> Path:
    """The small run that nothing interrupted, with wandb's files and a trace of two steps.

    That tests compare its bytes with those of other runs shows that neither changes what is trained.
    """
    return made_once("whole", lambda run: harness(CACHE, *small(run), "--profile=2", WANDB_MODE="offline"))
