"""Tiny checkpoints with parameters of a seed, far from zero, for tests and benchmarks of exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from harness.checkpoint.export import write_params
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Recipe
from tests.support.parity import leaf
from tests.support.tiny import tiny

_WRITTEN = TemporaryDirectory(prefix="checkpoints-of-tests-")
# Rank and alpha of each expert, so that neither scale is 1 and they differ.
ADAPTERS = ("model.paligemma.lora={rank: 4, alpha: 10.0}", "model.action_expert.lora={rank: 2, alpha: 1.0}")


def recipe_of_kind(kind: str, *overrides: str) -> Recipe:
    """The tiny recipe, of a full run or with adapters of two ranks."""
    return tiny(*(("train.trained=lora", *ADAPTERS) if kind == "lora" else ()), *overrides)


def seeded(recipe: Recipe, salt: str = "export") -> dict[str, np.ndarray]:
    """float32 parameters by a rule that needs only the path: each of them matters for the actions."""
    return _seeded(parameter_shapes(recipe.model), salt)


def _seeded(shapes: Mapping[str, Sequence[int]], salt: str) -> dict[str, np.ndarray]:
    params = {}
    for path, shape in shapes.items():
        value = (0.3 if "lora" in path else 0.1) * leaf(salt, path, tuple(shape))
        params[path] = value + 1 if path.startswith("PaliGemma/img") and path.endswith("/scale") else value
    return params


@cache
def _written_once(shapes: str) -> Path:
    """The item of `seeded` parameters of these shapes: to write one takes a second, to copy it a tenth."""
    item = Path(_WRITTEN.name) / str(len(list(Path(_WRITTEN.name).iterdir())))
    write_params(item, _seeded(json.loads(shapes), "export").items())
    return item


def as_trained(recipe: Recipe, seed: int) -> dict[str, np.ndarray]:
    """float32 parameters as after some training: of the initializers' size, adapters ten times their start.

    What starts as zeros is moved by 0.05.
    """
    import jax

    from harness.model.pi05 import initialize

    rng = np.random.RandomState(seed)
    params = {}
    for path, start in initialize(recipe.model, jax.random.key(seed)).items():
        value = np.asarray(start, np.float32) * np.float32(10 if "lora" in path else 1)
        if not value.any():
            value += np.float32(0.05) * rng.standard_normal(value.shape).astype(np.float32)
        params[path] = value
    return params


def write_checkpoint(
    step: Path,
    recipe: Recipe,
    *,
    asset_id: str | None = None,
    params: dict[str, np.ndarray] | None = None,
) -> Path:
    """A step directory with params, statistics and a record, as far as an export reads them."""
    if params is None:
        shutil.copytree(_written_once(json.dumps(parameter_shapes(recipe.model))), step / "params")
    else:
        write_params(step / "params", params.items())
    stats = {
        key: {
            "mean": [0.1 * i for i in range(width)],
            "std": [1.0 + i for i in range(width)],
            "q01": [-1.0 - i for i in range(width)],
            "q99": [1.5 + i for i in range(width)],
        }
        for key, width in (("state", 8), ("actions", 7))
    }
    file = step / "assets" / (asset_id or recipe.data.asset_id) / "norm_stats.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"norm_stats": stats}))
    record = {"step": 5, "recipe": recipe.model_dump(mode="json"), "data": {"dataset_sha256": "ab" * 32}}
    (step / "harness").mkdir()
    (step / "harness/record.json").write_text(json.dumps(record))
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps({"commit_timestamp_nsecs": 1}))
    return step


def inputs(recipe: Recipe, seed: int = 3) -> dict[str, np.ndarray]:
    """Images, masks, prompt and noise of two samples; the second sample's last camera is absent."""
    rng = np.random.default_rng(seed)
    model = recipe.model
    size, tokens = model.image_size, model.prompt_tokens
    return {
        "images": rng.uniform(-1, 1, (2, 3, size, size, 3)).astype(np.float32),
        "image_masks": np.array([[True, True, True], [True, True, False]]),
        "tokens": rng.integers(0, model.vocab_size, (2, tokens)).astype(np.int32),
        "token_mask": np.arange(tokens)[None] < np.array([[tokens - 3], [5]]),
        "noise": rng.standard_normal((2, model.action_horizon, model.action_dim)).astype(np.float32),
        "steps": np.int64(10),
    }
