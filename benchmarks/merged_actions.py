"""Measures what merging adapters changes of the sampled actions, and what float32 changes of them anyway.

    python -m benchmarks.merged_actions [--seeds 4]

Two kinds of tiny LoRA checkpoints: "as trained", of the initializers' size with adapters at ten times their
start; and "far", where each parameter is so large that it matters by itself. Each row compares the largest
absolute differences of ten steps of sampling, all on the CPU:

    float32     merged and unmerged, both computed in float32
    weights     merged weights, rounded to float32 as a file holds them, against unmerged; both in float64
    sampling    the unmerged model in float32 against the same in float64: what the computation rounds
    one ulp     float64, after each weight moved to the next float32 up or down: what no file can be free of

Exit code 1 if `weights` is beyond 1e-5, or `float32` is, where the sampling itself is not. About two minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harness.checkpoint.merge import adapters_of, add_product
from harness.model import gemma, lora, pi05, siglip
from harness.predict.deliver import merged_model
from harness.recipe.schema import CAMERAS, Model, Recipe
from tests.support import exported

TOLERANCE = 1e-5
Params = dict[str, np.ndarray]


class _Wide:
    """jax.numpy, whose float32 is float64: the model's code names the type of its sums."""

    float32 = jnp.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)


def actor(model: Model, given: Params, dtype: type) -> Callable[[Params], np.ndarray]:
    """What makes actions of parameters, computed as `dtype`."""
    model = model.model_copy(update={"compute_dtype": np.dtype(dtype).name})
    seen = pi05.Observation(
        {name: given["images"][:, i].astype(dtype) for i, name in enumerate(CAMERAS)},
        {name: given["image_masks"][:, i] for i, name in enumerate(CAMERAS)},
        given["tokens"],
        given["token_mask"],
    )
    noise, graph = given["noise"].astype(dtype), pi05.graph_of(model)
    sample = jax.jit(lambda params: pi05.bind(graph, params).sample_actions(seen, noise, int(given["steps"])))

    def act(params: Params) -> np.ndarray:
        for module in (gemma, lora, pi05, siglip):
            module.jnp = _Wide() if dtype is np.float64 else jnp  # type: ignore[attr-defined]
        out = np.asarray(sample({path: jnp.asarray(value, dtype) for path, value in params.items()}))
        assert out.dtype == dtype, out.dtype
        return out

    return act


def merged(recipe: Recipe, params: Params) -> Params:
    """The parameters with adapters merged, as an export writes them in float32."""
    kept = {path: value.copy() for path, value in params.items() if "lora" not in path}
    for path, (first, second, scale) in adapters_of(recipe.model).items():
        add_product(kept[path], params[first], params[second], scale, path)
    return kept


def moved(params: Params, seed: int) -> Params:
    """Each number of a matrix at the next float32, up or down by chance."""
    rng = np.random.default_rng(seed)
    return {
        path: np.nextafter(
            value, np.where(rng.random(value.shape) < 0.5, np.float32(-np.inf), np.float32(np.inf))
        )
        if value.ndim > 1
        else value
        for path, value in params.items()
    }


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]
    recipe = exported.recipe_of_kind("lora")
    given, plain = exported.inputs(recipe), merged_model(recipe.model)
    one, one_wide = actor(recipe.model, given, np.float32), actor(recipe.model, given, np.float64)
    two, two_wide = actor(plain, given, np.float32), actor(plain, given, np.float64)
    checkpoints = {
        f"as trained, seed {seed}": exported.as_trained(recipe, seed) for seed in range(options.seeds)
    }
    salts = ["export", *(f"s{n}" for n in range(1, options.seeds))]
    checkpoints |= {f"far, {salt}": exported.seeded(recipe, salt) for salt in salts}
    failed = 0
    print(f"{'':22}{'largest':>9}{'float32':>10}{'weights':>10}{'sampling':>10}{'one ulp':>10}")
    for name, params in checkpoints.items():
        whole = merged(recipe, params)
        before, exact, after = one(params), one_wide(params), two_wide(whole)
        found = (
            far(before, two(whole)),
            far(after, exact),
            far(before, exact),
            max(far(after, two_wide(moved(whole, seed))) for seed in range(3)),
        )
        print(
            f"{name:22}{np.abs(before).max():9.2f}" + "".join(f"{each:10.1e}" for each in found), flush=True
        )
        failed += found[1] > TOLERANCE or (found[0] > TOLERANCE >= found[2])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
