"""Compares our model with openpi's PyTorch π0.5 and with LeRobot's pi05 on the files that we export.

    python benchmarks/other_models.py openpi-pytorch CHECKOUT PYTHON [--golden DIR]
    python benchmarks/other_models.py lerobot CHECKOUT PYTHON [--golden DIR]

CHECKOUT is a clone of the program: openpi at 15a9616, or LeRobot at 7427f31. PYTHON has CPU torch 2.13.0 and
the program's transformers. For openpi: 4.53.2, with src/openpi/models_pytorch/transformers_replace copied
over it. For LeRobot: 5.5, with draccus, einops, and peft for adapters. Each runs in a process of its own.

1. Names and shapes of the tensors of the model of real size, from the `meta` device, against our table.
2. A tiny full and a tiny LoRA checkpoint are exported. The program loads each as it loads weights, strictly,
   and samples ten steps from the same noise. Our model samples from the source, adapters unmerged.
3. LeRobot also gets the base in one file and PEFT's adapters in another, put together by PEFT.

--golden writes their names and actions for tests that need no torch. Exit code 1 for a difference of actions
beyond 1e-4, or a tensor of another name or shape.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from harness.checkpoint.locate import locate
from harness.checkpoint.pytorch_names import TABLE_NAMES, Program, tensor_shapes
from harness.predict.deliver import Wish, deliver
from harness.recipe.load import load_recipe
from harness.recipe.parameters import GEMMA, VISION
from harness.recipe.schema import Recipe
from tests.support import exported

TOLERANCE = 1e-4
CHILD = Path(__file__).with_name("other_models_child.py")


def child(python: str, *arguments: object) -> None:
    subprocess.run([python, str(CHILD), *map(str, arguments)], check=True, timeout=900)


def names(program: Program, checkout: Path, python: str, folder: Path) -> dict[str, list[int]]:
    """Their names and shapes of the model of real size."""
    child(python, "names", program, checkout, folder / "names.json")
    found: dict[str, list[int]] = json.loads((folder / "names.json").read_text())
    return found


def name_differences(program: Program, theirs: dict[str, list[int]]) -> list[str]:
    """Tensors that differ from our table's. The token table has two names there, of which a file has one."""
    ours = {
        name: list(shape) for name, shape in tensor_shapes(load_recipe("pi05_libero").model, program).items()
    }
    second = next(name for name in theirs if name.endswith(TABLE_NAMES[1]))
    theirs = {name: shape for name, shape in theirs.items() if name != second}
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def sizes_of(recipe: Recipe) -> dict[str, Any]:
    """The tiny sizes in the words of both programs."""
    model = recipe.model
    experts = (model.paligemma.variant, model.action_expert.variant)
    vision = VISION[model.vision]
    return {
        "experts": experts,
        "variants": {
            name: {
                "width": size.width, "depth": size.depth, "mlp_dim": size.mlp_dim, "num_heads": size.heads,
                "num_kv_heads": size.kv_heads, "head_dim": size.head_dim,
            }
            for name, size in GEMMA.items()
        },
        "vision": {
            "hidden_size": vision.width, "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.mlp_dim, "image_size": model.image_size,
            "projection_dim": GEMMA[experts[0]].width,
        },
        "vocab_size": model.vocab_size,
    }  # fmt: skip


def our_actions(recipe: Recipe, given: dict[str, np.ndarray], params: dict[str, np.ndarray]) -> np.ndarray:
    """Our model's actions from the source's own parameters, adapters unmerged, in float32."""
    import jax

    from harness.model.pi05 import Observation, bind, graph_of
    from harness.recipe.schema import CAMERAS

    model = recipe.model.model_copy(update={"compute_dtype": "float32"})
    observation = Observation(
        {name: given["images"][:, i] for i, name in enumerate(CAMERAS)},
        {name: given["image_masks"][:, i] for i, name in enumerate(CAMERAS)},
        given["tokens"],
        given["token_mask"],
    )
    steps = int(given["steps"])
    act = jax.jit(
        lambda params: bind(graph_of(model), params).sample_actions(observation, given["noise"], steps)
    )
    return np.asarray(act(params))


def actions_of(
    program: Program, checkout: Path, python: str, kind: str, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(our actions, theirs) for one kind of checkpoint; "peft": the base in one file, adapters in another."""
    recipe = exported.recipe_of_kind(
        "full" if kind == "full" else "lora", f"weights.source={folder / 'base'}"
    )
    located = locate(str(exported.write_checkpoint(folder / kind / "5", recipe)))
    if kind == "peft":
        plain = exported.recipe_of_kind("full")
        base = {path: value for path, value in exported.seeded(recipe).items() if "lora" not in path}
        step = exported.write_checkpoint(folder / "base/5", plain, params=base)
        deliver(locate(str(step)), plain, folder / "peft-out", Wish(program), print)
        deliver(located, recipe, folder / "adapters", Wish(program, alone=True), print)
    else:
        deliver(located, recipe, folder / f"{kind}-out", Wish(program), print)
    given = exported.inputs(recipe)
    np.savez(folder / "inputs.npz", **given)
    (folder / "sizes.json").write_text(json.dumps(sizes_of(recipe)))
    out = folder / f"{kind}.npz"
    child(
        python, "actions", program, checkout, folder / "sizes.json", folder / "inputs.npz",
        folder / f"{kind}-out", out, *([folder / "adapters"] if kind == "peft" else []),
    )  # fmt: skip
    return our_actions(recipe, given, exported.seeded(recipe)), np.load(out)["actions"]


def asked(description: str | None) -> argparse.Namespace:
    """What was typed: program, its checkout, its Python, and where golden results go."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", choices=("openpi-pytorch", "lerobot"))
    parser.add_argument("checkout", type=Path)
    parser.add_argument("python")
    parser.add_argument("--golden", type=Path)
    return parser.parse_args()


def main() -> int:
    options = asked(__doc__)
    failed, golden = 0, {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        theirs = names(options.program, options.checkout, options.python, folder)
        different = name_differences(options.program, theirs)
        print(
            f"{options.program}: {len(theirs)} tensors of real size, {len(different)} differ {different[:3]}"
        )
        failed += bool(different)
        for kind in ("full", "lora", *(("peft",) if options.program == "lerobot" else ())):
            ours, actions = actions_of(options.program, options.checkout, options.python, kind, folder)
            largest = float(np.abs(ours - actions).max())
            span = float(np.abs(ours).max())
            print(f"{kind}: largest difference {largest:.3g} of {TOLERANCE:g}, actions up to {span:.3g}")
            failed += not largest <= TOLERANCE
            golden[kind] = actions
    if options.golden is not None:
        stem = options.golden / f"export_{options.program.replace('-', '_')}"
        np.savez_compressed(stem.with_suffix(".npz"), **golden)
        stem.with_name(f"{stem.name}_names.json").write_text(json.dumps(theirs, separators=(",", ":")) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
