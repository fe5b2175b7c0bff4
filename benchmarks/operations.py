"""Floating-point operations per sample of our training step and of openpi's own, counted in one run.

    python -m benchmarks.operations [--openpi CHECKOUT --python ENV/bin/python]
    python -m benchmarks.operations --compiled [CASE ...]       # minutes a case; no GPU

The matrix products of the traced step (jaxpr) are counted, two operations per multiply-add, and a loop's body
as often as the loop runs: the forward pass, the part that rematerialization repeats, and the backward pass.
Everything else, a few percent, is left out on both sides. XLA's own cost analysis counts a loop's body once,
so it cannot compare two programs that loop over layers.

--compiled counts the products that XLA leaves in the optimized program of a step for an H200 which need not
be here, each as often as its loops turn, and prints the planner's count beside it.

CHECKOUT is openpi at commit 15a9616. ENV has its pinned packages (torch, transformers and lerobot may be
missing). Without both options only our step is counted.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BATCH = 8
CAMERAS = ["base_0_rgb", "left_wrist_0_rgb"]
# What a plan computes where the longest prompt of the dataset has so many tokens; openpi pads to 200.
PROMPT_TOKENS = 48
# Of --compiled: recipe, its changes, levers.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "full": ("pi05_libero", {}, {}),
    "full-mlp": ("pi05_libero", {}, {"remat": "mlp"}),
    "full-names": ("pi05_libero", {}, {"remat": "names"}),
    "full-no-remat": ("pi05_libero", {}, {"remat": "none"}),
    "full-chunked": ("pi05_libero", {}, {"attention": "chunked"}),
    "lora": ("pi05_libero_lora", {}, {}),
    "lora-frozen-vision": ("pi05_libero_lora", {"train.trained": "lora_frozen_vision"}, {}),
    "action-expert": ("pi05_libero", {"train.trained": "action_expert"}, {}),
}


def products(jaxpr: Any) -> int:
    """Operations of the matrix products of a jaxpr and of all jaxprs inside it."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += (
                2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
            )
        elif equation.primitive.name == "conv_general_dilated":
            out, kernel = equation.outvars[0].aval.shape, equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(out) * math.prod(kernel) // kernel[features]
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                body = getattr(inner, "jaxpr", inner)
                if hasattr(body, "eqns"):
                    total += times * products(body)
    return total


def ours() -> int:
    import jax

    from harness.artifacts import Levers
    from harness.recipe.load import load_recipe
    from harness.train.compiled import abstract_batch
    from harness.train.state import abstract_state
    from harness.train.step import make_step

    recipe = load_recipe("pi05_libero")
    levers = Levers(platform="cpu", microbatch=BATCH, prompt_tokens=PROMPT_TOKENS, cameras=CAMERAS)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return (
        products(
            jax.make_jaxpr(make_step(recipe))(
                abstract_state(recipe), abstract_batch(recipe, levers), key
            ).jaxpr
        )
        // BATCH
    )


def compiled(case: str) -> tuple[float, float]:
    """(operations a sample in XLA's program, by the planner) of one of CASES."""
    from harness.train import device

    device.start()
    from jax.experimental import topologies

    from harness.artifacts import Levers
    from harness.plan.candidates import changed
    from harness.plan.cards import CARDS
    from harness.plan.compile import ABSENT_GPU_OPTIONS
    from harness.plan.launches import product_operations
    from harness.plan.operations import flops_per_sample
    from harness.recipe.load import load_recipe
    from harness.train.compiled import compile_step
    from harness.train.setup import setup_of
    from harness.train.sharding import Layout

    name, changes, more = CASES[case]
    recipe, target = changed(load_recipe(name), changes), CARDS["h200"].target()
    levers = Levers.model_validate(
        {
            "platform": "cuda",
            "microbatch": BATCH,
            "accumulation_steps": 2,
            "prompt_tokens": PROMPT_TOKENS,
            "cameras": CAMERAS,
            **more,
        }
    )
    topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
    step = compile_step(
        setup_of(recipe, Layout(topology.devices)), levers, options=ABSENT_GPU_OPTIONS, platform="cuda"
    )
    return product_operations(step.run.as_text()) / (2 * BATCH), flops_per_sample(recipe, levers)


def upstreams() -> int:
    """In openpi's environment."""
    from openpi_absent import stand_in

    stand_in()
    import dataclasses

    import jax
    import train as upstream  # scripts/train.py
    from openpi.training import config as configs
    from openpi.training import sharding

    config = dataclasses.replace(configs.get_config("pi05_libero"), batch_size=BATCH, exp_name="counted")
    mesh = sharding.make_mesh(1)
    state, _ = upstream.init_train_state(config, jax.random.key(0), mesh, resume=True)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype),
        config.model.inputs_spec(batch_size=BATCH),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    with sharding.set_mesh(mesh):
        traced = jax.jit(lambda rng, state, batch: upstream.train_step(config, rng, state, batch)).trace(
            key, state, batch
        )
    return products(traced.jaxpr.jaxpr) // BATCH


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operations", description="Operations a sample, ours and openpi's."
    )
    parser.add_argument("--openpi", type=Path, help="a checkout of openpi")
    parser.add_argument("--python", type=Path, help="the python of its environment")
    parser.add_argument(
        "--compiled",
        nargs="*",
        choices=sorted(CASES),
        metavar="CASE",
        help="compile these steps (default: all)",
    )
    options = parser.parse_args()
    if options.compiled is not None:
        for case in options.compiled or CASES:
            found, planned = compiled(case)
            print(
                f"{case:20} {found / 1e12:7.4f} Top a sample in the program, {planned / 1e12:7.4f} by the"
                f" planner ({planned / found - 1:+.2%})",
                flush=True,
            )
        return
    mine = ours()
    print(f"ours    {mine / 1e12:.3f} Top a sample ({len(CAMERAS)} cameras, {PROMPT_TOKENS} prompt tokens)")
    if options.openpi is None or options.python is None:
        print("openpi  skipped: needs --openpi CHECKOUT and --python ENV/bin/python")
        return
    paths = [
        options.openpi / "scripts",
        options.openpi / "src",
        options.openpi / "packages/openpi-client/src",
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "JAX_PLATFORMS": "cpu",
        "JAXTYPING_DISABLE": "1",
    }
    command = [str(options.python), str(Path(__file__).resolve()), "--child"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    theirs = int(done.stdout.split()[-1])
    print(
        f"openpi  {theirs / 1e12:.3f} Top a sample (3 cameras, 200 prompt tokens)\nratio  "
        f" {mine / theirs:.3f}"
    )


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if "--child" in sys.argv:
        print(upstreams())
    else:
        main()
