"""Exports what was trained alone, beside the name of its base: adapters, and parameters trained without them.

ours      params/ with the trained parameters, harness/base.json, assets/
lerobot   adapter_config.json and adapter_model.safetensors, as PEFT has them
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.checkpoint.export import check_assets, copy_assets, write_params
from harness.checkpoint.leaves import Leaf
from harness.checkpoint.merge import Array, adapters_of, check_finite, read_leaf
from harness.checkpoint.peft import FILE, write_peft
from harness.checkpoint.source import find_params, named_base
from harness.checkpoint.weights import (
    check_parameters,
    directory_sha256,
    parameter_leaves,
    params_directories,
)
from harness.checkpoint.whole import refuse_inside, whole_or_nothing
from harness.errors import HarnessError
from harness.recipe.parameters import is_trained, parameter_shapes
from harness.recipe.schema import Recipe
from harness.run.directory import sha256_directory, write_atomic
from harness.run.steps import ASSETS, BASE, EXPORT, PARAMS, RECORD


def export_alone(
    source: Path,
    destination: Path,
    recipe: Recipe,
    *,
    target: str,
    base: str | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """What was written to `destination`. `base` names the weights that the run started from.

    Raises: HarnessError "export-no-adapters", "export-base-needed", "weights-not-finite",
    "checkpoint-damaged", "export-exists", "disk-full".
    """
    shapes = parameter_shapes(recipe.model)
    trained = [path for path in shapes if is_trained(path, recipe.model, recipe.train.trained)]
    _check_adapters(source, target, trained)
    location = find_params(Path(source))
    named = named_base(location.parent)
    base = base or (None if named is None else named.source)
    if base is None:
        raise _no_base(source)
    leaves = parameter_leaves(location, shapes)
    wanted = {path: shapes[path] for path in trained}
    check_parameters(source, {path: leaf for path, leaf in leaves.items() if path in wanted}, wanted)
    refuse_inside(destination, [location])
    assets = location.parent / ASSETS
    check_assets(assets)
    with whole_or_nothing(destination, 4 * sum(math.prod(shapes[path]) for path in trained)) as directory:
        finite = ((path, _finite(source, leaves, path)) for path in trained)
        if target == "lerobot":
            # Read twice: adapters are small, and PEFT's pairs are made of two leaves.
            for _ in finite:
                pass
            plain = [path for path in trained if "lora" not in path]
            written = write_peft(directory, leaves, adapters_of(recipe.model), plain, base=base)
            files = {FILE: {"sha256": written.sha256, "bytes": written.nbytes}}
        else:
            write_params(directory / PARAMS, finite)
            sha256 = named.sha256 if named is not None else directory_sha256(params_directories(base)[0])
            write_atomic(directory / BASE, json.dumps({"source": base, "sha256": sha256}, indent=2) + "\n")
            body = {"recipe": recipe.model_dump(mode="json"), "step": facts.get("step")}
            write_atomic(directory / RECORD, json.dumps(body, indent=2, sort_keys=True) + "\n")
            copy_assets(assets, directory / ASSETS)
            files = {PARAMS: {"sha256": sha256_directory(directory / PARAMS)}}
        made = {"target": target, "adapters": True, "base": base, "files": files, "trained": len(trained)}
        made["recipe"] = recipe.model_dump(mode="json")
        write_atomic(directory / EXPORT, json.dumps(made, indent=2) + "\n")
    return made


def _check_adapters(source: Path, target: str, trained: list[str]) -> None:
    if target == "openpi-pytorch" or not any("lora" in path for path in trained):
        raise HarnessError(
            "export-no-adapters",
            f"{source} has no adapters that could be written alone for {target}",
            got="openpi reads none" if target == "openpi-pytorch" else "no LoRA in the recipe",
            need="a step of a LoRA run, for lerobot or for this harness",
            fix="leave --adapters out",
        )


def _no_base(source: Path) -> HarnessError:
    return HarnessError(
        "export-base-needed",
        f"{source} does not say which weights it started from, and adapters need them",
        got="no weights.source in its recipe",
        need="the base",
        fix="--base DIR of the weights that the run started from",
    )


def _finite(source: Path, leaves: Mapping[str, Leaf], path: str) -> Array:
    array = read_leaf(source, leaves, path)
    check_finite(source, path, array)
    return array
