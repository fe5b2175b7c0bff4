"""The intention behind an openpi command line where the command does otherwise: LoRA with upstream's filter.

No JAX.
"""

from __future__ import annotations

from typing import NamedTuple

from harness.openpi import configs as openpi_configs
from harness.openpi.options import Command, said
from harness.openpi.recipe import Translation
from harness.openpi.table import adapters_of, model_with
from harness.recipe.parameters import counts
from harness.recipe.schema import Recipe

RELEASED_WEIGHTS = "gs://openpi-assets/checkpoints/pi05_base/params"
# The one shipped configuration with a filter for both experts. With these options it trains π0.5, on LIBERO
# as published.
_FILTERED = "pi0_libero_low_mem_finetune"
_TO_PI05 = {
    "model.pi05": True,
    "model.action-horizon": 10,
    "model.max-token-len": 200,
    "model.discrete-state-input": False,
    "weight-loader.params-path": RELEASED_WEIGHTS,
    "data.extra-delta-transform": False,
}


class Meant(NamedTuple):
    """The intention behind a command that does something else."""

    text: str
    recipe: Recipe
    command: str | None


def meant_by(command: Command, translated: Translation) -> Meant | None:
    """LoRA, if there are adapters and everything is trained. None if the command does what is meant."""
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
    if _reads_alike(command):
        text += f". openpi looks for its statistics in {_FILTERED}'s assets then"
    return Meant(
        text,
        lora,
        # The configuration with a filter reads LIBERO; no option of it names another reader.
        said(_FILTERED, _filtered_options(command)) if _reads_alike(command) else None,
    )


def _reads_alike(command: Command) -> bool:
    return command.config.data == openpi_configs.find(_FILTERED).data


def _filtered_options(command: Command) -> dict[str, object]:
    """The options that turn the configuration with a filter into the command's own run."""
    filtered = openpi_configs.find(_FILTERED).defaults
    variants = {name: filtered[name] for name in ("model.paligemma-variant", "model.action-expert-variant")}
    weights = command.effective.get("weight-loader.params-path") or RELEASED_WEIGHTS
    wanted = (
        command.effective | _TO_PI05 | variants | {"ema-decay": None, "weight-loader.params-path": weights}
    )
    # The shape of the model, and what it learns from, stay those of the command.
    of_the_command = (
        "model.action-horizon",
        "model.max-token-len",
        "model.discrete-state-input",
        "data.extra-delta-transform",
    )
    wanted |= {name: command.effective[name] for name in of_the_command}
    return {
        name: value
        for name, value in wanted.items()
        if name in filtered and value != filtered[name] and not name.startswith("pytorch-")
    }
