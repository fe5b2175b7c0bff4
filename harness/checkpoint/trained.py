"""Finds the parameters that were trained, from the optimizer's state.

Also detects a false LoRA run: the weights under the adapters are trained too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.artifacts import LoraReport
from harness.checkpoint.adapters import ADAPTER, base_group
from harness.checkpoint.item import Array, Item
from harness.recipe.parameters import group_of, is_trained
from harness.recipe.schema import Recipe
from harness.units import format_count


def trained_paths(
    parameters: Mapping[str, Array], state: Item | None, recipe: Recipe | None
) -> tuple[set[str] | None, str]:
    """(paths of the parameters that were trained, or None; why None).

    They are the parameters for which the optimizer keeps state, in whatever form. Without such state the
    recipe tells them.
    """
    if state and not state.damaged:
        found = _named_in(state.arrays, parameters)
        if found:
            return found, ""
    if recipe:
        return {path for path in parameters if is_trained(path, recipe.model, recipe.train.trained)}, ""
    why = "the optimizer's state names no parameter" if state else "there is no train_state"
    return None, f"{why}, and no recipe was given"


def _named_in(state: Iterable[str], parameters: Mapping[str, Array]) -> set[str]:
    """The parameters whose whole path lies within the path of an array of the optimizer's state.

    Adam's moments of P are `opt_state/…/mu/P/value`; factored or quantized moments have further keys behind
    P.
    """
    found = set()
    for path in state:
        parts = path.split("/")
        if parts[0] != "opt_state":
            continue
        spans = ((i, j) for i in range(1, len(parts)) for j in range(len(parts), i, -1))
        named = next((name for i, j in spans if (name := "/".join(parts[i:j])) in parameters), None)
        found |= {named} if named else set()
    return found


def lora_findings(parameters: Mapping[str, Array], trained: set[str] | None, lora: LoraReport) -> list[str]:
    """One finding if weights under the adapters are trained, else none."""
    if not lora.present or trained is None:
        return []
    beneath_adapters = {base_group(path) for path in parameters if ADAPTER.search(path)}
    under = [path for path in trained if group_of(path) in beneath_adapters]
    if not under:
        return []
    count, total = (sum(parameters[path].size for path in paths) for paths in (trained, parameters))
    who = "all" if count == total else f"{format_count(count)} of"
    beneath = sum(parameters[path].size for path in under)
    return [
        f"lora-trains-everything: the tree has LoRA adapters ({format_count(lora.parameters)} parameters),"
        f" yet {who} {format_count(total)} parameters were trained, {format_count(beneath)} of them weights"
        " under the adapters: this is not a LoRA run"
    ]
