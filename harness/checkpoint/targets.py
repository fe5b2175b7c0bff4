"""Exports a checkpoint for another program: openpi in JAX or PyTorch, or LeRobot. PyTorch is not needed.

    openpi-jax       params/, assets/
    openpi-pytorch   model.safetensors, config.json, assets/
    lerobot          model.safetensors, config.json, policy_preprocessor.json, policy_postprocessor.json, and
                     the statistics of both

Beside each: README.md, the model card, and harness/export.json. All of it is there, or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from harness.artifacts import DimensionStats
from harness.checkpoint.blocks import Want, blocks
from harness.checkpoint.card import model_card
from harness.checkpoint.export import check_assets, copy_assets, write_params
from harness.checkpoint.lerobot_files import write_policy_files
from harness.checkpoint.merge import Array, Merging, arrays
from harness.checkpoint.pytorch import POLICY_CONFIG
from harness.checkpoint.pytorch_names import PREFIX, UNUSED_HEAD, Program, parts_of, tensor_shapes
from harness.checkpoint.rows import Rows, plain_rows, rows_of, unit_of
from harness.checkpoint.tensor_writer import Dtype, Planned, Progress, cast, write_rows
from harness.checkpoint.tensors import WEIGHTS_FILE
from harness.checkpoint.weights import digests_beside
from harness.checkpoint.whole import refuse_inside, whole_or_nothing
from harness.errors import HarnessError
from harness.received.names import below
from harness.recipe.schema import Recipe
from harness.run.directory import sha256_directory, write_atomic
from harness.run.steps import ASSETS, EXPORT, NORM_STATS, PARAMS

Target = Literal["openpi-jax", "openpi-pytorch", "lerobot"]
TARGETS: tuple[Target, ...] = get_args(Target)
# What a check of the written file gives, to be stored with it.
Check = Callable[[Path], dict[str, Any]]


class Order(NamedTuple):
    """What is exported, and how.

    `stats` are the statistics that the weights were trained with; `facts` go into the model card. `check` is
    called with the directory before it gets its name, and raises if the file does not act as the source.
    """

    target: Target
    recipe: Recipe
    assets: Path
    stats: Mapping[str, DimensionStats]
    dtype: Dtype | None = None
    facts: Mapping[str, Any] | None = None
    check: Check | None = None
    progress: Progress | None = None


def export_for(opened: Merging, destination: Path, order: Order) -> dict[str, Any]:
    """What was written to `destination`, as harness/export.json says it.

    Raises: HarnessError "export-exists", "disk-full", "export-failed", "weights-not-finite",
    "checkpoint-damaged", "statistics-needed", and those of the check.
    """
    refuse_inside(destination, opened.locations)
    check_assets(order.assets)
    if order.target == "lerobot" and "actions" not in order.stats:
        raise _no_statistics(opened.source, order)
    itemsize = None if order.dtype is None else np.dtype(order.dtype).itemsize
    need = opened.nbytes(itemsize if order.target == "openpi-jax" else itemsize or 4)
    with (
        whole_or_nothing(destination, need + _unused_bytes(order)) as directory,
        digests_beside(opened.locations) as sha256,
    ):
        written = _WRITERS[order.target](opened, directory, order)
        body = {
            "target": order.target,
            "dtype": order.dtype if order.target == "openpi-jax" else order.dtype or "float32",
            "source": [str(location) for location in opened.locations],
            "sha256": sha256(),
            "merged": opened.merged,
            "recipe": order.recipe.model_dump(mode="json"),
            **written,
        }
        if order.facts and "widths" in order.facts:
            # Of a mixture, so that an export of this export knows them.
            body["widths"] = order.facts["widths"]
        body["check"] = None if order.check is None else order.check(directory)
        write_atomic(directory / EXPORT, json.dumps(body, indent=2) + "\n")
        write_atomic(directory / "README.md", model_card(body, order.facts or {}))
    return body


def _write_jax(opened: Merging, directory: Path, order: Order) -> dict[str, Any]:
    write_params(directory / PARAMS, _told(_in_type(opened, order.dtype), opened, order))
    _write_assets(directory / ASSETS, order)
    return {"files": {PARAMS: {"sha256": sha256_directory(directory / PARAMS)}}}


def _in_type(opened: Merging, dtype: Dtype | None) -> Iterator[tuple[str, Array]]:
    for path, array in arrays(opened):
        yield path, array if dtype is None else cast(array, np.dtype(dtype))


def _told(given: Iterator[tuple[str, Array]], opened: Merging, order: Order) -> Iterator[tuple[str, Array]]:
    """The same arrays; the progress is told when each was taken."""
    total, done = opened.nbytes(None if order.dtype is None else np.dtype(order.dtype).itemsize), 0
    for path, array in given:
        yield path, array
        done += array.nbytes
        if order.progress is not None:
            order.progress(done, total)


def _write_pytorch(opened: Merging, directory: Path, order: Order) -> dict[str, Any]:
    file = _write_tensors(opened, directory, order, "openpi-pytorch")
    model = order.recipe.model
    # openpi's converter leaves these beside the weights; openpi itself reads its own configuration.
    config = {
        "action_dim": model.action_dim,
        "action_horizon": model.action_horizon,
        "paligemma_variant": model.paligemma.variant,
        "action_expert_variant": model.action_expert.variant,
        "precision": order.dtype or "float32",
    }
    write_atomic(directory / POLICY_CONFIG, json.dumps(config, indent=2) + "\n")
    _write_assets(directory / ASSETS, order)
    return {"files": file}


def _write_assets(target: Path, order: Order) -> None:
    """Copies the source's assets. If it has none, as LeRobot's, its statistics are written in their form."""
    if order.assets.is_dir():
        copy_assets(order.assets, target)
    elif order.stats:
        body = {key: one.model_dump(mode="json", exclude_none=True) for key, one in order.stats.items()}
        file = below(target, order.recipe.data.asset_id, "data.asset_id") / NORM_STATS
        write_atomic(file, json.dumps({"norm_stats": body}, indent=2) + "\n")


def _write_lerobot(opened: Merging, directory: Path, order: Order) -> dict[str, Any]:
    file = _write_tensors(opened, directory, order, "lerobot")
    write_policy_files(directory, order.recipe, order.stats, order.dtype or "float32")
    return {"files": file}


def _write_tensors(opened: Merging, directory: Path, order: Order, program: Program) -> dict[str, Any]:
    dtype: Dtype = order.dtype or "float32"
    model = order.recipe.model
    planned = [Planned(name, shape, dtype) for name, shape in tensor_shapes(model, program).items()]
    written = write_rows(
        directory / WEIGHTS_FILE, planned, _tensors(opened, order, program), progress=order.progress
    )
    return {WEIGHTS_FILE: {"bytes": written.nbytes, "sha256": written.sha256, "tensors": len(planned)}}


def _tensors(opened: Merging, order: Order, program: Program) -> Iterator[Rows]:
    """The rows of each tensor of the file, in the order of our parameters."""
    parts, shapes, prefix = parts_of(opened.shapes), opened.shapes, PREFIX[program]
    for block in blocks(opened, [Want(path, unit_of(each, shapes[path])) for path, each in parts.items()]):
        for part, rows in rows_of(parts[block.path], shapes[block.path], block.start, block.values):
            yield rows._replace(name=f"{prefix}{part.name}")
            del rows
        # A whole leaf is freed before the next one is taken.
        del block
    head = f"{prefix}{UNUSED_HEAD}"
    # One zero, seen at each index.
    yield plain_rows(head, np.broadcast_to(np.float32(0), tensor_shapes(order.recipe.model, program)[head]))


def _unused_bytes(order: Order) -> int:
    """Bytes of what a file of PyTorch has and the model does not."""
    if order.target == "openpi-jax":
        return 0
    rows, columns = tensor_shapes(order.recipe.model, order.target)[f"{PREFIX[order.target]}{UNUSED_HEAD}"]
    return rows * columns * np.dtype(order.dtype or "float32").itemsize


def _no_statistics(source: Path, order: Order) -> HarnessError:
    return HarnessError(
        "statistics-needed",
        f"{source} holds no statistics of {order.recipe.data.asset_id!r}, and LeRobot's processors need them",
        got="no statistics of the actions",
        need="a step that was saved by training, or data.asset_id as it was trained",
        fix="export a step of a run, or --set data.asset_id=NAME of the statistics in its assets",
    )


_WRITERS: dict[Target, Callable[[Merging, Path, Order], dict[str, Any]]] = {
    "openpi-jax": _write_jax,
    "openpi-pytorch": _write_pytorch,
    "lerobot": _write_lerobot,
}
