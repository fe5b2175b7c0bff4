"""Writes parameters alone: the trained ones beside a named base, or a full checkpoint with merged adapters.

Leaves are written one at a time, so that host memory holds the largest leaf and not the model.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from harness.checkpoint.files import refuse_strays
from harness.checkpoint.format import CHUNK_BYTES
from harness.checkpoint.merge import arrays, open_merging
from harness.checkpoint.source import find_params
from harness.checkpoint.stored import directory_url
from harness.checkpoint.weights import digests_beside, directory_sha256, params_directories
from harness.checkpoint.whole import refuse_inside, whole_or_nothing
from harness.errors import HarnessError
from harness.received.files import check_stays, open_received, there
from harness.received.names import below
from harness.recipe.schema import Model
from harness.run.directory import write_atomic
from harness.run.steps import ASSETS, BASE, EXPORT, METADATA, NORM_STATS, PARAMS, RECORD

# Stands beside the assets in a bucket without renames; it says nothing about the copy.
_ORBAX_MARK = "commit_success.txt"

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


def save_params_only(
    destination: Path,
    params: Mapping[str, Any],
    *,
    base: str,
    norm_stats_json: str,
    asset_id: str,
    record: dict[str, Any] | None = None,
) -> Path:
    """`destination`, after `params` (only what was trained) and the name of `base` were written to it.

    `base` is the weights that the run started from. `load_params` of the destination reads the rest from
    `base`, and refuses if `base` has other bytes by then.
    Raises: HarnessError "export-exists", "disk-full".
    """
    below(destination / ASSETS, asset_id, "data.asset_id")
    body = {"source": str(base), "sha256": directory_sha256(params_directories(base)[0])}
    with whole_or_nothing(
        destination, sum(math.prod(value.shape) * np.dtype(value.dtype).itemsize for value in params.values())
    ) as directory:
        write_params(directory / PARAMS, ((path, np.asarray(value)) for path, value in params.items()))
        write_atomic(directory / BASE, json.dumps(body, indent=2) + "\n")
        write_atomic(directory / RECORD, json.dumps(record or {}, indent=2, sort_keys=True) + "\n")
        write_atomic(directory / ASSETS / asset_id / NORM_STATS, norm_stats_json)
    return destination


def export_openpi(
    source: Path,
    destination: Path,
    *,
    model: Model,
    base: str | Path | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> list[str]:
    """Paths of the merged weights, after `params` and `assets` were written to `destination`.

    openpi reads the result; it has no adapters (see `harness.checkpoint.merge`).

    `source` is a step directory, or a directory of `save_params_only`. `base` is where the base is now, if it
    has moved. `recipe` is written beside the result.
    Raises: HarnessError "export-exists", "export-nothing-to-merge", "disk-full",
    "weights-not-finite", and those of `load_params`.
    """
    opened = open_merging(source, model, base=base)
    if not opened.adapters and len(opened.locations) == 1:
        raise HarnessError(
            "export-nothing-to-merge",
            f"{source} has no adapters: it is a full openpi checkpoint already",
            got=f"{len(opened.leaves)} parameters, none of them of LoRA",
            need="a step of a LoRA run",
            fix=f"use {source} as it is, or copy it",
        )
    refuse_inside(destination, opened.locations)
    assets = find_params(Path(source)).parent / ASSETS
    check_assets(assets)
    with (
        whole_or_nothing(destination, opened.nbytes()) as target,
        digests_beside(opened.locations) as sha256,
    ):
        write_params(target / PARAMS, arrays(opened))
        copy_assets(assets, target / ASSETS)
        body = {
            "source": [str(location) for location in opened.locations],
            "sha256": sha256(),
            "merged": opened.merged,
            "recipe": recipe,
        }
        write_atomic(target / EXPORT, json.dumps(body, indent=2) + "\n")
    return opened.merged


def check_assets(assets: Path) -> None:
    """Refuses assets that are not the step's own, because an export is made to be shared.

    Raises: HarnessError "checkpoint-leads-out", "file-leaves-root".
    """
    if there(assets):
        check_stays(assets, assets.parent)
    if assets.is_dir():
        refuse_strays(assets)


def copy_assets(assets: Path, target: Path) -> None:
    """Copies the files of `assets`. Each is opened as the file that was checked."""
    for name in refuse_strays(assets).sizes if assets.is_dir() else ():
        if Path(name).name == _ORBAX_MARK:
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with open_received(assets / name, assets) as file, (target / name).open("xb") as copy:
            shutil.copyfileobj(file, copy)


def write_params(directory: Path, arrays: Iterable[tuple[str, Array]]) -> None:
    """Writes an Orbax item {"params": {… {"value": array}}} to `directory`, one leaf after the other.

    Source: the files that orbax-checkpoint 0.11.13 and 0.12.8 write for such a tree (OCDBT, zarr v2, zstd
    level 1).
    """
    directory.mkdir(parents=True)
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    tree = {}
    for path, array in arrays:
        keys = ("params", *path.split("/"), "value")
        chunk = chunk_shape(array.shape, array.dtype.itemsize)
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": directory_url(directory), "path": ".".join(keys) + "/"},
            "metadata": {"chunks": list(chunk), "compressor": {"id": "zstd", "level": 1}},
        }
        store = ts.open(
            spec, create=True, dtype=ts.dtype(array.dtype.name), shape=array.shape, context=context
        ).result()
        store.write(array).result()
        tree[str(keys)] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {
                "value_type": "jax.Array",
                "skip_deserialize": False,
                "write_shape": list(chunk),
            },
        }
    body = {
        "tree_metadata": tree,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    write_atomic(directory / METADATA, json.dumps(body))


def chunk_shape(shape: Shape, itemsize: int) -> Shape:
    """The largest chunk of whole trailing axes that stays below CHUNK_BYTES."""
    chunk, limit = [], CHUNK_BYTES // itemsize
    for axis, size in enumerate(shape):
        rest = math.prod(shape[axis + 1 :])
        chunk.append(min(size, max(limit // max(rest, 1), 1)))
        # Below an axis that is cut to one, the limit applies to the rest alone.
        limit = limit if chunk[-1] == 1 else limit // chunk[-1]
    return tuple(chunk)
