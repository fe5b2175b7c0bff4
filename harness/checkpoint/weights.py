"""Loads parameters: released weights, openpi's checkpoints and ours; safetensors of openpi and LeRobot.

Each leaf goes directly into its sharding and dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import jax
import numpy as np

from harness.checkpoint.files import refuse_strays
from harness.checkpoint.leaves import Leaf, open_leaves, read_leaves
from harness.checkpoint.source import (
    base_circular,
    find_params,
    named_base,
    parameter_names,
    refusal,
    refuse_codes,
)
from harness.checkpoint.tensors import tensor_files, tensor_leaves
from harness.download.cache import WEIGHTS, fetch_tree, is_remote
from harness.errors import HarnessError
from harness.received.consent import Named
from harness.run.directory import sha256_directory, sha256_files
from harness.run.steps import BASE

Structs = Mapping[str, jax.ShapeDtypeStruct]
Progress = Callable[[int, int], None]
# A run may start from another run's trained parameters, and that run from those of a third.
_DEEPEST_BASE = 8


class Loaded(NamedTuple):
    """The loaded `params`, in the order in which they were expected.

    `sources` are the `params` directories that were read.
    """

    params: dict[str, jax.Array]
    restored: list[str]
    initialized: list[str]
    leaves: dict[str, dict[str, int]]
    sources: list[Path]


def load_params(
    source: Path | str,
    expected: Structs,
    *,
    initialize: Callable[[str, jax.ShapeDtypeStruct], jax.Array] | None = None,
    allow_missing: Callable[[str], bool] = lambda path: "lora" in path,
    base: Path | str | None = None,
    keep: Callable[[str, jax.Array], Any] = lambda _, array: array,
    progress: Progress | None = None,
) -> Loaded:
    """Every expected parameter, read from `source`, or made by `initialize` if it is missing and may be.

    `source` is a `params` directory or a step directory; local, gs:// or https://. Or it is a local file or
    directory of openpi's PyTorch trainer or of LeRobot (see `harness.checkpoint.tensors`).

    If it holds only what was trained, its base is read too. `base` is where the base is now, if it has moved.
    `keep` reduces each array to what is kept of it, before the next one is read.
    Raises: HarnessError "weights-mismatch", which lists every missing, unexpected and mis-shaped parameter,
    "weights-not-finite", "weights-missing", "weights-not-a-checkpoint", "weights-step-needed",
    "checkpoint-interrupted", "checkpoint-damaged", "weights-base-differs", and those of
    `harness.download.cache`.
    """
    directories = params_directories(source, base=base, progress=progress)
    leaves: dict[str, Leaf] = {}
    for directory in reversed(directories):
        leaves |= parameter_leaves(
            directory, {path: tuple(struct.shape) for path, struct in expected.items()}
        )
    missing = [
        path for path in expected if path not in leaves and initialize is not None and allow_missing(path)
    ]
    check_parameters(
        source,
        leaves,
        {path: tuple(struct.shape) for path, struct in expected.items() if path not in missing},
    )

    found = {path: expected[path] for path in expected if path in leaves}
    total, done, bad = sum(leaves[path].nbytes for path in found), 0, []

    def look(path: str, array: np.ndarray[Any, Any]) -> None:
        nonlocal done
        if not is_finite(array):
            bad.append(path)
        done += leaves[path].nbytes
        if progress is not None:
            progress(done, total)

    params: dict[str, Any] = {path: keep(path, array) for path, array in read_leaves(leaves, found, look)}
    if bad:
        raise _not_finite(source, bad)
    params |= {path: initialize(path, expected[path]) for path in missing} if initialize is not None else {}
    return Loaded(
        {path: params[path] for path in expected},
        list(found),
        missing,
        {path: {"bytes": leaves[path].nbytes} for path in found},
        directories,
    )


def parameter_leaves(location: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Leaf]:
    """Parameter path → leaf of a `params` directory, or of PyTorch's files.

    The paths lack the outer "params/" and the "/value" of flax's state. `shapes` are the model's, by which
    tensors of PyTorch are put together; adapters among them are left out there.
    """
    if location.is_file():
        found = tensor_leaves(location, shapes)
        return {path: Leaf(path, tensors.shape, dtype, tensors) for path, (dtype, tensors) in found.items()}
    leaves = open_leaves(location)
    return {name: leaves[path] for path, name in parameter_names(leaves).items()}


def directory_sha256(directory: Path, stop: Event | None = None) -> str:
    """sha256 over the names and contents of the files of a `params` directory, or of PyTorch's files.

    Raises: HarnessError "checkpoint-leads-out"; CancelledError once `stop` is set.
    """
    if directory.is_file():
        return sha256_files(directory.parent, tensor_files(directory), stop)
    refuse_strays(directory)
    return sha256_directory(directory, stop)


@contextlib.contextmanager
def digests_beside(locations: list[Path]) -> Iterator[Callable[[], list[str]]]:
    """Yields what waits for the `directory_sha256` of each location, which a thread makes during the block.

    `locations` are those of `params_directories`. It hashed each base and compared it with what the weights
    above it name, so that digest is taken. Hashing what was read takes as long as reading it. What fails
    there is raised by the wait.
    """
    stop = Event()

    def digests() -> list[str]:
        named = [None, *(named_base(above.parent) for above in locations[:-1])]
        return [
            directory_sha256(location, stop) if base is None else base.sha256
            for location, base in zip(locations, named, strict=True)
        ]

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(digests)
        try:
            yield made.result
        finally:
            stop.set()


def is_finite(array: np.ndarray[Any, Any]) -> bool:
    """Whether no element is NaN or infinite."""
    flat = array.reshape(-1)
    # In blocks, so that the mask of a 4 GiB leaf does not take 1 GiB.
    return all(bool(np.isfinite(flat[start : start + 2**22]).all()) for start in range(0, flat.size, 2**22))


def params_directories(
    source: Path | str,
    *,
    base: Path | str | None = None,
    progress: Progress | None = None,
    above: tuple[Path, ...] = (),
) -> list[Path]:
    """The location of `source` as `find_params` gives it, then its base's if it holds only what was trained.

    `base` is where the base is now, if it has moved. `above` are the directories whose base `source` is.
    Raises: HarnessError "weights-base-circular", "weights-base-differs", and those of `find_params` and
    `named_base`.
    """
    return _directories(source, base, progress, WEIGHTS, above)


def _directories(
    source: Path | str,
    base: Path | str | None,
    progress: Progress | None,
    named: Named,
    above: tuple[Path, ...],
) -> list[Path]:
    path = (
        fetch_tree(str(source), progress=progress, named=named).path
        if is_remote(str(source))
        else Path(source)
    )
    found = find_params(path)
    recorded = named_base(found.parent)
    if recorded is None:
        return [found]
    if found.resolve() in above or len(above) >= _DEEPEST_BASE:
        raise base_circular(found)
    by_the_record = Named(str(found.parent / BASE), "--base DIR")
    lower = _directories(base or recorded.source, None, progress, by_the_record, (*above, found.resolve()))
    sha256 = directory_sha256(lower[0])
    if sha256 != recorded.sha256:
        raise HarnessError(
            "weights-base-differs",
            f"{found} holds only parameters that were trained on top of {recorded.source}, and {lower[0]}"
            " has other bytes",
            got=sha256,
            need=recorded.sha256,
            fix="give the weights that the run started from, or a full checkpoint of the run",
        )
    return [found, *lower]


def check_parameters(
    source: Path | str, leaves: Mapping[str, Leaf], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks that the leaves are those of a model with these shapes.

    Raises: HarnessError "weights-are-adapters", or "weights-mismatch", which lists every missing, unexpected
    and mis-shaped parameter.
    """
    error = refusal(source, {path: leaf.shape for path, leaf in leaves.items()}, shapes)
    if error is not None:
        raise error
    refuse_codes(source, {path: leaf.dtype.name for path, leaf in leaves.items() if path in shapes})


def _not_finite(source: Path | str, bad: list[str]) -> HarnessError:
    return HarnessError(
        "weights-not-finite",
        f"{source} holds NaN or infinity in {', '.join(sorted(bad))}",
        got=f"{len(bad)} parameters that are not finite",
        need="finite weights",
        fix="take an earlier step of that run, or download the weights again",
    )
