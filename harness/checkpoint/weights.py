"""Loads openpi's parameters: released weights, openpi's checkpoints and ours, each leaf straight into its sharding and dtype."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from harness.checkpoint.item import METADATA
from harness.checkpoint.leaves import BASE, Leaf, open_leaves, read_leaves
from harness.checkpoint.scan import INTERRUPTED
from harness.consent import Named
from harness.download import WEIGHTS, fetch_tree, is_remote
from harness.errors import HarnessError
from harness.rundir import sha256_directory

Structs = Mapping[str, jax.ShapeDtypeStruct]
Progress = Callable[[int, int], None]


class Loaded(NamedTuple):
    """`params` in the order of what was expected; `sources` are the `params` directories it came from."""

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
    """Every expected parameter: read from `source`, or made by `initialize` where it is missing and may be.

    `source` is a `params` directory, a step directory, or one that holds only what was trained (its base is then read
    too, from `base` when it has moved there); local, gs:// or https://. `keep` makes of each array what is kept of it, before the next
    one is read.
    Raises: HarnessError "weights-mismatch" that lists every missing, unexpected and mis-shaped parameter,
    "weights-not-finite", "weights-missing", "weights-not-a-checkpoint", "weights-step-needed", "checkpoint-interrupted",
    "checkpoint-damaged", "weights-base-differs", and those of `harness.download`.
    """
    directories = params_directories(source, base=base, progress=progress)
    leaves: dict[str, Leaf] = {}
    for directory in reversed(directories):
        leaves |= parameter_leaves(directory)
    missing = [path for path in expected if path not in leaves and initialize is not None and allow_missing(path)]
    check_parameters(source, leaves, {path: tuple(struct.shape) for path, struct in expected.items() if path not in missing})

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


def parameter_leaves(directory: Path) -> dict[str, Leaf]:
    """Parameter path → leaf of a `params` directory, without the outer "params/" and the "/value" of flax's state.

    Source: openpi src/openpi/models/model.py `restore_params`, commit 15a9616, which takes both forms.
    """
    leaves = open_leaves(directory)
    suffix = "/value" if leaves and all(path.endswith("/value") for path in leaves) else ""
    return {path.removeprefix("params/").removesuffix(suffix): leaf for path, leaf in leaves.items()}


def find_params(path: Path) -> Path:
    """The `params` directory that `path` means: itself, or the one of a step directory.

    Raises: HarnessError "weights-missing", "weights-step-needed", "checkpoint-interrupted", "weights-not-a-checkpoint".
    """
    if not path.is_dir():
        raise HarnessError(
            "weights-missing",
            f"there is no directory {path}",
            need="an openpi params or step directory, gs://… or https://…",
            fix="correct weights.source, for example --set weights.source=gs://openpi-assets/checkpoints/pi05_base/params",
        )
    if any(INTERRUPTED in part for part in (path.name, path.parent.name)) or list(path.glob(f"params{INTERRUPTED}*")):
        raise HarnessError(
            "checkpoint-interrupted",
            f"{path} is a save that was never finished",
            need="a finished checkpoint",
            fix=f"take a finished step beside it (harness inspect {path.parent} lists them)",
        )
    for candidate in (path, path / "params"):
        if (candidate / METADATA).is_file():
            return candidate
    steps = sorted((entry for entry in path.iterdir() if entry.name.isdecimal() and (entry / "params" / METADATA).is_file()), key=lambda entry: int(entry.name))
    if steps:
        raise HarnessError(
            "weights-step-needed",
            f"{path} holds several steps; say which",
            got=f"steps {', '.join(entry.name for entry in steps)}",
            need="one step directory",
            fix=f"use {steps[-1]}",
        )
    raise HarnessError(
        "weights-not-a-checkpoint",
        f"{path} is not an openpi checkpoint: there is no {METADATA} in it or in its params directory",
        got=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty directory",
        need="an Orbax params directory as openpi saves it",
        fix="give the params directory of a checkpoint (PyTorch weights must be converted to JAX first)",
    )


def fingerprint(directory: Path) -> str:
    """sha256 over the names and contents of the files of a `params` directory."""
    return sha256_directory(directory)


def is_finite(array: np.ndarray[Any, Any]) -> bool:
    """Whether no element is NaN or infinite."""
    flat = array.reshape(-1)
    # In blocks, so that the mask of a 4 GiB leaf does not take 1 GiB.
    return all(bool(np.isfinite(flat[start : start + 2**22]).all()) for start in range(0, flat.size, 2**22))


def params_directories(source: Path | str, *, base: Path | str | None = None, progress: Progress | None = None) -> list[Path]:
    """The `params` directory of `source`, then that of its base when it holds only what was trained.

    `base` says where the base is now, when it has moved.
    """
    return _directories(source, base, progress, WEIGHTS)


def _directories(source: Path | str, base: Path | str | None, progress: Progress | None, named: Named) -> list[Path]:
    path = fetch_tree(str(source), progress=progress, named=named).path if is_remote(str(source)) else Path(source)
    found = find_params(path)
    record = found.parent / BASE
    if not record.is_file():
        return [found]
    recorded = json.loads(record.read_text())
    below = _directories(base or recorded["source"], None, progress, Named(str(record), "--base DIR"))
    if fingerprint(below[0]) != recorded["sha256"]:
        raise HarnessError(
            "weights-base-differs",
            f"{found} holds only what was trained, on top of {recorded['source']}, and {below[0]} has other bytes",
            got=fingerprint(below[0]),
            need=recorded["sha256"],
            fix="give the weights that the run started from, or a full checkpoint of the run",
        )
    return [found, *below]


def check_parameters(source: Path | str, leaves: Mapping[str, Leaf], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """None, when the leaves are those of a model with these shapes.

    Raises: HarnessError "weights-mismatch" that lists every missing, unexpected and mis-shaped parameter.
    """
    lines = [f"{path} is missing" for path in sorted(shapes.keys() - leaves.keys())]
    lines += [f"{path} is unexpected" for path in sorted(leaves.keys() - shapes.keys())]
    lines += [
        f"{path} has shape {leaves[path].shape}, not {shapes[path]}" for path in sorted(shapes.keys() & leaves.keys()) if leaves[path].shape != shapes[path]
    ]
    if lines:
        raise HarnessError(
            "weights-mismatch",
            f"{source} does not hold this model's parameters: " + "; ".join(lines),
            got=f"{len(lines)} differences ({len(leaves)} parameters in the checkpoint)",
            need=f"the {len(shapes)} parameters of the recipe's model",
            fix="name weights of the same model in weights.source, or set model.* (variants, lora, vision) as they were trained",
        )


def _not_finite(source: Path | str, bad: list[str]) -> HarnessError:
    return HarnessError(
        "weights-not-finite",
        f"{source} holds NaN or infinity in {', '.join(sorted(bad))}",
        got=f"{len(bad)} parameters that are not finite",
        need="finite weights",
        fix="take an earlier step of that run, or download the weights again",
    )
