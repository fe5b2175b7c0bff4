"""Compares a step with another step, with the weights that it was trained from, or with other parameters."""

from __future__ import annotations

from pathlib import Path

from harness.artifacts import Moved
from harness.checkpoint.adapters import base_group, partner, product
from harness.checkpoint.moved import Tree, compare_parameters
from harness.checkpoint.scan import find
from harness.checkpoint.steps import Step, named_base, read_steps, recorded_recipe
from harness.errors import HarnessError
from harness.received.text import word
from harness.recipe.schema import Recipe
from harness.run.steps import PARAMS, step_directories, step_number


def moved(step: Step, against: str, recipe: Recipe | None, trained: set[str] | None) -> Moved:
    """The distance of the step's parameters from those that `against` names.

    `against` is a step's number, "base", or a path. `trained` are the paths of the trained parameters.
    Raises: HarnessError "nothing-to-compare", and those of `find` and of the download.
    """
    if not step.parameters:
        raise HarnessError(
            "nothing-to-compare",
            f"{step.path} holds no parameters",
            need="a step with params",
            fix="give the step itself, not one of its items",
        )
    other = _other(step, against)
    here = Tree(step.trees[PARAMS], step.parameters, str(step.path), step.report.step)
    there = Tree(other.trees[PARAMS], other.parameters, str(other.path), other.report.step)
    firsts = [
        path
        for path in here.parameters
        if path.endswith("lora_a") and partner(path) in here.parameters and path not in there.parameters
    ]
    products = [pair for path in firsts if (pair := product(here.item, here.parameters, path))]
    return compare_parameters(
        here,
        there,
        products,
        None if recipe is None else {path: _scale(path, recipe) for path in firsts},
        trained,
    )


def _scale(path: str, recipe: Recipe) -> float:
    """alpha / rank of the adapters at `path`, as the recipe's model applies it."""
    lora = (recipe.model.action_expert if base_group(path) == "expert" else recipe.model.paligemma).lora
    if lora is None:
        return 1.0
    return lora.feed_forward_scale() if "/mlp" in path else lora.alpha / lora.rank


def _other(step: Step, against: str) -> Step:
    """The step that `against` names, as in `moved`."""
    sibling = step.path.parent / against
    if against == "base":
        path = Path(_base_source(step))
    elif step_number(against) is not None and sibling.is_dir():
        path = sibling
    elif step_number(against) is not None and not Path(against).exists():
        there = [number for number, _ in step_directories(step.path.parent)]
        raise HarnessError(
            "nothing-to-compare",
            f"there is no step {against} beside {step.path}",
            got=f"steps {', '.join(map(str, there))}",
            need="one of these, 'base', or a path",
            fix=(
                f"--against {there[0]}"
                if len(there) > 1
                else "--against base, or a path; keep more steps with train.keep_every_steps"
            ),
        )
    else:
        path = Path(against)
    whole = [each for each in read_steps(find(path)) if each.has_weights and each.parameters]
    if not whole:
        raise HarnessError(
            "nothing-to-compare",
            f"{path} has no whole step with parameters",
            need="a whole step, or weights",
            fix=f"harness inspect {word(path)} lists what is there",
        )
    return whole[-1]


def _base_source(step: Step) -> str:
    """The directory of the weights that training started from."""
    from harness.download.cache import fetch_tree, is_remote
    from harness.received.consent import Named

    recorded = recorded_recipe(step)
    source = (named_base(step) or {}).get("source") or (recorded.weights.source if recorded else None)
    if not source:
        raise HarnessError(
            "nothing-to-compare",
            f"{step.path} does not say which weights it was trained from",
            got="random weights" if recorded else "no record of the harness",
            need="weights, or another step",
            fix="--against PATH of the weights, or --against STEP",
        )
    return (
        str(fetch_tree(source, named=Named(f"the record in {step.path}", "--against DIR")).path)
        if is_remote(source)
        else str(source)
    )
