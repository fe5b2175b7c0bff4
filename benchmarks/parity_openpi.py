"""Step-by-step comparison of losses: the tiny configuration trained by openpi and by the harness.

    python -m benchmarks.parity_openpi --openpi CHECKOUT [--steps 20] [--lora] [--augment]

Both use the same weights, batches and keys. CHECKOUT is openpi at the harness's commit with its environment
in .venv (default: $HARNESS_OPENPI). Without one the program says so and does nothing. Upstream's side is its
own `init_train_state` and `train_step` (scripts/train.py), in its own versions of everything, in a process of
its own (parity_openpi_upstream.py); ours is `make_step`. Both run in float32, on the CPU, without
augmentation (upstream has no option for that: its preprocessing is called as for inference). With --augment
both augment. The batches come from our loader on the sample dataset. `--lora` trains adapters of rank 4 with
the rest frozen. Both sides draw noise and time themselves, from the same keys. Exit code 1 when a loss
differs by more than 1e-4, relative.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4
RANK = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity_openpi", description="openpi's trainer and ours, step by step."
    )
    parser.add_argument(
        "--openpi",
        type=Path,
        default=os.environ.get("HARNESS_OPENPI"),
        help="a checkout of openpi with its environment in .venv",
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--lora", action="store_true", help="adapters on both experts instead of a full fine-tune"
    )
    parser.add_argument(
        "--augment", action="store_true", help="with upstream's augmentation, drawn from the same keys"
    )
    options = parser.parse_args()
    if options.openpi is None:
        print(
            "skipped: give a checkout of openpi with its environment in .venv: --openpi DIR, or"
            " HARNESS_OPENPI=DIR"
        )
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    from harness.openpi.install import find_installation

    installation = find_installation({"HARNESS_OPENPI": str(options.openpi)})
    recipe = recipe_for(options)
    with tempfile.TemporaryDirectory(prefix="parity-openpi-") as scratch:
        inputs(recipe, options.steps, Path(scratch))
        (Path(scratch) / "job.json").write_text(
            json.dumps(job(recipe) | {"steps": options.steps, "augment": options.augment, "rank": RANK})
        )
        theirs = upstream(installation.python, Path(scratch))
        mine = ours(recipe, options.steps, Path(scratch))
    print(f"openpi {installation.commit[:12]} with jax {theirs['jax']}, the harness with jax {jax_version()}")
    print(" step  loss, openpi     loss, ours       difference  grad_norm   param_norm")
    worst = 0.0
    for step, (a, b) in enumerate(zip(theirs["steps"], mine, strict=True)):
        apart = {name: abs(b[name] / a[name] - 1) for name in a}
        worst = max(worst, apart["loss"]) if apart["loss"] == apart["loss"] else float("inf")
        print(
            f"{step:5d}  {a['loss']:.10f}  {b['loss']:.10f}  {apart['loss']:.1e}     {apart['grad_norm']:.1e}"
            f"     {apart['param_norm']:.1e}"
        )
    verdict = "agree" if worst <= TOLERANCE else "DIFFER"
    print(
        f"{options.steps} steps {verdict}: losses differ by at most {worst:.1e}, relative (tolerance"
        f" {TOLERANCE:.0e})"
    )
    sys.exit(0 if worst <= TOLERANCE else 1)


def recipe_for(options: argparse.Namespace) -> Any:
    """The smoke recipe, which computes in float32."""
    from harness.recipe.load import load_recipe

    lora = [
        f"model.{expert}.lora={{rank: {RANK}, alpha: {RANK}.0}}" for expert in ("paligemma", "action_expert")
    ]
    who = ["train.trained=lora", "train.ema_decay=null", *lora] if options.lora else []
    return load_recipe(
        "smoke", [f"data.augment={str(options.augment).lower()}", f"train.global_batch={options.batch}", *who]
    )


def job(recipe: Any) -> dict[str, Any]:
    """The job of `openpi_entry`, but for the tiny adapters, which upstream has no name for: its side makes
    them.
    """
    from harness.openpi.job import OF_THE_RUN, job_of
    from harness.recipe.parameters import counts, is_trained, parameter_shapes

    plain = recipe.model.model_copy(
        update={
            name: getattr(recipe.model, name).model_copy(update={"lora": None})
            for name in ("paligemma", "action_expert")
        }
    )
    train = recipe.train.model_copy(update={"trained": "full"})
    like = recipe.model_copy(
        update={"model": plain, "train": train, "data": recipe.data.model_copy(update={"augment": True})}
    )
    made = job_of(like, dict.fromkeys(OF_THE_RUN) | {"exp-name": "parity", "fsdp-devices": 1}, "parity")
    total, trained = counts(recipe.model, recipe.train.trained)
    if recipe.model.paligemma.lora is not None:
        made["model"] |= {"paligemma_variant": "dummy_lora", "action_expert_variant": "dummy_lora"}
    frozen = sorted(
        path
        for path in parameter_shapes(recipe.model)
        if not is_trained(path, recipe.model, recipe.train.trained)
    )
    return made | {"frozen": frozen, "parameters_total": total, "parameters_trained": trained}


def inputs(recipe: Any, steps: int, scratch: Path) -> None:
    """Writes the weights and the batches that both start from."""
    from harness.data.loader import Loader
    from harness.flow.chain import Chain
    from harness.recipe.parameters import parameter_shapes

    chain = Chain(None, recipe)
    dataset = chain.dataset()
    loader = Loader(
        recipe,
        dataset,
        chain.stats(dataset),
        batch_size=recipe.train.global_batch,
        seed=recipe.train.seed,
        workers=0,
    )
    rng = np.random.default_rng(0)
    weights = {
        path: (0.05 * rng.standard_normal(shape)).astype(np.float32)
        for path, shape in parameter_shapes(recipe.model).items()
    }
    weights |= {
        path: 1 + value
        for path, value in weights.items()
        if path.startswith("PaliGemma/img") and path.endswith("/scale")
    }
    np.savez(scratch / "weights.npz", **weights)
    for step in range(steps):
        batch = loader.batch(step)
        images = batch.pop("images")
        np.savez(
            scratch / f"batch_{step}.npz",
            **batch,
            **{f"image/{camera}": image for camera, image in images.items()},
        )


def upstream(python: Path, scratch: Path) -> dict[str, Any]:
    """What openpi computes."""
    script = Path(__file__).with_name("parity_openpi_upstream.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "JAX_PLATFORMS": "cpu"
    }
    subprocess.run(
        [str(python), str(script), str(scratch)], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    found: dict[str, Any] = json.loads((scratch / "upstream.json").read_text())
    return found


def ours(recipe: Any, steps: int, scratch: Path) -> list[dict[str, float]]:
    """What the harness computes."""
    import jax

    from harness.train import device
    from harness.train.state import parameter_dtype, state_from
    from harness.train.step import make_step

    device.start()
    stored = np.load(scratch / "weights.npz")
    state = state_from(
        {path: jax.numpy.asarray(stored[path], parameter_dtype(path, recipe)) for path in stored.files},
        recipe,
    )
    step_once = jax.jit(make_step(recipe), donate_argnums=0)
    train_key, _ = jax.random.split(jax.random.key(recipe.train.seed))
    rows = []
    for step in range(steps):
        batch = dict(np.load(scratch / f"batch_{step}.npz"))
        batch["images"] = {
            name.removeprefix("image/"): batch.pop(name) for name in list(batch) if name.startswith("image/")
        }
        state, metrics = step_once(state, batch, train_key)
        rows.append({name: float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")})
    return rows


def jax_version() -> str:
    from importlib import metadata

    return metadata.version("jax")


if __name__ == "__main__":
    main()
