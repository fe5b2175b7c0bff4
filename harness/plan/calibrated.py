"""The calibration of this machine's card, and the predictions that follow from it.

`harness calibrate` writes it, into the cache of the machine. It holds for one card, driver, JAX and source of
the step. A plan uses one of the same kind of card and memory, major version of the driver, jaxlib and source
of the step. Any other is named and left alone: figures of two are never mixed.

    pace = geometric mean over its measured steps of: seconds / the cost model's
    error = how far each step is from the mean over the others, at most

What was measured while the card was throttled, or was not alone, is in neither.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from harness.artifacts import Calibrated, Calibration, Candidate, Machine, MeasuredPlan, Plan
from harness.errors import HarnessError
from harness.plan import cards
from harness.plan.candidates import changed
from harness.plan.cards import Card
from harness.plan.cost import seconds_per_step
from harness.plan.devices import Device, devices_of, figures
from harness.plan.source import source_hash
from harness.recipe.load import recipe_to_look_at, shipped_recipes
from harness.recipe.schema import Recipe
from harness.run.directory import RunDir, cache_root, sha256_json
from harness.units import format_bytes

# What one calibration holds for. A file in which one of these is other is of something else.
OF = (
    *("card", "uuid", "total_bytes", "driver", "jax", "jaxlib", "plugin", "flags"),
    *("step_sha256", "stages_sha256"),
)
# Boards of one name and two memories exist; a driver's total moves by less than this share.
_SAME_MEMORY = 0.05
# The most directories that are looked into.
_MOST = 200


class Found(NamedTuple):
    """The calibration that holds for a card, if there is one, and what to say of those that do not."""

    calibration: Calibration | None
    notes: list[str]


@functools.cache
def step_sha256() -> str:
    """The hash of the source of the step, which no process sees changing."""
    return source_hash()


def root() -> Path:
    """The directory of this machine's calibrations, one directory each."""
    return cache_root() / "calibration"


def holds_for(calibration: Calibration) -> dict[str, Any]:
    """What a calibration holds for."""
    return {name: getattr(calibration, name) for name in OF}


def directory_name(calibration: Calibration) -> str:
    """The name of a calibration's directory: its card, and a hash of what it holds for."""
    card = re.sub(r"[^a-z0-9]+", "-", calibration.card.lower()).strip("-")[:60]
    return f"{card}-{sha256_json(holds_for(calibration))[:12]}"


def find(device: Device, driver: str | None) -> Found:
    """The newest calibration of such a card under this driver, jaxlib and source of the step."""
    fitting: list[Calibration] = []
    notes: list[str] = []
    for path in sorted(root().iterdir())[:_MOST] if root().is_dir() else []:
        try:
            one = RunDir(path).read(Calibration)
        except HarnessError as error:
            notes.append(f"a calibration cannot be used: {error.what[:300]} (fix: {error.fix})")
            continue
        if one is None or one.card != device.name:
            continue
        other = _other(one, device, driver)
        if other:
            notes.append(f"a calibration of {device.name} is not used: {'; '.join(other)}")
        else:
            fitting.append(one)
    if not fitting:
        again = ["harness calibrate measures this card as it is now"] if notes else []
        return Found(None, notes + again)
    best = max(fitting, key=lambda one: (one.uuid == device.uuid, one.measured, len(one.plans())))
    return Found(best, [])


def _other(one: Calibration, device: Device, driver: str | None) -> list[str]:
    """What makes a calibration one of something else, in words."""
    here = {
        "driver": ((one.driver or "").partition(".")[0], (driver or "").partition(".")[0]),
        "jaxlib": (one.jaxlib, metadata.version("jaxlib")),
        "source of the step": ((one.step_sha256 or "")[:12], step_sha256()[:12]),
    }
    words = [
        f"its {name} is {was or 'not known'}, here {now}" for name, (was, now) in here.items() if was != now
    ]
    if one.total_bytes and device.gpu.total_bytes and not device.mig:
        share = abs(one.total_bytes - device.gpu.total_bytes) / device.gpu.total_bytes
        words += ["its card has another memory"] if share > _SAME_MEMORY else []
    return words


def recipe_of(plan: MeasuredPlan) -> Recipe | None:
    """The recipe of a measured plan; None for what no shipped recipe can be changed into.

    The file may come from elsewhere, so that no name in it is opened, and nothing is fetched for it.
    """
    if plan.recipe not in shipped_recipes():
        return None
    try:
        return changed(recipe_to_look_at(plan.recipe), plan.changes)
    except (HarnessError, KeyError, TypeError):
        return None


def predicted_now(calibration: Calibration, plan: MeasuredPlan) -> float | None:
    """Seconds of a measured step by today's cost model; those of its day for a card without figures."""
    recipe = recipe_of(plan)
    try:
        card = cards.card(cards.sized(calibration.card, calibration.total_bytes or 0))
    except HarnessError:
        return plan.predicted_s
    return plan.predicted_s if recipe is None else seconds_per_step(recipe, plan.levers, card, None)


def calibrated(calibration: Calibration, card: Card, uuids: Sequence[str] = ()) -> Calibrated | None:
    """How a calibration changes the cost model for `card`; None if it has no step that can be used."""
    logs = []
    for stage in calibration.plans():
        recipe = None if stage.plan is None else recipe_of(stage.plan)
        if stage.plan is not None and recipe is not None:
            logs.append(math.log(stage.plan.step_s / seconds_per_step(recipe, stage.plan.levers, card, None)))
    if not logs:
        return None
    total, others = sum(logs), len(logs) - 1
    errors = [abs(math.expm1((total - each) / others - each)) for each in logs] if others else []
    return Calibrated(
        measured=calibration.measured,
        steps=len(logs),
        pace=math.exp(total / len(logs)),
        error=max(errors, default=None),
        same_card=None if calibration.uuid is None or not uuids else calibration.uuid in uuids,
        sha256=sha256_json(calibration),
    )


def applied(plan: Plan, recipe: Recipe, machine: Machine) -> Plan:
    """The plan with the seconds that a calibration of this machine's card predicts, or as it is.

    One pace for all plans changes none of their order, so the choice stays what it was.
    """
    device = _device(plan, machine)
    if device is None:
        return plan
    found = find(device, machine.driver_version)
    notes = plan.notes + found.notes
    if found.calibration is None:
        return plan.model_copy(update={"notes": notes})
    card, _ = figures(device, device.total or 0)
    how = calibrated(found.calibration, card, plan.device_uuids)
    notes += _on_context(plan, found.calibration)
    if how is None:
        notes += ["the calibration of this card has no step that predictions can follow from"]
        return plan.model_copy(update={"notes": notes})
    cores = machine.host.cores
    made = [_at_pace(one, recipe, card, cores, how.pace) for one in plan.candidates]
    chosen = next((new for old, new in zip(plan.candidates, made, strict=True) if old == plan.chosen), None)
    return plan.model_copy(
        update={
            "candidates": made,
            "chosen": chosen or plan.chosen,
            "calibrated": how,
            "notes": notes,
            "inputs": sha256_json([plan.inputs, how.sha256]) if plan.inputs else "",
        }
    )


def _device(plan: Plan, machine: Machine) -> Device | None:
    """The card of a plan for cards of this one machine; None for any other plan."""
    if plan.cluster is not None or not plan.context_bytes:
        return None
    name = re.sub(r"^\d+ x ", "", plan.device)
    every = [each for gpu in machine.usable_gpus for each in devices_of(gpu, machine) if each.name == name]
    named = [each for each in every if each.uuid is not None and each.uuid in plan.device_uuids]
    return next(iter(named or every), None)


def _at_pace(one: Candidate, recipe: Recipe, card: Card, cores: float | None, pace: float) -> Candidate:
    seconds = seconds_per_step(changed(recipe, one.changes), one.levers, card, cores, pace=pace)
    unknown = {name: why for name, why in one.unknown.items() if name != "seconds_per_step"}
    return one.model_copy(update={"seconds_per_step": seconds, "unknown": unknown})


def _on_context(plan: Plan, calibration: Calibration) -> list[str]:
    """A note if the card's context took more, as it was measured, than the plan keeps for it."""
    told = [stage.context.context_bytes for stage in calibration.stages if stage.usable and stage.context]
    told += [stage.plan.context_bytes for stage in calibration.plans() if stage.plan]
    most = max((size for size in told if size is not None), default=0)
    if most <= plan.context_bytes:
        return []
    return [
        f"the context took {format_bytes(most)} of this card when it was calibrated, and the plan keeps"
        f" {format_bytes(plan.context_bytes)}: if the run ends out of memory, --vram-gib says less"
    ]


def words(how: Calibrated, devices: int) -> str:
    """What is known of the error of calibrated seconds."""
    steps = f"{how.steps} step{'s' if how.steps > 1 else ''}"
    where = "on another card of this kind" if how.same_card is False else "on this card"
    said = f"{how.pace:.2f} times the cost model, by {steps} measured {where} on {how.measured}"
    said += (
        "; its error is not known from one"
        if how.error is None
        else f"; at most {100 * how.error:.0f} % off, each step by the others"
    )
    return said if devices == 1 else f"{said}; never measured on several"
