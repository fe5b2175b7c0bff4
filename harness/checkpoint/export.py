"""Writes parameters alone: the trained ones beside a named base, or a full checkpoint with merged adapters.

Leaves are written one at a time, so that host memory holds the largest leaf and not the model.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from harness.checkpoint.chunks import directory_url, read_array
from harness.checkpoint.failures import no_space
from harness.checkpoint.files import refuse_strays
from harness.checkpoint.format import CHUNK_BYTES
from harness.checkpoint.leaves import Leaf
from harness.checkpoint.source import find_params
from harness.checkpoint.weights import (
    check_parameters,
    directory_sha256,
    is_finite,
    parameter_leaves,
    params_directories,
)
from harness.errors import HarnessError
from harness.received.files import check_stays, open_received, there
from harness.received.names import below
from harness.recipe.parameters import group_of, parameter_shapes
from harness.recipe.schema import Model
from harness.run.directory import write_atomic
from harness.run.steps import ASSETS, BASE, EXPORT, INTERRUPTED, METADATA, NORM_STATS, PARAMS, RECORD
from harness.units import MIB, format_bytes

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
    with _whole_or_nothing(
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

    openpi reads the result; it has no adapters.

        w' = w + alpha / rank · lora_a @ lora_b                   on the last two axes, in float32
        w'[n] = w[n] + alpha / rank · lora_a[n] @ Σₘ lora_b[m]    attn_vec_einsum: heads share a bottleneck

    `source` is a step directory, or a directory of `save_params_only`. `base` is where the base is now, if it
    has moved. `recipe` is written beside the result.
    Raises: HarnessError "export-exists", "export-rank", "export-nothing-to-merge", "disk-full",
    "weights-not-finite", and those of `load_params`.
    """
    directories = params_directories(source, base=base)
    leaves: dict[str, Leaf] = {}
    for directory in reversed(directories):
        leaves |= parameter_leaves(directory)
    shapes = parameter_shapes(model)
    check_parameters(source, leaves, shapes)
    adapters = _adapters(model, leaves)
    if not adapters and len(directories) == 1:
        raise HarnessError(
            "export-nothing-to-merge",
            f"{source} has no adapters: it is a full openpi checkpoint already",
            got=f"{len(leaves)} parameters, none of them of LoRA",
            need="a step of a LoRA run",
            fix=f"use {source} as it is, or copy it",
        )
    kept = [path for path in shapes if "lora" not in path]
    merged = [path for path in kept if path in adapters]
    assets = find_params(Path(source)).parent / ASSETS
    _check_assets(assets)
    need = sum(
        math.prod(shapes[path]) * (4 if path in adapters else leaves[path].dtype.itemsize) for path in kept
    )
    with _whole_or_nothing(destination, need) as target:
        write_params(target / PARAMS, _arrays(source, leaves, kept, adapters))
        _copy_assets(assets, target / ASSETS)
        body = {
            "source": [str(directory) for directory in directories],
            "sha256": [directory_sha256(directory) for directory in directories],
            "merged": merged,
            "recipe": recipe,
        }
        write_atomic(target / EXPORT, json.dumps(body, indent=2) + "\n")
    return merged


def _arrays(
    source: Path,
    leaves: Mapping[str, Leaf],
    kept: Iterable[str],
    adapters: Mapping[str, tuple[str, str, float]],
) -> Iterator[tuple[str, Array]]:
    """The `kept` parameters of `source`, one after the other, with adapters merged.

    Raises: HarnessError "weights-not-finite".
    """
    for path in kept:
        array = (
            _merged(leaves, path, *adapters[path])
            if path in adapters
            else read_array(leaves[path].store, leaves[path].dtype)
        )
        if not is_finite(array):
            raise HarnessError(
                "weights-not-finite",
                f"{source} holds NaN or infinity in {path}",
                need="finite weights",
                fix="export an earlier step of that run",
            )
        yield path, array
        # Freed before the next leaf is read, so that two are never held.
        del array


def _check_assets(assets: Path) -> None:
    """Refuses assets that are not the step's own, because an export is made to be shared.

    Raises: HarnessError "checkpoint-leads-out", "file-leaves-root".
    """
    if there(assets):
        check_stays(assets, assets.parent)
    if assets.is_dir():
        refuse_strays(assets)


def _copy_assets(assets: Path, target: Path) -> None:
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


def _adapters(model: Model, leaves: Mapping[str, Leaf]) -> dict[str, tuple[str, str, float]]:
    """Path of each adapted weight → (path of lora_a, path of lora_b, alpha / rank)."""
    found = {}
    for first in parameter_shapes(model):
        if not first.endswith("lora_a"):
            continue
        # Einsums hold `w` beside `lora_a`. The feed-forward's adapters begin with the weight's name.
        path = (
            f"{first.removesuffix('lora_a')}w" if first.endswith("/lora_a") else first.removesuffix("_lora_a")
        )
        lora = (model.action_expert if group_of(path) == "expert" else model.paligemma).lora
        rank = leaves[first].shape[-1]
        if lora is None or lora.rank != rank:
            raise HarnessError(
                "export-rank",
                f"{first} has rank {rank}, the recipe says {lora.rank if lora else 'no adapters'}",
                fix="export with the recipe that the run was trained with",
            )
        found[path] = (
            first,
            f"{first.removesuffix('a')}b",
            lora.feed_forward_scale() if "/mlp" in path else lora.alpha / lora.rank,
        )
    return found


def _merged(leaves: Mapping[str, Leaf], path: str, first: str, second: str, scale: float) -> Array:
    """w + scale · a @ b in float32, layer by layer.

    The product of a whole stack would double a 4.5 GiB leaf.
    """
    w, a, b = (read_array(leaves[name].store, np.dtype(np.float32)) for name in (path, first, second))
    if "/attn_vec_einsum" in path:
        # attn_vec_einsum sums over heads, and so does each of its two factors: x·A has no head left to select
        # a B by (harness/model/lora.py).
        b = b.sum(axis=1, keepdims=True)  # [L, 1, R, D]
    for layer in range(w.shape[0]):
        w[layer] += scale * np.matmul(a[layer], b[layer])
    return w


@contextlib.contextmanager
def _whole_or_nothing(destination: Path, need_bytes: int) -> Iterator[Path]:
    """Yields a directory that becomes `destination` if the block succeeds, and is removed if it fails.

    Its name is new, so no other data is overwritten or removed. What a killed export leaves has INTERRUPTED
    in its name.
    """
    if there(destination):
        raise HarnessError(
            "export-exists",
            f"{destination} is there already",
            need="a new directory",
            fix="name another destination, or remove it",
        )
    temporary = destination.with_name(f"{destination.name}{INTERRUPTED}-{secrets.token_hex(8)}")
    made = False
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        need, free = need_bytes + need_bytes // 20 + MIB, shutil.disk_usage(destination.parent).free
        if free < need:
            raise _disk_full(destination, f"{format_bytes(free)} free", f"{format_bytes(need)} free")
        temporary.mkdir()
        made = True
        yield temporary
        temporary.rename(destination)
    except (OSError, ValueError) as error:
        if no_space(str(error)):
            raise _disk_full(destination, None, None) from error
        raise HarnessError(
            "export-failed",
            f"cannot write {destination}: {str(error)[:300]}",
            need="a writable directory on a working disk",
            fix="name another destination",
        ) from error
    finally:
        if made:
            shutil.rmtree(temporary, ignore_errors=True)


def _disk_full(destination: Path, got: str | None, need: str | None) -> HarnessError:
    return HarnessError(
        "disk-full",
        f"no space for {destination}; nothing was left there",
        got=got,
        need=need,
        fix=f"free space in {destination.parent}, or name another disk",
    )
