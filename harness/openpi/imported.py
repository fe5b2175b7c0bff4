"""The true effect of an openpi command line: trained parameters, bytes, differences from the recipe. No JAX.

This exists for one case above all: `--model.paligemma-variant gemma_2b_lora` adds adapters but freezes
nothing, because the freeze filter belongs to a configuration and no option sets it. The command is a full
fine-tune that everybody calls LoRA.
"""

from __future__ import annotations

from harness.artifacts import Finding, OpenpiCommand, OptionChange, Plan
from harness.errors import HarnessError
from harness.openpi import configs as openpi_configs
from harness.openpi import findings
from harness.openpi import pytorch as openpi_pytorch
from harness.openpi.another import explain_another, is_another
from harness.openpi.lerobot_line import explain_lerobot
from harness.openpi.meant import meant_by
from harness.openpi.options import Command, read_line, said
from harness.openpi.plan import PUBLISHED, plan_upstream, setup_of
from harness.openpi.recipe import Translation, published_changes, translate
from harness.openpi.table import COMMIT, adapters_of, need
from harness.openpi.trainer_line import whose
from harness.plan.place import Place
from harness.recipe.deviations import deviations
from harness.recipe.fingerprint import RELEASED_PARAM_NORM, norm_verdict
from harness.recipe.load import load_recipe


def explain(words: list[str], place: Place | None) -> OpenpiCommand:
    """The effect of the command line. `place` is the card that it is to run on, if one is known.

    Raises: HarnessError of `trainer_line.whose` and `openpi_options.read`, and "batch-not-divisible",
    "shards-not-divisible".
    """
    line = whose(words)
    if line.trainer == "lerobot":
        return explain_lerobot(line)
    if is_another(line):
        return explain_another(line)
    command = read_line(line)
    published = openpi_configs.find(PUBLISHED).defaults
    base = OpenpiCommand(
        commit=COMMIT,
        command=said(command.name, command.given),
        config=command.name,
        model=openpi_configs.FAMILIES[_family(command)],
        options=command.given,
        effective=command.effective,
        freezes=command.config.freezes,
        changes=[
            OptionChange(option=name, value=now, published=was)
            for name, (now, was) in published_changes(command, published).items()
        ],
        findings=findings.about_start(command),
        trainer=line.trainer,
        cut=line.cut,
    )
    if line.trainer == "openpi-pytorch":
        return _pytorch(command, base)
    if line.launcher:
        return _launched(command, base)
    return _pi05(command, base, place) if _family(command) == "pi05" else _another(command, base)


def _family(command: Command) -> str:
    """The family of the model that is trained: --model.pi05 turns π0 into π0.5, and back."""
    if command.config.family == "pi0_fast":
        return "pi0_fast"
    return "pi05" if command.effective.get("model.pi05") else "pi0"


def _pytorch(command: Command, base: OpenpiCommand) -> OpenpiCommand:
    """The effect of a command of openpi's PyTorch trainer: how it differs from the JAX trainer.

    Facts that are known only of the JAX step are left out.
    """
    return base.model_copy(
        update={
            "freezes": False,
            "deviations": openpi_pytorch.differences(command),
            "findings": [*openpi_pytorch.findings(command), *base.findings],
            "unknown": openpi_pytorch.unknown(),
        }
    )


def _launched(command: Command, base: OpenpiCommand) -> OpenpiCommand:
    """The effect of a program that one of PyTorch's launchers starts once per GPU.

    Upstream's JAX trainer is not made for that. Other programs are not known here.
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
    """The effect of a command that trains another model. Nothing is invented about that model."""
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
    return base.model_copy(
        update={"findings": [finding, *base.findings], "unknown": dict.fromkeys(openpi_pytorch.UNKNOWN, why)}
    )


def _pi05(command: Command, base: OpenpiCommand, place: Place | None) -> OpenpiCommand:
    translated = translate(command)
    recipe, unknown = translated.recipe, {}
    adapters = adapters_of(recipe.model)
    weights = command.effective.get("weight-loader.params-path")
    norm = RELEASED_PARAM_NORM.get((adapters in ("paligemma", "both"), adapters in ("action_expert", "both")))
    if norm is None or norm_verdict(recipe.model, norm)[0] != "released" or "pi05_base" not in str(weights):
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
    meant = meant_by(command, translated)
    if meant is None and translated.lost:
        unknown["recipe"] = "; ".join(translated.lost)
    does = (
        "a recipe of ours that does the same"
        if command.line.trainer == "openpi"
        else "a recipe of ours that does what scripts/train.py does"
    )
    if translated.differs:
        does += ", but for what the warnings name"
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
                *findings.about_who_is_trained(translated, meant),
                *findings.about_room(plan, translated),
                *findings.about_weights(command, recipe.model),
                *findings.about_data(translated),
                *base.findings,
                *findings.about_schedule(recipe),
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
    """(the plan on the card, the bytes, the reason why one of the two is unknown)."""
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
        # The same message, with openpi's own options in the fix.
        fix = error.fix.replace("--set global_batch=", "--batch-size ").replace(
            "--set fsdp=", "--fsdp-devices "
        )
        raise HarnessError(error.code, error.what, got=error.got, need=error.need, fix=fix) from error
