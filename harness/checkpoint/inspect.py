"""Inspects a checkpoint, ours or openpi's: what it holds and whether it is whole, by metadata.

With `deep`, it also checks whether the numbers are sound. It starts in well under a second: no JAX, no Orbax.
LoRA is recognized from the tree, the trained parameters from the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.artifacts import AdapterReport, Checkpoint, CheckpointStep, GroupReport, LoraReport
from harness.artifacts.checkpoint import LAYOUTS, Layout
from harness.checkpoint.adapters import find_lora
from harness.checkpoint.format import GROUPS
from harness.checkpoint.inspect_pytorch import inspect_pytorch
from harness.checkpoint.item import Array, Item
from harness.checkpoint.scan import Found, find, interrupted_save
from harness.checkpoint.steps import (
    Step,
    named_base,
    parameter_path,
    read_steps,
    recorded_digests,
    recorded_recipe,
    recorded_tiles,
    recorded_trainer,
    step_findings,
)
from harness.checkpoint.trained import lora_findings, trained_paths
from harness.errors import HarnessError
from harness.received.text import word
from harness.recipe.parameters import group_of
from harness.recipe.schema import Recipe
from harness.run.steps import unreadable

if TYPE_CHECKING:
    from harness.checkpoint.deep import Health


def inspect(
    path: Path, *, deep: bool = False, against: str | None = None, recipe: Recipe | None = None
) -> Checkpoint:
    """The report on the checkpoint at `path`: a run, a checkpoint directory, one step, or one item of a step.

    `deep` reads every array. `against` names what the parameters are compared with: another step of this
    checkpoint by its number, "base" for the weights that it was trained from, or a path. `recipe` (or the
    recipe that the step itself records) tells which parameters were trained if the optimizer's state does
    not.

    Of PyTorch's safetensors: see `harness.checkpoint.inspect_pytorch`.

    What cannot be read is a finding, and the report is marked `partial`.
    Raises: HarnessError "checkpoint-missing", "not-a-checkpoint", "pytorch-checkpoint", "checkpoint-empty",
    "checkpoint-unreadable", "nothing-to-compare".
    """
    try:
        found = find(path)
    except HarnessError as error:
        report = _pytorch(error, path, recipe, deep=deep)
        if report is None:
            raise
        if against is not None:
            raise _not_compared(path) from error
        return report
    steps = read_steps(found)
    try:
        newest = max(
            (s.report.step for s in steps if s.resumable and s.report.step is not None),
            default=found.whole_sibling,
        )
        interrupted = [interrupted_save(path, newest) for path in found.interrupted]
    except PermissionError as error:
        raise unreadable(path, error) from error
    if found.denied and not steps and not interrupted:
        raise unreadable(path, found.denied) from found.denied
    findings = [*found.findings, *step_findings(steps)]
    partial = found.partial
    base: dict[str, object] = {
        "path": str(path),
        "layout": _layout(steps, found),
        "steps": [s.report for s in steps],
        "interrupted": interrupted,
    }
    described = next((s for s in reversed(steps) if s.report.complete), None)
    if described is None:
        described, partial = (
            next((s for s in reversed(steps) if s.trees.get("params") and s.trees["params"].arrays), None),
            True,
        )
    if described is None:
        return Checkpoint.model_validate(base | _nothing(findings))
    read = _describe(described, recipe or recorded_recipe(described), deep=deep, against=against)
    partial = partial or bool(read.pop("partial"))
    if unsound := read.pop("unsound", []):
        base["steps"] = [_damaged(s, unsound) if s is described else s.report for s in steps]
    return Checkpoint.model_validate(
        base | read | {"partial": partial, "findings": findings + read["findings"]}
    )


def _damaged(step: Step, unsound: list[str]) -> CheckpointStep:
    """The report on a step that a resume refuses, and so does who loads it."""
    return step.report.model_copy(update={"complete": False, "missing": [*step.report.missing, *unsound]})


def _pytorch(error: HarnessError, path: Path, recipe: Recipe | None, *, deep: bool) -> Checkpoint | None:
    """The report on PyTorch's safetensors, if `error` says that `path` holds some that are π0.5's."""
    return inspect_pytorch(path, deep=deep, recipe=recipe) if error.code == "pytorch-checkpoint" else None


def _not_compared(path: Path) -> HarnessError:
    return HarnessError(
        "nothing-to-compare",
        f"{path} holds PyTorch's weights, whose parameters are not compared with others",
        need="a checkpoint in openpi's JAX layout",
        fix=f"harness export {word(path)} OUT --to openpi-jax --recipe NAME, then inspect OUT",
    )


def _nothing(findings: list[str]) -> dict[str, Any]:
    """The fields of a report of which no step has readable parameters."""
    names = ("step", "lora", "parameters_total", "parameters_trained", "ema", "non_finite")
    return {
        "lora": LoraReport(present=None),
        "parameters": {},
        "partial": True,
        "findings": findings,
        "unknown": dict.fromkeys(names, "no step has readable parameters"),
    }


def _describe(step: Step, recipe: Recipe | None, *, deep: bool, against: str | None) -> dict[str, Any]:
    """The facts about the step's parameters, as fields of `Checkpoint`."""
    unknown: dict[str, str] = {}
    if step.report.step is None:
        unknown["step"] = "the directory's name is not a step number"
    tree, parameters = step.trees.get("params", Item(step.path)), step.parameters
    lora, findings = find_lora(parameters)
    trained, why = trained_paths(parameters, step.trees.get("train_state"), recipe)
    if trained is None:
        unknown["parameters_trained"] = why
    findings += lora_findings(parameters, trained, lora) + _gaps("params", tree)
    health = _health(step) if deep else None
    read: dict[str, Any] = {}
    if health is not None:
        read, more = _deep_fields(step, health)
        findings += more
    else:
        unknown["non_finite"] = "only metadata was read (--deep reads the arrays)"
    if against is not None:
        from harness.checkpoint.against import moved

        read["moved"] = moved(step, against, recipe, trained)
    unread = health is not None and None in health.values()
    return read | {
        "step": step.report.step,
        "lora": lora,
        "parameters": _groups(parameters, trained, health),
        "parameters_total": sum(array.size for array in parameters.values()),
        "parameters_trained": (
            None if trained is None else sum(parameters[p].size for p in trained if p in parameters)
        ),
        "ema": _ema(step, unknown),
        "base": (named_base(step) or {}).get("source"),
        "partial": tree.damaged or unread,
        "findings": findings,
        "unknown": unknown,
    }


def _layout(steps: list[Step], found: Found) -> Layout | None:
    recorded = {recorded_trainer(step) for step in steps}
    for layout in LAYOUTS:
        if layout in recorded:
            return layout
    if found.run or any("harness" in step.items for step in steps):
        return "harness"
    if any("params" in step.items for step in steps) or found.interrupted:
        return "openpi"
    return None


def _ema(step: Step, unknown: dict[str, str]) -> bool | None:
    """Whether `params` holds averages; None if train_state cannot tell.

    openpi and the harness keep raw parameters in train_state only beside averaged ones in `params`.
    """
    state = step.trees.get("train_state")
    if state is None or state.damaged:
        unknown["ema"] = "it shows in train_state, which is not there or not readable"
        return None
    return any(path.startswith("params/") for path in state.arrays)


def _health(step: Step) -> dict[tuple[str, str], Health | None]:
    """(item, path) → the health of its elements; None if they cannot be read."""
    from harness.checkpoint.deep import stream

    return {(name, array.path): found for name, tree in step.trees.items() for array, found in stream(tree)}


def _changed_tiles(step: Step, health: Mapping[tuple[str, str], Health | None]) -> list[str]:
    """Item/path of the arrays that can be read and of which a tile is not the one that was saved."""
    from harness.checkpoint.deep import UNREADABLE, is_changed

    changed = []
    for leaf, tiled in recorded_tiles(step).items():
        name, _, path = leaf.partition("/")
        if health.get((name, path)) is None:
            continue
        try:
            differs = is_changed(step.trees[name], step.trees[name].arrays[path], tiled)
        except UNREADABLE:
            differs = True
        changed += [leaf] if differs else []
    return changed


def _deep_fields(
    step: Step, health: Mapping[tuple[str, str], Health | None]
) -> tuple[dict[str, Any], list[str]]:
    """(fields of `Checkpoint` that need the arrays, findings)."""
    from harness.checkpoint.deep import leaf_reports

    findings = []
    bad = [
        f"{name}:{parameter_path(path)}"
        for (name, path), found in health.items()
        if found and found.non_finite
    ]
    unread = [f"{name}:{parameter_path(path)}" for (name, path), found in health.items() if found is None]
    if bad:
        findings.append(f"{len(bad)} arrays hold NaN or infinite values: {', '.join(bad[:5])}")
    unsound = []
    if unread:
        unsound.append(f"partial: {len(unread)} arrays cannot be read: {', '.join(unread[:5])}")
    saved = recorded_digests(step)
    changed = [
        f"{name}/{path}"
        for (name, path), found in health.items()
        if found and saved.get(f"{name}/{path}", found.sha256) != found.sha256
    ] + _changed_tiles(step, health)
    if changed:
        unsound.append(
            f"{len(changed)} arrays are not those that were saved (their sha256 differ):"
            f" {', '.join(changed[:5])}"
        )
    findings += unsound
    findings += _gaps("train_state", step.trees.get("train_state"))
    empty = [
        path
        for tree in step.trees.values()
        for path in tree.missing
        if path not in tree.partly and not tree.fill_is_stored
    ]
    if empty:
        findings.append(
            f"{len(empty)} arrays have no stored data at all and were read as zeros: {', '.join(empty[:5])}"
        )
    adapters = _adapter_reports(step, health)
    if adapters and all(each.product_norm == 0 for each in adapters):
        findings.append("the product of every pair of adapters is zero: they have learned nothing")
    leaves = [
        leaf
        for name, tree in step.trees.items()
        for leaf in leaf_reports(name, tree, {p: health[name, p] for p in tree.arrays})
    ]
    return {
        "leaves": leaves,
        "adapters": adapters,
        "unsound": unsound,
        "non_finite": sum(found.non_finite for found in health.values() if found),
    }, findings


def _adapter_reports(step: Step, health: Mapping[tuple[str, str], Health | None]) -> list[AdapterReport]:
    """Each pair of adapters whose arrays can be read."""
    from harness.checkpoint.adapters import adapted, partner, product, report

    norms = {
        parameter_path(path): found.norm
        for (name, path), found in health.items()
        if name == "params" and found
    }
    firsts = [
        path for path in step.parameters if path.endswith("lora_a") and partner(path) in step.parameters
    ]
    pairs = ((path, product(step.trees["params"], step.parameters, path)) for path in firsts)
    return [report(pair, norms.get(adapted(path))) for path, pair in pairs if pair]


def _gaps(name: str, tree: Item | None) -> list[str]:
    """A finding about arrays of which only some chunks are stored.

    The format lets a writer leave out chunks of zeros, and a loss of data looks the same.
    """
    if tree is None or tree.fill_is_stored:
        return []
    cut = [path for path in tree.missing if path in tree.partly]
    what = (
        f"{name}: {len(cut)} arrays lack some of their chunks, which read as zeros; unless they were zeros,"
        f" data is lost: {', '.join(cut[:5])}"
    )
    return [what] if cut else []


def _groups(
    parameters: Mapping[str, Array],
    trained: set[str] | None,
    health: Mapping[tuple[str, str], Health | None] | None,
) -> dict[str, GroupReport]:
    from harness.checkpoint.deep import root, total

    reports: dict[str, GroupReport] = {}
    for group in GROUPS:
        members = {path: array for path, array in parameters.items() if group_of(path) == group}
        if not members:
            continue
        seen = None if health is None else [health.get(("params", array.path)) for array in members.values()]
        known = None if seen is None or None in seen else [found for found in seen if found]
        squares = [found.squares for found in known or () if found.squares is not None]
        reports[group] = GroupReport(
            parameters=sum(array.size for array in members.values()),
            bytes=sum(array.nbytes for array in members.values()),
            arrays=len(members),
            dtypes=sorted({array.dtype for array in members.values()}),
            trained=(
                None
                if trained is None
                else sum(array.size for path, array in members.items() if path in trained)
            ),
            non_finite=None if known is None else sum(found.non_finite for found in known),
            norm=root(total(squares)) if squares else None,
        )
    return reports
