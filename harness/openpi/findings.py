"""The faults of an openpi command line, each a finding with its fix. No JAX.

They concern the trained parameters, room, weights, the schedule, and whatever stops the command before it
trains.
"""

from __future__ import annotations

import shlex

from harness.artifacts import Finding, Plan
from harness.openpi.meant import RELEASED_WEIGHTS, Meant
from harness.openpi.options import Command, is_lacking
from harness.openpi.plan import PUBLISHED, explanation, setup_of
from harness.openpi.recipe import Translation
from harness.openpi.table import adapters_of
from harness.plan.place import option_for
from harness.recipe.load import load_recipe
from harness.recipe.parameters import counts, parameter_shapes
from harness.recipe.schema import Model, Recipe
from harness.units import format_bytes


def about_who_is_trained(translated: Translation, meant: Meant | None) -> list[Finding]:
    """An error if there are adapters and yet everything is trained."""
    recipe = translated.recipe
    if adapters_of(recipe.model) == "none" or translated.trained != "full":
        return []
    adapters = adapters_of(recipe.model)
    where = "both experts" if adapters == "both" else adapters
    average = ", and an average" if recipe.train.ema_decay is not None else ""
    fix = (
        "add --recipe FILE for the recipe with the filter, or --job FILE to start openpi with it"
        if meant
        else "a configuration with a freeze filter"
    )
    return [
        Finding(
            severity="error",
            check="lora-trains-everything",
            got=(
                f"{translated.trained_count:,} of {translated.total:,} parameters trained: adapters on"
                f" {where}, no freeze filter{average}"
            ),
            need=f"{counts(recipe.model, 'lora')[1]:,} trained, if this is to be LoRA",
            fix=f"{fix}; or on openpi's command line: {meant.command}" if meant and meant.command else fix,
        )
    ]


def about_room(plan: Plan | None, translated: Translation) -> list[Finding]:
    """An error if the step does not fit the card that `plan` is for."""
    if plan is None or plan.chosen is not None:
        return []
    candidate = plan.candidates[0]
    largest = next((note for note in plan.notes if "batch" in note and "fits" in note), "")
    recipe = f"{PUBLISHED}_lora" if _explanation_of(translated) else PUBLISHED
    return [
        Finding(
            severity="error",
            check="does-not-fit",
            got=(
                f"{format_bytes(candidate.device_bytes)} on {plan.device}, of which"
                f" {format_bytes(plan.usable_bytes)} are usable"
            ),
            need=f"{format_bytes(candidate.device_bytes)} on each device",
            fix=f"{largest or 'another card'}; or: harness plan --recipe {recipe} {option_for(plan.device)}",
        )
    ]


def _explanation_of(translated: Translation) -> str:
    """The explanation of what is really trained, if the command looks like LoRA."""
    return explanation(setup_of(translated.recipe, 1, 1))


def about_weights(command: Command, model: Model) -> list[Finding]:
    """An error if the run starts from random weights, or from those of a model with other parameters."""
    source = command.effective.get("weight-loader.params-path")
    if source is None:
        got, need_ = (
            f"{command.name} loads no weights: training starts from random ones",
            "a configuration that loads pi05_base",
        )
        return [
            Finding(
                severity="error",
                check="random-weights",
                got=got,
                need=need_,
                fix=f"harness import openpi {PUBLISHED}",
            )
        ]
    shapes, released = (parameter_shapes(each) for each in (model, load_recipe(PUBLISHED).model))
    other = any(shapes[path] != shape for path, shape in released.items() if path in shapes)
    if "pi0_" in str(source) or ("pi05_" in str(source) and other):
        got = f"{source}: weights of a model with other parameters; openpi stops when it loads them"
        fix = f"--weight-loader.params-path {RELEASED_WEIGHTS}"
        return [
            Finding(
                severity="error",
                check="weights-of-another-model",
                got=got,
                need="weights of the same model",
                fix=fix,
            )
        ]
    return []


def about_data(translated: Translation) -> list[Finding]:
    """Warnings about what the recipe's data have otherwise than the command's."""
    return [
        Finding(
            severity="warning",
            check="data-differ",
            got=one.text,
            need="data that a recipe can name",
            fix=one.fix,
        )
        for one in translated.differs
    ]


def about_schedule(recipe: Recipe) -> list[Finding]:
    """A warning if the run ends before its warm-up does."""
    steps, warmup = recipe.train.steps, recipe.train.optimizer.schedule.warmup_steps
    if steps > warmup:
        return []
    got, fix = (
        f"{steps:,} steps, all of them in the warm-up of {warmup:,}",
        f"--lr-schedule.warmup-steps {max(1, steps // 3)}",
    )
    return [
        Finding(
            severity="warning",
            check="ends-in-warm-up",
            got=got,
            need="more steps than the warm-up has",
            fix=fix,
        )
    ]


def about_start(command: Command) -> list[Finding]:
    """Warnings about whatever stops the command, slows it down or deletes something, whatever it trains."""
    findings = []
    missing = [name for name, value in command.effective.items() if is_lacking(name, value)]
    if missing:
        got = f"{', '.join(f'--{name}' for name in missing)} not given: openpi does not start"
        findings.append(
            Finding(
                severity="warning",
                check="required-option",
                got=got,
                need="a value",
                fix=" ".join(f"--{name} NAME" for name in missing),
            )
        )
    if command.effective["overwrite"]:
        directory = (
            f"{command.effective['checkpoint-base-dir']}/{command.name}/{command.effective['exp-name']}"
        )
        got = f"--overwrite deletes {directory} if it is there" + (
            "" if "overwrite" in command.given else " (this configuration's default)"
        )
        findings.append(
            Finding(
                severity="warning",
                check="overwrite",
                got=got,
                need="a new --exp-name, or --resume",
                fix="leave --overwrite out",
            )
        )
    if command.line.trainer == "other" and not command.line.launcher:
        got = (
            f"{command.line.program} is not openpi's: these answers hold only if it does what"
            " scripts/train.py does"
        )
        findings.append(
            Finding(
                severity="warning",
                check="another-script",
                got=got,
                need="scripts/train.py",
                fix=f"diff {shlex.quote(command.line.program)} scripts/train.py",
            )
        )
    if command.environment.get("XLA_PYTHON_CLIENT_ALLOCATOR") == "platform":
        got = (
            "XLA_PYTHON_CLIENT_ALLOCATOR=platform: every buffer is allocated anew, which is very slow, and it"
            " makes nothing smaller"
        )
        findings.append(
            Finding(
                severity="warning",
                check="allocator",
                got=got,
                need="the default allocator",
                fix="unset XLA_PYTHON_CLIENT_ALLOCATOR",
            )
        )
    return findings
