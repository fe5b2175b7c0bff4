"""Checkpoints made for tests without Orbax and openpi.

Their items are written by tensorstore. Their steps can have any shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Expert, Lora

# A layer that has an adapter where there is LoRA.
Q = "PaliGemma/llm/layers/attn/q_einsum"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_item(
    directory: Path,
    arrays: dict[str, Any],
    *,
    zarr3: bool = False,
    ocdbt: bool = True,
    empty: tuple[str, ...] = (),
) -> None:
    """An Orbax item made without Orbax: path → an array, or (shape, dtype) for one with no data at all."""
    directory.mkdir(parents=True)
    base = directory.absolute().as_uri() + "/"
    for path, value in arrays.items():
        name = path.replace("/", ".")
        declared = isinstance(value, tuple)
        shape, dtype = value if declared else (value.shape, value.dtype.name)
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"} if ocdbt else f"{base}{name}/"
        options = {"driver": "zarr3" if zarr3 else "zarr", "kvstore": kvstore}
        store = ts.open(options, create=True, shape=shape, dtype=ts.dtype(dtype)).result()
        if not declared:
            store.write(value).result()
    entries = [(path, "jax.Array") for path in arrays] + [(path, "None") for path in empty]
    tree = {
        str(tuple(path.split("/"))): {
            "key_metadata": [{"key": key, "key_type": 2} for key in path.split("/")],
            "value_metadata": {"value_type": kind},
        }
        for path, kind in entries
    }
    promised = not any(isinstance(value, tuple) for value in arrays.values())
    (directory / "_METADATA").write_text(
        json.dumps(
            {"tree_metadata": tree, "use_zarr3": zarr3, "store_array_data_equal_to_fill_value": promised}
        )
    )


def write_step(
    step: Path, params: dict[str, Any], trained: list[str] | None = None, *, ema: bool = False
) -> None:
    """A whole step in openpi's layout; no train_state when `trained` is None."""
    write_item(step / "params", {f"params/{path}/value": value for path, value in params.items()})
    (step / "assets").mkdir()
    if trained is None:
        return
    state = {f"opt_state/1/0/mu/{path}/value": params[path] for path in trained}
    state |= {f"params/{path}/value": value for path, value in params.items()} if ema else {}
    write_item(step / "train_state", state, empty=("ema_params", "opt_state/0"))
    handlers = dict.fromkeys(("assets", "params", "train_state"), "handler")
    (step / "_CHECKPOINT_METADATA").write_text(
        json.dumps({"item_handlers": handlers, "commit_timestamp_nsecs": 1})
    )


def shapes_of(*, paligemma: int | None, expert: int | None) -> dict[str, Any]:
    """Declared arrays of the tiny model with adapters of these ranks."""
    model = load_recipe("smoke").model
    ranks = {"paligemma": paligemma, "action_expert": expert}
    parts = {
        name: Expert(variant="dummy", lora=Lora(rank=rank, alpha=rank) if rank else None)
        for name, rank in ranks.items()
    }
    return {
        path: (shape, "float32") for path, shape in parameter_shapes(model.model_copy(update=parts)).items()
    }
