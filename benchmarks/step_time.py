"""Time of a training step on the CPU, ours against openpi's own, in one run.

    python -m benchmarks.step_time [--openpi CHECKOUT --python ENV/bin/python] [--rounds 7] [--batch 2]

Both train a π0.5 of the same sizes (SIZES, small widths; the same number of parameters, which is checked) on
a batch of LIBERO's form: two cameras of 224 pixels, 256 tokens each, a prompt of 20 tokens and 10 actions.
openpi's step is as it is shipped (scripts/train.py `train_step`, jitted and donated as its main does): three
cameras, the third of zeros and masked, the prompt padded to 200. Ours is the step of `harness train`: two
cameras, the prompt padded to 48. Both augment the images, rematerialize, clip, and update AdamW and the
average of all parameters, in float32, for which a CPU has instructions. Each runs under its own pinned JAX,
so the ratio includes the compiler's part.

That both compute the same loss and gradients, and that a masked camera and padding change nothing, is not
timed here. It is tested against arrays that openpi's own code made (tests/test_model_parity.py).

Each side is a process that compiles once and then waits. Rounds of a step alternate between them, so both see
the same machine. The program prints the median of the rounds' ratios, with the smallest and the largest.
CHECKOUT is openpi at commit 15a9616. ENV has its pinned packages (torch, transformers and lerobot may be
missing). Without both options the program says so and measures nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Width, depth, mlp_dim, heads, kv_heads, head_dim of the two experts; width, depth, mlp_dim, heads, patch of
# the vision tower: published proportions (the feed-forward 8 and 4 times the width, eight heads that share
# their keys), an eighth of the width.
SIZES: dict[str, tuple[int, ...]] = {
    "gemma_2b": (256, 6, 2048, 8, 1, 32),
    "gemma_300m": (128, 6, 512, 8, 1, 32),
    "So400m/14": (144, 6, 538, 8, 14),
}
VOCABULARY = 4096
PROMPT, PADDED, PADDED_BY_OPENPI = 20, 48, 200
# A step, and how many parameters it trains.
Made = tuple[Callable[[], Any], int]


def ours(batch: int) -> Made:
    import jax
    import numpy as np

    from harness.artifacts import Levers
    from harness.recipe.load import load_recipe
    from harness.train.compiled import compile_step
    from harness.train.setup import setup_of
    from harness.train.sharding import local_layout
    from harness.train.start import initializer

    sizes = [*make_ours_small(), f"train.global_batch={batch}"]
    recipe, cameras = load_recipe("pi05_libero", sizes), ["base_0_rgb", "left_wrist_0_rgb"]
    levers = Levers(platform="cpu", microbatch=batch, prompt_tokens=PADDED, cameras=cameras)
    step = compile_step(setup_of(recipe, local_layout(levers)), levers)
    made, rng, key = (
        [initializer(step.setup)(jax.random.key(0))],
        np.random.default_rng(0),
        jax.random.key(1),
    )
    inputs = batch_of(rng, batch, cameras, PADDED)

    def one() -> None:
        made[0], metrics = step.run(made[0], inputs, key)
        assert np.isfinite(float(metrics["loss"]))
        jax.block_until_ready(made[0])

    return one, sum(x.size for x in made[0].trained.values())


def make_ours_small() -> list[str]:
    """Gives our tables the sizes of SIZES; the keys of the recipe that go with them."""
    from harness.recipe import parameters

    for name in ("gemma_2b", "gemma_300m"):
        parameters.GEMMA[name] = parameters.GemmaSize(*SIZES[name])
    parameters.VISION["So400m/14"] = parameters.VisionSize(*SIZES["So400m/14"])
    return [f"model.vocab_size={VOCABULARY}", "model.compute_dtype=float32"]


def batch_of(rng: Any, batch: int, cameras: Sequence[str], tokens: int) -> dict[str, Any]:
    """What our step sees of a batch of LIBERO's form, prompts padded to `tokens`."""
    import numpy as np

    return {
        "images": {camera: rng.integers(0, 256, (batch, 224, 224, 3), np.uint8) for camera in cameras},
        "tokens": rng.integers(0, VOCABULARY, (batch, tokens), np.int32),
        "token_mask": np.tile(np.arange(tokens) < PROMPT, (batch, 1)),
        "actions": rng.standard_normal((batch, 10, 32)).astype(np.float32),
    }


def upstreams(batch: int) -> Made:
    """In openpi's environment."""
    import jax
    import numpy as np

    theirs = upstream(batch, small=True)
    made = [theirs.state]

    def one() -> None:
        with theirs.on_mesh():
            made[0], info = theirs.step(theirs.key, made[0], theirs.inputs)
        assert np.isfinite(float(info["loss"]))
        jax.block_until_ready(made[0])

    return one, sum(x.size for x in jax.tree.leaves(theirs.state.params))


class Upstream(NamedTuple):
    """openpi's jitted step, and what it takes: step(key, state, inputs), called within `on_mesh()`."""

    step: Any
    key: Any
    state: Any
    inputs: Any
    on_mesh: Callable[[], Any]


def upstream(batch: int, *, small: bool) -> Upstream:
    """openpi's own step of pi05_libero as its main makes it, with random parameters, on the first device.

    `small`: of SIZES, in float32. In openpi's environment, or in one that has what its step imports.
    """
    from openpi_absent import stand_in

    stand_in()
    import dataclasses
    import functools

    import jax
    import numpy as np
    import train as trainer  # scripts/train.py
    from openpi.models import gemma, siglip
    from openpi.models.model import Observation
    from openpi.training import config as configs
    from openpi.training import sharding
    from openpi.training.weight_loaders import NoOpWeightLoader

    shipped = configs.get_config("pi05_libero")
    changes: dict[str, Any] = {"batch_size": batch, "exp_name": "timed"}
    if small:
        _make_small(gemma, siglip)
        changes["model"] = dataclasses.replace(shipped.model, dtype="float32")
    config = dataclasses.replace(shipped, weight_loader=NoOpWeightLoader(), **changes)
    # openpi's own mesh, of one device. `jax.make_mesh` has axes of another kind since jax 0.7.
    axes = (sharding.BATCH_AXIS, sharding.FSDP_AXIS)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), axes)
    state, places = trainer.init_train_state(config, jax.random.key(0), mesh, resume=False)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.DATA_AXIS))
    step = jax.jit(
        functools.partial(trainer.train_step, config),
        in_shardings=(whole, places, rows),
        out_shardings=(places, whole),
        donate_argnums=(1,),
    )
    rng = np.random.default_rng(0)
    observation = Observation(**_observed(rng, batch))
    inputs = jax.device_put((observation, rng.standard_normal((batch, 10, 32)).astype(np.float32)), rows)
    return Upstream(step, jax.random.key(1), state, inputs, functools.partial(sharding.set_mesh, mesh))


def _make_small(gemma: Any, siglip: Any) -> None:
    """Gives openpi's modules the sizes of SIZES."""
    gemma.PALIGEMMA_VOCAB_SIZE = VOCABULARY
    gemma.get_config = lambda variant: gemma.Config(*SIZES[variant])
    width, depth, mlp_dim, heads, patch = SIZES["So400m/14"]
    siglip.decode_variant = lambda _: {
        "width": width,
        "depth": depth,
        "mlp_dim": mlp_dim,
        "num_heads": heads,
        "patch_size": (patch, patch),
    }


def _observed(rng: Any, batch: int) -> dict[str, Any]:
    """What openpi's step sees of a batch: three cameras, the third of zeros and masked."""
    import numpy as np

    images = {
        name: rng.uniform(-1, 1, (batch, 224, 224, 3)).astype(np.float32)
        for name in ("base_0_rgb", "left_wrist_0_rgb")
    }
    return {
        "images": {**images, "right_wrist_0_rgb": np.zeros((batch, 224, 224, 3), np.float32)},
        "image_masks": {
            "base_0_rgb": np.ones(batch, bool),
            "left_wrist_0_rgb": np.ones(batch, bool),
            "right_wrist_0_rgb": np.zeros(batch, bool),
        },
        "state": np.zeros((batch, 32), np.float32),
        "tokenized_prompt": rng.integers(0, VOCABULARY, (batch, PADDED_BY_OPENPI)).astype(np.int32),
        "tokenized_prompt_mask": np.tile(np.arange(PADDED_BY_OPENPI) < PROMPT, (batch, 1)),
    }


def child(make: Callable[[int], Made], batch: int) -> None:
    """Compiles and warms up, tells the number of parameters, then a time for every line that comes in."""
    one, parameters = make(batch)
    one()
    print(parameters, flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        one()
        print(time.perf_counter() - begun, flush=True)


def asked(process: subprocess.Popen[str], line: str = "") -> float:
    """What a child answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        sys.exit(f"{process.args[0]} ended without an answer")  # type: ignore[index]
    return float(answer)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_time", description="Step time on the CPU, ours and openpi's."
    )
    parser.add_argument("--openpi", type=Path, help="a checkout of openpi")
    parser.add_argument("--python", type=Path, help="the python of its environment")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    if options.openpi is None or options.python is None:
        print("skipped: needs --openpi CHECKOUT and --python ENV/bin/python")
        return
    here = Path(__file__).resolve()
    upstream = [
        options.openpi / "scripts",
        options.openpi / "src",
        options.openpi / "packages/openpi-client/src",
    ]
    sides = {"ours": (sys.executable, [here.parent.parent]), "openpi": (str(options.python), upstream)}
    children, sizes = {}, {}
    for side, (python, paths) in sides.items():
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "JAX_PLATFORMS": "cpu",
            "JAXTYPING_DISABLE": "1",
        }
        command = [python, str(here), "--child", side, str(options.batch)]
        children[side] = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        sizes[side] = asked(children[side])
    if sizes["ours"] != sizes["openpi"]:
        sys.exit(
            f"not the same model: {sizes['ours']:,.0f} parameters are ours, {sizes['openpi']:,.0f} openpi's"
        )
    rounds = [
        {side: asked(process, "step\n") for side, process in children.items()} for _ in range(options.rounds)
    ]
    for process in children.values():
        process.communicate()
    ratios = [one["openpi"] / one["ours"] for one in rounds]
    print(
        f"{sizes['ours']:,.0f} parameters, batch {options.batch}, {os.cpu_count()} cores, {options.rounds}"
        " rounds"
    )
    for side in sides:
        print(f"{side:7} {statistics.median(one[side] for one in rounds):.2f} s a step")
    print(f"ours is {statistics.median(ratios):.2f} times faster ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    if "--child" in sys.argv:
        side, batch = sys.argv[-2:]
        child({"ours": ours, "openpi": upstreams}[side], int(batch))
    else:
        main()
