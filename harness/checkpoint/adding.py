"""Adds adapters to the base that they were trained on: ours, PEFT's, one or several.

    w' = w + Σᵢ (what the i-th changes of w)

For a weight under an adapter that is its product, for another trained parameter its value less the base's.
With one set the result is what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.checkpoint.format import mismatches
from harness.checkpoint.leaves import Leaf
from harness.checkpoint.merge import Adapters, Array, adapters_of, add_product, check_finite, read_leaf
from harness.checkpoint.peft import PeftAdapters, open_peft
from harness.checkpoint.peft_config import CONFIG
from harness.checkpoint.pytorch_names import parts_of
from harness.checkpoint.source import find_params, named_base
from harness.checkpoint.weights import directory_sha256, parameter_leaves
from harness.errors import HarnessError
from harness.recipe.parameters import is_trained, parameter_shapes
from harness.recipe.schema import Recipe

Shape = tuple[int, ...]


class OwnAdapters(NamedTuple):
    """Adapters of a step of ours: a whole one, or one that holds only what was trained."""

    directory: Path
    leaves: Mapping[str, Leaf]
    adapters: Adapters
    trained: frozenset[str]

    def touches(self, path: str) -> bool:
        return path in self.adapters or path in self.trained

    def add(self, w: Array, original: Array, path: str) -> None:
        """Adds what was trained of the leaf `w` at `path`, in place. `original` is the base's leaf."""
        if path in self.adapters:
            first, second, scale = self.adapters[path]
            add_product(w, self._read(first), self._read(second), scale, path)
        else:
            w += self._read(path) - original

    def _read(self, path: str) -> Array:
        array = read_leaf(self.directory, self.leaves, path, np.dtype(np.float32))
        check_finite(self.directory, path, array)
        return array


class Additions(NamedTuple):
    """Sets of adapters."""

    sets: list[OwnAdapters | PeftAdapters]

    def touching(self, path: str) -> list[OwnAdapters | PeftAdapters]:
        """The sets that change the parameter at `path`."""
        return [each for each in self.sets if each.touches(path)]

    def add(self, path: str, w: Array) -> None:
        """Adds what all sets change of the float32 leaf `w` at `path`, in place.

        Raises: HarnessError "checkpoint-damaged", "weights-mismatch".
        """
        sets = self.touching(path)
        # Only a second set can see what the first has changed.
        original = w.copy() if len(sets) > 1 else w
        for each in sets:
            each.add(w, original, path)


def open_additions(
    directories: list[Path], recipes: Mapping[Path, Recipe | None], base: Path, shapes: Mapping[str, Shape]
) -> Additions:
    """The adapters in `directories`, opened. `recipes` has the recipe of each step of ours.

    `shapes` are those of the base's parameters. Only metadata is read.
    Raises: HarnessError "weights-base-differs", "weights-mismatch", "adapters-needed", and those of
    `open_peft` and `find_params`.
    """
    return Additions([_open(each, recipes.get(each), base, shapes) for each in directories])


def _open(
    directory: Path, recipe: Recipe | None, base: Path, shapes: Mapping[str, Shape]
) -> OwnAdapters | PeftAdapters:
    if (directory / CONFIG).is_file():
        found = open_peft(directory, parts_of(shapes))
        known = {part.name for parts in found.parts.values() for part in parts}
        strange = sorted((found.pairs.keys() | found.whole.keys()) - known)
        if strange:
            raise _other(directory, [f"{name} is unexpected" for name in strange])
        return found
    location = find_params(directory)
    if recipe is None:
        raise HarnessError(
            "adapters-needed",
            f"{directory} holds no adapters that can be told from their base",
            got="no recipe beside them",
            need="a step of a LoRA run, an export with --adapters, or PEFT's adapters",
            fix="name a step that was saved by training",
        )
    _check_base(directory, location, base)
    wanted = parameter_shapes(recipe.model)
    trained = {path for path in wanted if is_trained(path, recipe.model, recipe.train.trained)}
    leaves = parameter_leaves(location, wanted)
    lines = mismatches(
        {path: leaf.shape for path, leaf in leaves.items() if path in trained},
        {path: wanted[path] for path in trained},
    )
    lines += [f"{path} is not in the base" for path in wanted if "lora" not in path and path not in shapes]
    if lines:
        raise _other(directory, lines)
    plain = frozenset(path for path in trained if "lora" not in path)
    return OwnAdapters(directory, leaves, adapters_of(recipe.model), plain)


def _check_base(directory: Path, location: Path, base: Path) -> None:
    """Refuses another base than the one that the adapters name, where both are of one form."""
    named = named_base(location.parent)
    if named is None or not base.is_dir():
        return
    sha256 = directory_sha256(base)
    if sha256 != named.sha256:
        raise HarnessError(
            "weights-base-differs",
            f"{directory} was trained on top of {named.source}, and {base} has other bytes",
            got=sha256,
            need=named.sha256,
            fix="give the weights that the run started from",
        )


def _other(directory: Path, lines: list[str]) -> HarnessError:
    return HarnessError(
        "weights-mismatch",
        f"{directory} does not hold adapters of this model: " + "; ".join(lines[:20]),
        got=f"{len(lines)} differences",
        need="adapters that were trained on this base",
        fix="name their base, or the recipe that they were trained with",
    )
