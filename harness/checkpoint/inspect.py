"""What a checkpoint holds and whether it is whole, ours or openpi's, by metadata; with `deep`, whether its numbers are sound.

Starts in well under a second: no JAX, no Orbax. LoRA is found in the tree, who was trained in the optimizer's moments.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Literal, NamedTuple

from harness.artifacts import Checkpoint, CheckpointItem, CheckpointStep, GroupReport, LoraReport
from harness.checkpoint.item import Array, Item, read_item
from harness.checkpoint.scan import RECORD, TREES, Found, expected_items, find, interrupted_save, measure, missing_marks, unreadable
from harness.parameters import Group, group_of, is_trained
from harness.recipe import Recipe
from harness.units import format_count

ADAPTER = re.compile(r"(?:^|[/_])lora_([ab])$")
MODULES = {"language": "PaliGemma", "expert": "action expert", "vision": "vision"}
PARTS = {"attn": "attention", "mlp": "feed-forward"}
GROUPS: tuple[Group, ...] = ("vision", "language", "expert", "adapters", "projections")
SHOWN = 20


class _Step(NamedTuple):
    report: CheckpointStep
    path: Path
    items: dict[str, Path]
    trees: dict[str, Item]


def inspect(path: Path, *, deep: bool = False, recipe: Recipe | None = None) -> Checkpoint:
    """The checkpoint at `path`: a run, a checkpoint directory, one step, or one item of a step.

    `recipe` (or the one that the step itself records) tells who was trained where the optimizer's state does not.
    What cannot be read is a finding, and the answer is marked `partial`.
    Raises: HarnessError "checkpoint-missing", "not-a-checkpoint", "checkpoint-empty" or "checkpoint-unreadable".
    """
    found = find(path)
    steps = _read_steps(found)
    try:
        newest = max((s.report.step for s in steps if s.report.complete and s.report.step is not None), default=found.committed_sibling)
        interrupted = [interrupted_save(place, newest) for place in found.interrupted]
    except PermissionError as error:
        raise unreadable(path, error) from error
    if found.denied and not steps and not interrupted:
        raise unreadable(path, found.denied) from found.denied
    findings = [*found.findings, *_step_findings(steps)]
    partial = found.partial
    base: dict[str, object] = {"path": str(path), "layout": _layout(steps, found), "steps": [s.report for s in steps], "interrupted": interrupted}
    described = next((s for s in reversed(steps) if s.report.complete), None)
    if described is None:
        described, partial = next((s for s in reversed(steps) if s.trees.get("params") and s.trees["params"].arrays), None), True
    if described is None:
        reason = "no step has readable parameters"
        unknown = dict.fromkeys(("step", "lora", "parameters_total", "parameters_trained", "ema", "non_finite"), reason)
        nothing = {"lora": LoraReport(present=None), "parameters": {}, "partial": True, "findings": findings, "unknown": unknown}
        return Checkpoint.model_validate(base | nothing)
    return _describe(base, described, deep=deep, recipe=recipe or _recorded_recipe(described), findings=findings, partial=partial)


def _describe(base: dict[str, object], step: _Step, *, deep: bool, recipe: Recipe | None, findings: list[str], partial: bool) -> Checkpoint:
    unknown: dict[str, str] = {}
    if step.report.step is None:
        unknown["step"] = "the directory's name is not a step number"
    tree = step.trees.get("params", Item(step.path))
    parameters = {parameter_path(path): array for path, array in tree.arrays.items()}
    lora, lora_findings = _lora(parameters)
    trained = _trained(parameters, step, recipe, unknown)
    findings += lora_findings + _trained_findings(parameters, trained, lora)
    health = _deep(step, findings) if deep else None
    if health is None:
        unknown["non_finite"] = "only metadata was read (--deep reads the arrays)"
    elif None in health.values():
        partial = True
    return Checkpoint.model_validate(
        base
        | {
            "step": step.report.step,
            "lora": lora,
            "parameters": _groups(parameters, trained, health),
            "parameters_total": sum(array.size for array in parameters.values()),
            "parameters_trained": None if trained is None else sum(parameters[p].size for p in trained if p in parameters),
            "ema": _ema(step, unknown),
            "non_finite": None if health is None else sum(h[0] for h in health.values() if h),
            "partial": partial or tree.damaged,
            "findings": findings,
            "unknown": unknown,
        }
    )


def parameter_path(path: str) -> str:
    """The parameter's path as the harness writes it: without the item's own `params/` and flax's `/value`."""
    return path.removeprefix("params/").removesuffix("/value")


def _read_steps(found: Found) -> list[_Step]:
    steps = []
    for number, path, items in found.steps:
        try:
            steps.append(_read_step(found, number, path, items))
        except PermissionError as error:
            found.deny(path, error)
    return steps


def _read_step(found: Found, number: int | None, path: Path, items: dict[str, Path]) -> _Step:
    is_item = path in items.values()
    trees = {name: read_item(items[name]) for name in TREES if name in items}
    missing = [] if is_item else missing_marks(path, items)
    if not is_item:
        missing += [f"{name}/" for name in expected_items(path, items) if name not in items]
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
    return _Step(CheckpointStep(step=number, path=str(path), complete=not missing, items=reports, bytes=total, missing=missing), path, items, trees)


def _step_findings(steps: list[_Step]) -> list[str]:
    return [f"step {s.report.step} is not whole: {'; '.join(s.report.missing[:3])}" for s in steps if not s.report.complete]


def _layout(steps: list[_Step], found: Found) -> Literal["harness", "openpi"] | None:
    if found.run or any("harness" in step.items for step in steps):
        return "harness"
    if any("params" in step.items for step in steps) or found.interrupted:
        return "openpi"
    return None


def _recorded_recipe(step: _Step) -> Recipe | None:
    try:
        return Recipe.model_validate(json.loads((step.path / RECORD).read_text())["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lora(parameters: dict[str, Array]) -> tuple[LoraReport, list[str]]:
    """Adapters and their rank per module, from the last axis of each `lora_a`; a module whose ranks differ is listed leaf by leaf."""
    adapters = {path: array for path, array in parameters.items() if ADAPTER.search(path)}
    ranks: dict[str, dict[str, int]] = defaultdict(dict)
    findings = []
    for path, array in adapters.items():
        partner = path[:-1] + ("b" if path.endswith("a") else "a")
        if partner not in adapters:
            findings.append(f"adapter {path} has no {partner.rpartition('/')[2]}")
        elif path.endswith("a") and array.shape[-1] != adapters[partner].shape[-2]:
            findings.append(f"adapter {path} has rank {array.shape[-1]}, its partner {adapters[partner].shape[-2]}")
        if path.endswith("a"):
            ranks[_module(path)][ADAPTER.sub("", path)] = array.shape[-1]
    rank: dict[str, int] = {}
    for module, found in sorted(ranks.items()):
        rank |= {module: next(iter(found.values()))} if len(set(found.values())) == 1 else found
    return LoraReport(present=bool(adapters), rank=rank, parameters=sum(array.size for array in adapters.values())), findings


def _module(path: str) -> str:
    """ "PaliGemma attention" for `PaliGemma/llm/layers/attn/q_einsum/lora_a`; the path itself in another tree."""
    part = re.search(r"/(attn|mlp)(_1)?/", path)
    base = base_group(path)
    return f"{MODULES[base]} {PARTS[part[1]]}" if part and base in MODULES else ADAPTER.sub("", path)


def base_group(path: str) -> Group:
    """The group whose weights the adapter at `path` adapts."""
    return group_of(path.replace("lora_", ""))


def _trained(parameters: dict[str, Array], step: _Step, recipe: Recipe | None, unknown: dict[str, str]) -> set[str] | None:
    """Paths of the parameters that were trained: those that the optimizer keeps moments of."""
    state = step.trees.get("train_state")
    if state and not state.damaged:
        found = {parameter_path(match[1]) for path in state.arrays if (match := re.match(r"opt_state/(?:.*/)?mu/(.+)$", path))}
        if found:
            return found & set(parameters)
    why = "the optimizer's state has no Adam moments" if state else "there is no train_state"
    if recipe:
        return {path for path in parameters if is_trained(path, recipe.model, recipe.train.trained)}
    unknown["parameters_trained"] = f"{why}, and no recipe was given"
    return None


def _trained_findings(parameters: dict[str, Array], trained: set[str] | None, lora: LoraReport) -> list[str]:
    """The mistake of calling it LoRA while the weights under the adapters are trained too."""
    if not lora.present or trained is None:
        return []
    adapted = {base_group(path) for path in parameters if ADAPTER.search(path)}
    under = [path for path in trained if group_of(path) in adapted]
    if not under:
        return []
    count, total = (sum(parameters[path].size for path in paths) for paths in (trained, parameters))
    who = "all" if count == total else f"{format_count(count)} of"
    beneath = sum(parameters[path].size for path in under)
    return [
        f"lora-trains-everything: the tree has LoRA adapters ({format_count(lora.parameters)} parameters), yet {who} {format_count(total)} parameters were "
        f"trained, {format_count(beneath)} of them weights under the adapters: this is not a LoRA run"
    ]


def _ema(step: _Step, unknown: dict[str, str]) -> bool | None:
    """openpi and the harness keep raw parameters in train_state only beside averaged ones in `params`."""
    state = step.trees.get("train_state")
    if state is None or state.damaged:
        unknown["ema"] = "it shows in train_state, which is not there or not readable"
        return None
    return any(path.startswith("params/") for path in state.arrays)


def _deep(step: _Step, findings: list[str]) -> dict[str, tuple[int, float] | None]:
    """Item and path → (non-finite elements, sum of squares); None where the data cannot be read."""
    from harness.checkpoint.deep import stream

    health: dict[str, tuple[int, float] | None] = {}
    for name, tree in step.trees.items():
        for array, found in stream(tree):
            key = f"{name}:{parameter_path(array.path) if name == 'params' else array.path}"
            health[key] = None if found is None else (found.non_finite, found.squares)
    bad = [key for key, value in health.items() if value and value[0]]
    unread = [key for key, value in health.items() if value is None]
    if bad:
        findings.append(f"{len(bad)} arrays hold NaN or infinite values: {', '.join(bad[:5])}")
    if unread:
        findings.append(f"partial: {len(unread)} arrays cannot be read: {', '.join(unread[:5])}")
    return health


def _groups(parameters: dict[str, Array], trained: set[str] | None, health: dict[str, tuple[int, float] | None] | None) -> dict[str, GroupReport]:
    reports: dict[str, GroupReport] = {}
    for group in GROUPS:
        members = {path: array for path, array in parameters.items() if group_of(path) == group}
        if not members:
            continue
        seen = None if health is None else [health.get(f"params:{path}") for path in members]
        known = None if seen is None or None in seen else [value for value in seen if value]
        reports[group] = GroupReport(
            parameters=sum(array.size for array in members.values()),
            bytes=sum(array.nbytes for array in members.values()),
            arrays=len(members),
            dtypes=sorted({array.dtype for array in members.values()}),
            trained=None if trained is None else sum(array.size for path, array in members.items() if path in trained),
            non_finite=None if known is None else sum(count for count, _ in known),
            norm=None if known is None else math.sqrt(math.fsum(squares for _, squares in known)),
        )
    return reports
