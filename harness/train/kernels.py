"""Keeps the kernels that XLA chose by timing on a GPU, so that a resume and a verification run the same ones.

Two runs of one program on one card may otherwise choose different kernels, which round differently. With
--xla_gpu_deterministic_ops XLA times nothing and takes the first kernel that fits. The choice is kept in this
case too.
Source: XLA docs/determinism.md and docs/persisted_autotuning.md; the flags are checked against jaxlib in
tests/test_train_kernels.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harness.received.files import open_received, there
from harness.run.directory import KERNELS, RunDir, sha256_file
from harness.run.peers import ALONE, Peers

T = TypeVar("T")

# Parts of XLA's messages when the file lacks a choice that a program needs, or when the file cannot be read.
_NOT_THERE = ("autotun", "No cached config", "AOT result")


_WRITE = "xla_gpu_dump_autotune_results_to"
# XLA would let the processes share the timing, and each wait for the others' part of it.
_BY_ITSELF = {"xla_gpu_shard_autotuning": "False"}


class Kernels(NamedTuple):
    """The kernels of a run: `sha256` of their file in the run directory; if it is None, `note` says why."""

    sha256: str | None
    note: str = ""


def compile_pinned(
    run: RunDir,
    platform: str,
    compiled: Callable[[dict[str, str]], T],
    warn: Callable[[str], None],
    *,
    name: str = KERNELS,
    peers: Peers = ALONE,
    choice: Path | None = None,
) -> tuple[T, Kernels]:
    """(result of `compiled` for XLA's options, the kernels in it).

    `name` is the file's. If the run has the file, `compiled` gets the option that loads it. If not, XLA
    chooses anew and the choice is saved in the run. A program whose kernels are not all on file (another
    plan, another card) is compiled without the file, and a warning is given.

    With `choice`, a file of the cache under a name that only this program has, a run alone takes the choice
    from there. Its options are then those of every other compilation of the program, which JAX's cache may
    have already, the plan's for one.

    Of several processes the first one chooses, and the others load what it chose: kernels that round
    differently would make other bits.
    """
    if platform != "cuda":
        return compiled({}), Kernels(None, "a CPU's kernels are not chosen by timing")
    kept, made = run.path / name, run.path / f".new-{name}"
    if peers.count == 1:
        return _compiled(run, kept, made, compiled, warn, choice)

    def by_itself(options: dict[str, str]) -> T:
        return compiled(options | _BY_ITSELF)

    if peers.index == 0:
        found = _compiled(run, kept, made, by_itself, warn)
        peers.agree("compiled")
        return found
    peers.agree("")
    if there(kept):
        return _compiled(run, kept, made, by_itself, warn)
    return by_itself({}), Kernels(None, f"process 0 has written no {name}")


def _compiled(
    run: RunDir,
    kept: Path,
    made: Path,
    compiled: Callable[[dict[str, str]], T],
    warn: Callable[[str], None],
    choice: Path | None = None,
) -> tuple[T, Kernels]:
    if there(kept):
        # XLA opens the file by its name, so first check that it is a file of the run.
        open_received(kept, run.path).close()
        known = {"xla_gpu_load_autotune_results_from": str(kept.absolute())}
        try:
            return compiled(known | {"xla_gpu_require_complete_aot_autotune_results": "True"}), Kernels(
                sha256_file(kept)
            )
        except Exception as error:
            if not _is_about_kernels(error):
                raise
            warn(
                f"{kept} does not hold every kernel of this program, so XLA chose some anew: numbers may"
                " differ in their last digits"
            )
            return compiled({}), Kernels(None, f"{kept.name} is of another program or card")
    # XLA would follow a link of this name.
    made.unlink(missing_ok=True)
    if choice is not None and (options := written_to(choice)):
        step = compiled(options)
        if choice.is_file():
            shutil.copyfile(choice, made)
            return step, _keep(made, kept)
        # The program came from the cache, and the choice is there no more. Another option is another program.
    step = compiled({_WRITE: str(made.absolute())})
    return step, _keep(made, kept)


def written_to(choice: Path) -> dict[str, str]:
    """XLA's option that writes its choice of kernels to this file of the cache.

    None, if the cache cannot be written: that costs time, and not the program.
    """
    with contextlib.suppress(OSError):
        choice.parent.mkdir(parents=True, exist_ok=True)
        if os.access(choice.parent, os.W_OK):
            return {_WRITE: str(choice.absolute())}
    return {}


def _keep(made: Path, kept: Path) -> Kernels:
    """Renames the file only when it is whole: XLA writes it in place at the end of a compilation."""
    if not made.is_file():
        return Kernels(
            None,
            "XLA wrote no choice of kernels (the compiled program came from a cache, or nothing was timed)",
        )
    with made.open("rb") as file:
        os.fsync(file.fileno())
    made.replace(kept)
    return Kernels(sha256_file(kept))


def _is_about_kernels(error: Any) -> bool:
    return any(words in str(error) for words in _NOT_THERE)
