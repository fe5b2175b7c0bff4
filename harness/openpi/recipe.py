"""Translation of an openpi command into a recipe of the harness, and the parts that no recipe can express.

Source of the variants and of the freeze filter: openpi src/openpi/models/{gemma,pi0_config}.py, commit
15a9616.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from harness.errors import HarnessError
from harness.openpi.options import Command
from harness.openpi.plan import PUBLISHED
from harness.openpi.readers import Differs, read_by
from harness.openpi.table import ADAPTERS
from harness.recipe.load import load_recipe, recipe_from
from harness.recipe.parameters import counts, parameter_shapes
from harness.recipe.schema import Recipe, Trained

_LORA = "_lora"


class Translation(NamedTuple):
    """A translated command.

    `recipe` does what the command does except for `lost`, each entry a sentence. `trained` is None if recipes
    have no name for the set of trained parameters. `differs` tells in what the recipe's data are others.
    """

    recipe: Recipe
    trained: Trained | None
    total: int
    trained_count: int
    lost: list[str]
    differs: list[Differs]


def translate(command: Command) -> Translation:
    """The recipe of a π0.5 command.

    Raises: HarnessError "openpi-option-invalid" for values that no recipe can have.
    """
    options = command.effective
    data = load_recipe(PUBLISHED).model_dump(mode="json")
    data["name"], data["description"] = (
        f"openpi_{command.name}",
        f"What openpi does when it is started with: {command.name}",
    )
    data["model"] = data["model"] | _model(options)
    trained = _trained(command)
    data["train"] = data["train"] | _train(options) | {"trained": trained or "full"}
    read = read_by(command)
    data["data"] = data["data"] | read.data
    data["weights"] = {"source": options.get("weight-loader.params-path")}
    lost = [*read.lost, *_lost(trained)]
    try:
        recipe = recipe_from(data, where=f"the recipe of openpi {command.name}")
    except HarnessError as error:
        raise HarnessError(
            "openpi-option-invalid",
            error.what,
            need="values that a run can be made of",
            fix="correct the option that the key above names",
        ) from error
    total, count = counts(recipe.model, "full")
    if command.config.freezes:
        # The shipped filters freeze the language model, both experts, except for adapters. Source:
        # pi0_config.py `get_freeze_filter`.
        count = sum(
            math.prod(shape)
            for path, shape in parameter_shapes(recipe.model).items()
            if "llm" not in path or "lora" in path
        )
    return Translation(recipe, trained, total, count, lost, read.differs)


def _model(options: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = {
        "action_dim": options["model.action-dim"],
        "action_horizon": options["model.action-horizon"],
        "prompt_tokens": options["model.max-token-len"],
        "discrete_state_input": options["model.discrete-state-input"],
        "compute_dtype": options["model.dtype"],
    }
    for name, lora in ADAPTERS.items():
        variant = str(options[f"model.{name.replace('_', '-')}-variant"])
        # An adapter's rank belongs to the variant, not to the expert that carries it.
        own = next((each for each in ADAPTERS if variant == _VARIANT[each] + _LORA), None)
        model[name] = {
            "variant": variant.removesuffix(_LORA),
            "lora": (ADAPTERS[own] if own else lora).model_dump() if variant.endswith(_LORA) else None,
        }
    return model


_VARIANT = {"paligemma": "gemma_2b", "action_expert": "gemma_300m"}


def _trained(command: Command) -> Trained | None:
    adapted = [
        str(command.effective[f"model.{name}-variant"]).endswith(_LORA)
        for name in ("paligemma", "action-expert")
    ]
    if not command.config.freezes:
        return "full"
    # The shipped filters freeze both experts except for adapters. That is LoRA if both carry adapters.
    return "lora" if all(adapted) else None


def _train(options: dict[str, Any]) -> dict[str, Any]:
    keep = options["keep-period"]
    return {
        "steps": options["num-train-steps"],
        "global_batch": options["batch-size"],
        "seed": options["seed"],
        "ema_decay": options["ema-decay"],
        "optimizer": {
            "b1": options["optimizer.b1"],
            "b2": options["optimizer.b2"],
            "eps": options["optimizer.eps"],
            "weight_decay": options["optimizer.weight-decay"],
            "clip_norm": options["optimizer.clip-gradient-norm"],
            "schedule": {
                "warmup_steps": options["lr-schedule.warmup-steps"],
                "peak": options["lr-schedule.peak-lr"],
                "decay_steps": options["lr-schedule.decay-steps"],
                "end": options["lr-schedule.decay-lr"],
            },
        },
        "save_every_steps": options["save-interval"],
        "keep_every_steps": keep if keep is not None else max(options["num-train-steps"], 1),
        "log_every_steps": options["log-interval"],
    }


def _lost(trained: Trained | None) -> list[str]:
    if trained is not None:
        return []
    return ["its freeze filter freezes experts that carry no adapters, for which recipes have no name"]


def published_changes(command: Command, published: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Option → (value, the published value), for options that change what is learned or from what."""
    cosmetic = (
        "project-name",
        "exp-name",
        "assets-base-dir",
        "checkpoint-base-dir",
        "overwrite",
        "resume",
        "wandb-enabled",
        "policy-metadata.reset-pose",
        "num-workers",
    )
    options = command.effective
    names = [
        name
        for name in dict.fromkeys([*options, *published])
        if name not in cosmetic and not name.startswith(("pytorch-", "model.pytorch-"))
    ]
    return {
        name: (options.get(name), published.get(name))
        for name in names
        if options.get(name) != published.get(name)
    }
