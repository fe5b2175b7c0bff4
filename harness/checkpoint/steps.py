"""Reads the steps of a checkpoint directory by their metadata: what each holds, lacks and records."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from harness.artifacts import CheckpointItem, CheckpointStep
from harness.artifacts.plan import Backend
from harness.checkpoint import source
from harness.checkpoint.elsewhere import item_below
from harness.checkpoint.files import files_of, stray_problem
from harness.checkpoint.format import DAMAGE
from harness.checkpoint.item import Array, Item, read_item
from harness.checkpoint.marks import damaged_statistics, expected_items, missing_marks, missing_to_resume
from harness.checkpoint.scan import ANYBODY, Found
from harness.checkpoint.texts_changed import texts_changed
from harness.checkpoint.tiles import Tiled, tiled_from
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES, UnsafeFile
from harness.received.json import read_json
from harness.received.text import word
from harness.recipe.schema import Recipe
from harness.run.steps import ASSETS, DIGESTS, PARAMS, RECORD, TRAIN_STATE, TREES, is_own, is_whole

SHOWN = 20
# Errors from a record that is missing, torn, foreign or hostile. Such a record tells nothing.
_NO_RECORD = (OSError, UnsafeFile, *DAMAGE, AttributeError)


class Step(NamedTuple):
    """One step. `trees` are its items that hold arrays, by name."""

    report: CheckpointStep
    path: Path
    items: dict[str, Path]
    trees: dict[str, Item]
    # Whether a run resumes from it. Only names decide this.
    resumable: bool
    # The names that its run lacks to resume from it. They say something new of a complete step alone.
    lacks: list[str]

    @property
    def has_weights(self) -> bool:
        """As the function says of its report."""
        return has_weights(self.report)

    @property
    def use(self) -> str:
        """What a step that lacks train_state alone is good for; empty for every other step."""
        alone = self.has_weights and not self.report.complete
        return "; its weights can be used, only a resume needs that" if alone else ""

    @property
    def parameters(self) -> dict[str, Array]:
        """The parameters by path."""
        tree = self.trees.get(PARAMS)
        return {parameter_path(path): array for path, array in tree.arrays.items()} if tree else {}


def parameter_path(path: str) -> str:
    """The parameter's path as the harness writes it: without the item's own `params/` and flax's `/value`."""
    return path.removeprefix("params/").removesuffix("/value")


def read_steps(found: Found) -> list[Step]:
    """The steps that can be read, oldest first. The others become findings of `found`."""
    steps = []
    for number, path, items in found.steps:
        try:
            steps.append(_read_step(number, path, items, found.backend))
        except PermissionError as error:
            found.deny(path, error)
        except FileNotFoundError:
            # The trainer may delete a step while it is read, when the next step is whole.
            if path.exists():
                raise
    return steps


def _read_step(number: int | None, path: Path, items: dict[str, Path], backend: Backend | None) -> Step:
    is_item = path in items.values()
    trees = {name: read_item(items[name]) for name in TREES if name in items}
    # Each file of the step is visited once. Those of an array item were visited when it was read.
    files = {
        name: trees[name].files if name in trees else files_of(directory) for name, directory in items.items()
    }
    missing = [] if is_item else missing_marks(path, items)
    if not is_item:
        missing += [f"{name}/" for name in expected_items(path, items) if name not in items]
    for name in items:
        problems = trees[name].problems if name in trees else stray_problem(files[name].strays)
        missing += [f"{name}: {problem}" for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            missing.append(f"{name}: and {len(problems) - SHOWN} more problems")
    missing += damaged_statistics(items[ASSETS], files[ASSETS].sizes) if ASSETS in items else []
    if not is_item:
        missing += [why for why in texts_changed(path) if why.split(" ")[0] not in missing]
    lacks = missing_to_resume(path, backend) if backend is not None and not is_item else []
    arrays = {name: len(tree.arrays) for name, tree in trees.items()}
    reports = [CheckpointItem(name=name, bytes=files[name].nbytes, arrays=arrays.get(name)) for name in items]
    beside = (
        0
        if is_item
        else sum(
            entry.stat().st_size for entry in path.iterdir() if entry.is_file() and not entry.is_symlink()
        )
    )
    total = beside + sum(report.bytes for report in reports)
    return Step(
        CheckpointStep(
            step=number, path=str(path), complete=not missing, items=reports, bytes=total, missing=missing
        ),
        path,
        items,
        trees,
        is_own(path, backend or ANYBODY) and is_whole(path, backend or ANYBODY),
        lacks,
    )


def step_findings(steps: list[Step]) -> list[str]:
    """What is told of steps that are not whole, or that their run does not resume from."""
    broken = [
        f"{s.path.name if s.report.step is None else f'step {s.report.step}'} is not whole: "
        + "; ".join(s.report.missing[:3])
        + s.use
        for s in steps
        if not s.report.complete
    ]
    # Orbax's managers call the item as its writer did: `default`, `state`.
    broken += [
        f"weights of {s.path.name} may lie in another item: harness inspect {word(item)}"
        for s in steps
        if PARAMS not in s.items and (item := item_below(s.path)) is not None
    ]
    # Its parameters may be all that somebody wants of it.
    return broken + [
        f"the run does not resume from {s.path.name}: it lacks {'; '.join(s.lacks[:3])}"
        for s in steps
        if s.report.complete and s.lacks
    ]


def has_weights(step: CheckpointStep) -> bool:
    """True if a step lacks nothing but train_state.

    A resume alone reads it, and it is the largest item, so people delete it.
    """
    return step.complete or step.missing == [f"{TRAIN_STATE}/"]


def recorded_recipe(step: Step) -> Recipe | None:
    """The recipe that the harness wrote beside the step; None if this version finds none that is valid."""
    try:
        return Recipe.model_validate(_read(step, RECORD)["recipe"])
    except _NO_RECORD:
        return None


def recorded_trainer(step: Step) -> str | None:
    """The trainer that wrote the step, if the harness only wrote beside it.

    None for a step of the harness, and for a step without its record.
    """
    try:
        trainer = _read(step, RECORD).get("trainer")
    except _NO_RECORD:
        return None
    return trainer if isinstance(trainer, str) else None


def named_base(step: Step) -> dict[str, str] | None:
    """Source and sha256 of the base of a step of only trained parameters; None for a full step."""
    try:
        named = source.named_base(step.path)
    except HarnessError:
        return None
    return named._asdict() if named is not None else None


def recorded_digests(step: Step) -> dict[str, str]:
    """Item/path → sha256 of each array as the harness saved it; empty for a step without that record."""
    try:
        return {str(path): str(digest) for path, digest in _read(step, DIGESTS)["leaves"].items()}
    except _NO_RECORD:
        return {}


def recorded_tiles(step: Step) -> dict[str, Tiled]:
    """Item/path → the digests by tile of each array that several processes saved part by part."""
    try:
        return {str(path): tiled_from(value) for path, value in _read(step, DIGESTS).get("tiles", {}).items()}
    except _NO_RECORD:
        return {}


def _read(step: Step, name: str) -> Any:
    return read_json(step.path / name, step.path, ARTIFACT_BYTES)
