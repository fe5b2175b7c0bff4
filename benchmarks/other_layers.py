"""Compares one layer at π0.5's real sizes, ours and openpi's or LeRobot's, on a file that we export.

    python -m benchmarks.other_layers openpi-pytorch CHECKOUT PYTHON [--golden DIR]
    python -m benchmarks.other_layers lerobot CHECKOUT PYTHON [--golden DIR]

CHECKOUT and PYTHON are those of `other_models.py`. The model has one layer of SigLIP So400m/14, and one that
Gemma 2B and the 300M action expert share: 0.16 billion parameters of a seed, 0.6 GB in float32. A full and a
LoRA checkpoint of it are exported. The program loads each file as it loads weights, strictly.

1. The layers alone, on the same inputs: the image's tokens, the prefix's tokens and the expert's tokens.
2. Ten steps of sampling through these layers, from the same images, prompt and noise.

Ours computes adapters unmerged. All is float32 on the CPU. --golden writes a part of what the program's
layers gave, for tests that need no torch. Exit code 1 for a difference beyond 1e-4.

About two minutes on two idle cores; 4 GB of memory and 2 GB of disk.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.other_models import TOLERANCE, asked, child, our_actions, sizes_of
from harness.checkpoint.locate import locate
from harness.checkpoint.pytorch_names import Program
from harness.predict.deliver import Wish, deliver
from tests.support import exported, real_layer

Arrays = dict[str, np.ndarray]


def compared(
    program: Program, checkout: Path, python: str, kind: str, folder: Path
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], Arrays]:
    """(name → our output and theirs, what the golden file holds of theirs) for one kind of checkpoint."""
    recipe = real_layer.recipe_of_kind(kind)
    params, given, seen = real_layer.seeded(recipe), real_layer.inputs(), exported.inputs(recipe)
    step = exported.write_checkpoint(folder / "5", recipe, params=params)
    deliver(locate(str(step)), recipe, folder / "out", Wish(program), print)
    np.savez(folder / "layers.npz", **given)
    np.savez(folder / "inputs.npz", **seen)
    (folder / "sizes.json").write_text(json.dumps(sizes_of(recipe)))
    for what, inputs in (("layers", "layers.npz"), ("actions", "inputs.npz")):
        child(
            python, what, program, checkout, folder / "sizes.json", folder / inputs, folder / "out",
            folder / f"their_{what}.npz",
        )  # fmt: skip
    theirs = dict(np.load(folder / "their_layers.npz"))
    pairs = {
        name: (real_layer.real_tokens(name, value), real_layer.real_tokens(name, theirs[name]))
        for name, value in real_layer.outputs(recipe, params, given).items()
    }
    pairs["actions"] = our_actions(recipe, seen, params), np.load(folder / "their_actions.npz")["actions"]
    return pairs, {f"{kind}/{name}": real_layer.kept(name, value) for name, value in theirs.items()}


def main() -> int:
    options = asked(__doc__)
    failed, golden = 0, {}
    with real_layer.one_layer(), tempfile.TemporaryDirectory() as scratch:
        for kind in ("full", "lora"):
            folder = Path(scratch) / kind
            folder.mkdir()
            pairs, held = compared(options.program, options.checkout, options.python, kind, folder)
            for name, (ours, theirs) in pairs.items():
                largest, span = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
                print(f"{kind} {name} {list(ours.shape)}: largest difference {largest:.3g}, up to {span:.3g}")
                failed += not largest <= TOLERANCE
            golden |= held
            shutil.rmtree(folder)
    if options.golden is not None:
        np.savez_compressed(
            options.golden / f"export_{options.program.replace('-', '_')}_layer.npz", **golden
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
