"""What an openpi command line would really do: who is trained, in how many bytes, and how that differs from
the published recipe. No JAX.

The case that this exists for: `--model.paligemma-variant gemma_2b_lora` adds adapters, but nothing is frozen,
because the freeze filter belongs to a configuration and no option sets it. The command is a full fine-tune
that everybody calls LoRA.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

from harness.artifacts import Finding, OpenpiCommand, OptionChange, Plan
from harness.errors import HarnessError
from harness.openpi import configs as openpi_configs
from harness.openpi import pytorch as openpi_pytorch
from harness.openpi.lerobot_line import explain_lerobot
from harness.openpi.options import Command, is_required, read_line, said
from harness.openpi.plan import PUBLISHED, explanation, plan_upstream, setup_of
from harness.openpi.recipe import Translation, published_changes, translate
from harness.openpi.table import COMMIT, adapters_of, model_with, need
from harness.openpi.trainer_line import whose
from harness.plan.place import Place, option_for
from harness.recipe.deviations import deviations
from harness.recipe.fingerprint import RELEASED_PARAM_NORM, fingerprint
from harness.recipe.load import load_recipe
from harness.recipe.parameters import counts, parameter_shapes
from harness.recipe.schema import Model, Recipe
from harness.units import format_bytes

# The one shipped configuration with a filter for both experts; with these options it is π0.5's, on LIBERO as
# published.
_FILTERED = "pi0_libero_low_mem_finetune"
_TO_PI05 = {
    "model.pi05": True,
    "model.action-horizon": 10,
    "model.max-token-len": 200,
    "model.discrete-state-input": False,
    "weight-loader.params-path": "gs://openpi-assets/checkpoints/pi05_base/params",
    "data.extra-delta-transform": False,
}


class Meant(NamedTuple):
    """What the person meant, where that is not what the command does."""

    text: str
    recipe: Recipe
    command: str | None


def explain(words: list[str], place: Place | None) -> OpenpiCommand:
    """What the command line does; `place` is the card that it is to run on, if one is known.

    Raises: HarnessError of `trainer_line.whose` and `openpi_options.read`, and "batch-not-divisible",
    "shards-not-divisible".
    """
    line = whose(words)
    if line.trainer == "lerobot":
        return explain_lerobot(line)
    command = read_line(line)
    published = openpi_configs.find(PUBLISHED).defaults
    family = "pi05" if command.effective.get("model.pi05") else command.config.family
    family = "pi0" if family == "pi05" and not command.effective.get("model.pi05") else family
    base = OpenpiCommand(
        commit=COMMIT,
        command=said(command.name, command.given),
        config=command.name,
        model=openpi_configs.FAMILIES[family],
        options=command.given,
        effective=command.effective,
        freezes=command.config.freezes,
        changes=[
            OptionChange(option=name, value=now, published=was)
            for name, (now, was) in published_changes(command, published).items()
        ],
        findings=_start(command),
        trainer=line.trainer,
        cut=line.cut,
    )
    if line.trainer == "openpi-pytorch":
        return _pytorch(command, base)
    if line.launcher:
        return _launched(command, base)
    return _pi05(command, base, place) if family == "pi05" else _another(command, base)


def _pytorch(command: Command, base: OpenpiCommand) -> OpenpiCommand:
    """A command of openpi's PyTorch trainer: what differs, and nothing that is known of the JAX step
    alone.
    """
    return base.model_copy(
        update={
            "model": openpi_pytorch.model_name(command),
            "freezes": False,
            "deviations": openpi_pytorch.differences(command),
            "findings": [*openpi_pytorch.findings(command), *base.findings],
            "unknown": openpi_pytorch.unknown(),
        }
    )


def _launched(command: Command, base: OpenpiCommand) -> OpenpiCommand:
    """A program that a launcher of PyTorch's starts once a GPU: upstream's JAX trainer is not made for that,
    and others are not known here.
    """
    line = command.line
    count = "an unknown number of" if line.processes is None else line.processes
    if line.trainer == "openpi":
        got = (
            f"{line.launcher} starts {line.program} {count} times: each is a whole JAX trainer on all cards"
            " that it sees, and none knows of the others"
        )
        check, need_ = "launcher-starts-jax", "one process: the JAX trainer uses all cards by itself"
    else:
        got = f"{line.launcher} starts {line.program}, which is not openpi's"
        check, need_ = "another-trainer", "scripts/train.py, whose step is known here"
    why = f"not known of {line.program} when {line.launcher} starts it"
    fix = f"harness import openpi {said(command.name, command.given)}"
    finding = Finding(severity="error", check=check, got=got, need=need_, fix=fix)
    return base.model_copy(
        update={"findings": [finding, *base.findings], "unknown": dict.fromkeys(openpi_pytorch.UNKNOWN, why)}
    )


def _another(command: Command, base: OpenpiCommand) -> OpenpiCommand:
    """A command that trains another model: said plainly, with nothing invented about it."""
    why = f"{command.name} trains {base.model}, whose parameters and bytes are not known here"
    finding = Finding(
        severity="error",
        check="not-pi05",
        got=f"{base.model}: {command.name}"
        + (", LoRA with a freeze filter" if command.config.freezes else ""),
        need="a configuration of π0.5, such as pi05_libero",
        fix=f"harness import openpi {PUBLISHED}"
        + ("; or --model.pi05 with pi05_base weights" if "model.pi05" in command.effective else ""),
    )
    unknown = dict.fromkeys(
        ("trained", "parameters_total", "parameters_trained", "param_norm", "device_bytes", "fits", "recipe"),
        why,
    )
    return base.model_copy(update={"findings": [finding, *base.findings], "unknown": unknown})


def _pi05(command: Command, base: OpenpiCommand, place: Place | None) -> OpenpiCommand:
    translated = translate(command)
    recipe, unknown = translated.recipe, {}
    adapters = adapters_of(recipe.model)
    weights = command.effective.get("weight-loader.params-path")
    norm = RELEASED_PARAM_NORM.get((adapters in ("paligemma", "both"), adapters in ("action_expert", "both")))
    if norm is None or fingerprint(recipe.model, norm)[0] != "released" or "pi05_base" not in str(weights):
        unknown["param_norm"] = (
            "known for the weights of pi05_base in the published model alone, with adapters on PaliGemma, on"
            " both experts or on none"
        )
        norm = None
    plan, device_bytes, why = _bytes(translated, command, place)
    if device_bytes is None:
        unknown["device_bytes"] = why
    fits = plan.chosen is not None if plan is not None else None
    if fits is None:
        unknown["fits"] = why or "no card is named and none is here: --gpu NAME"
    meant = _meant(command, translated)
    if meant is None and translated.lost:
        unknown["recipe"] = "; ".join(translated.lost)
    does = (
        "a recipe of ours that does the same"
        if command.line.trainer == "openpi"
        else "a recipe of ours that does what scripts/train.py does"
    )
    kept = meant.recipe if meant else recipe
    return base.model_copy(
        update={
            "trained": translated.trained,
            "parameters_total": translated.total,
            "parameters_trained": translated.trained_count,
            "param_norm": norm,
            "device_bytes": device_bytes,
            "fits": fits,
            "plan": plan,
            "deviations": deviations(load_recipe(PUBLISHED), recipe.model_copy(update={"name": PUBLISHED})),
            "findings": [
                *_who(translated, meant),
                *_room(plan, translated),
                *_weights(command, recipe.model),
                *base.findings,
                *_schedule(recipe),
            ],
            "recipe": None if translated.lost else kept.model_dump(mode="json"),
            "meant": meant.text if meant else "" if translated.lost else does,
            "command_meant": meant.command if meant else None,
            "unknown": unknown,
        }
    )


def _bytes(
    translated: Translation, command: Command, place: Place | None
) -> tuple[Plan | None, int | None, str]:
    """(the plan on the card, the bytes, why something of it is not known)."""
    fsdp = int(command.effective["fsdp-devices"])
    if translated.trained is None:
        return None, None, "upstream's step has not been compiled for who is trained here"
    try:
        if place is not None:
            plan = plan_upstream(translated.recipe, place, fsdp)
            return plan, plan.candidates[0].device_bytes, ""
        return None, need(setup_of(translated.recipe, max(1, fsdp), fsdp)).bytes, ""
    except HarnessError as error:
        if error.code in ("upstream-not-compiled", "upstream-cannot"):
            return None, None, error.what
        # The same words, with openpi's own options as the way out.
        fix = error.fix.replace("--set global_batch=", "--batch-size ").replace(
            "--set fsdp=", "--fsdp-devices "
        )
        raise HarnessError(error.code, error.what, got=error.got, need=error.need, fix=fix) from error


def _meant(command: Command, translated: Translation) -> Meant | None:
    """LoRA, where adapters are there and everything is trained."""
    recipe = translated.recipe
    if adapters_of(recipe.model) == "none" or translated.trained != "full" or translated.lost:
        return None
    train = recipe.train.model_copy(update={"trained": "lora", "ema_decay": None})
    description = "LoRA with upstream's freeze filter, which the command lacked"
    lora = recipe.model_copy(
        update={"train": train, "name": f"{recipe.name}_lora", "description": description}
    )
    _, real = counts(recipe.model, "lora")
    text = (
        f"LoRA: {real:,} parameters trained, the others frozen in bfloat16, and no average, as upstream's"
        " LoRA configurations have it"
    )
    if adapters_of(recipe.model) != "both":
        text += (
            f"; openpi's own command puts adapters on both experts ({counts(model_with('both'), 'lora')[1]:,}"
            " trained)"
        )
    return Meant(
        f"{text}. openpi looks for its statistics in {_FILTERED}'s assets then",
        lora,
        said(_FILTERED, _filtered_options(command)),
    )


def _filtered_options(command: Command) -> dict[str, object]:
    """The options that make the configuration with a filter the command's own run."""
    filtered = openpi_configs.find(_FILTERED).defaults
    variants = {name: filtered[name] for name in ("model.paligemma-variant", "model.action-expert-variant")}
    weights = command.effective.get("weight-loader.params-path") or _TO_PI05["weight-loader.params-path"]
    wanted = (
        command.effective | _TO_PI05 | variants | {"ema-decay": None, "weight-loader.params-path": weights}
    )
    # The shape of the model stays the command's own.
    wanted |= {name: command.effective[name] for name in ("model.action-horizon", "model.max-token-len")}
    return {
        name: value
        for name, value in wanted.items()
        if name in filtered and value != filtered[name] and not name.startswith("pytorch-")
    }


def _who(translated: Translation, meant: Meant | None) -> list[Finding]:
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


def _room(plan: Plan | None, translated: Translation) -> list[Finding]:
    if plan is None or plan.chosen is not None:
        return []
    candidate = plan.candidates[0]
    largest = next((note for note in plan.notes if "batch" in note and "fits" in note), "")
    recipe = f"{PUBLISHED}_lora" if explanation_of(translated) else PUBLISHED
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


def explanation_of(translated: Translation) -> str:
    """What would really be trained, where the command looks like LoRA."""
    return explanation(setup_of(translated.recipe, 1, 1))


def _weights(command: Command, model: Model) -> list[Finding]:
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
        fix = f"--weight-loader.params-path {_TO_PI05['weight-loader.params-path']}"
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


def _schedule(recipe: Recipe) -> list[Finding]:
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


def _start(command: Command) -> list[Finding]:
    """What would stop the command, slow it down or delete something, whatever it trains."""
    findings = []
    missing = [name for name, value in command.effective.items() if is_required(value)]
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
            f"{command.line.program} is not openpi's: what is said holds if it does what scripts/train.py"
            " does"
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
