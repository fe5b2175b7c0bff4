"""The steps of a checkpoint directory as their metadata has them: what each holds, what it lacks, and what it records of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from harness.artifacts import CheckpointItem, CheckpointStep
from harness.checkpoint.item import Array, Item, read_item
from harness.checkpoint.scan import BASE, RECORD, TREES, Found, damaged_statistics, expected_items, measure, missing_marks
from harness.recipe import Recipe

SHOWN = 20
DIGESTS = "harness/digests.json"


class Step(NamedTuple):
    """One step; `trees` are those of its items that hold arrays, by name."""

    report: CheckpointStep
    path: Path
    items: dict[str, Path]
    trees: dict[str, Item]

    @property
    def parameters(self) -> dict[str, Array]:
        """The parameters by path."""
        tree = self.trees.get("params")
        return {parameter_path(path): array for path, array in tree.arrays.items()} if tree else {}


def parameter_path(path: str) -> str:
    """The parameter's path as the harness writes it: without the item's own `params/` and flax's `/value`."""
    return path.removeprefix("params/").removesuffix("/value")


def read_steps(found: Found) -> list[Step]:
    """The steps that may be read, oldest first; the others are findings of `found`."""
    steps = []
    for number, path, items in found.steps:
        try:
            steps.append(_read_step(found, number, path, items))
        except PermissionError as error:
            found.deny(path, error)
    return steps


def _read_step(found: Found, number: int | None, path: Path, items: dict[str, Path]) -> Step:
    is_item = path in items.values()
    trees = {name: read_item(items[name]) for name in TREES if name in items}
    missing = [] if is_item else missing_marks(path, items)
    if not is_item:
        missing += [f"{name}/" for name in expected_items(path, items) if name not in items]
    missing += damaged_statistics(items["assets"]) if "assets" in items else []
    for name, tree in trees.items():
        missing += [f"{name}: {problem}" for problem in tree.problems[:SHOWN]]
        if len(tree.problems) > SHOWN:
            missing.append(f"{name}: and {len(tree.problems) - SHOWN} more problems")
    reports = []
    for name, place in items.items():
        size, _, links = measure(place, found.root)
        if links:
            found.findings.append(f"{path.name}/{name}: {len(links)} files are symlinks out of {found.root} or to nothing (such as {links[0]})")
        reports.append(CheckpointItem(name=name, bytes=size, arrays=len(trees[name].arrays) if name in trees else None))
    total = measure(path, found.root)[0]
    return Step(CheckpointStep(step=number, path=str(path), complete=not missing, items=reports, bytes=total, missing=missing), path, items, trees)


def recorded_recipe(step: Step) -> Recipe | None:
    """The recipe that the harness wrote beside the step, when it did and this version still understands it."""
    try:
        return Recipe.model_validate(json.loads((step.path / RECORD).read_text())["recipe"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def recorded_trainer(step: Step) -> str | None:
    """Who wrote the step, where the harness only wrote beside it; None for its own, and for a step without its record."""
    try:
        trainer = json.loads((step.path / RECORD).read_text()).get("trainer")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return trainer if isinstance(trainer, str) else None


def named_base(step: Step) -> dict[str, str] | None:
    """Source and sha256 of the weights that a step of only trained parameters lies upon; None for a full one."""
    try:
        named = json.loads((step.path / BASE).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return named if isinstance(named, dict) else None


def recorded_digests(step: Step) -> dict[str, str]:
    """Item/path → sha256 of each array as the harness saved it; empty for a step without that record."""
    try:
        leaves = json.loads((step.path / DIGESTS).read_text())["leaves"]
        return {str(path): str(digest) for path, digest in leaves.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
