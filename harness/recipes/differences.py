"""How a recipe differs from another, key by key, and what each difference means for comparing the two. No prose of a verdict: facts of the key."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from harness.recipe import Recipe, load_recipe

PUBLISHED = "pi05_libero"
Weight = Literal["another experiment", "other data", "same mathematics"]

# The longest prefix of a key decides: (what the difference makes of the run, why).
_MEANING: dict[str, tuple[Weight, str]] = {
    "": ("another experiment", "changes what is learned"),
    "model": ("another experiment", "another network"),
    "model.paligemma.variant": ("another experiment", "another language model: no released weights fit it"),
    "model.action_expert.variant": ("another experiment", "another action expert: no released weights fit it"),
    "model.paligemma.lora": ("another experiment", "adapters on the language model instead of training its weights"),
    "model.action_expert.lora": ("another experiment", "adapters on the action expert instead of training its weights"),
    "model.prompt_tokens": ("same mathematics", "padding of the prompt is masked; it matters only where prompts are cut"),
    "model.action_horizon": ("another experiment", "predicts chunks of another length"),
    "model.compute_dtype": ("another experiment", "rounds differently in every step"),
    "data": ("other data", "the loss is over other samples: not comparable number by number"),
    "data.asset_id": ("same mathematics", "only the name of the statistics in the checkpoint"),
    "data.tokenizer": ("other data", "other tokens for the same words"),
    "data.normalization": ("another experiment", "scales the actions differently, and so the loss"),
    "data.degenerate_dimensions": ("another experiment", "treats near-constant dimensions differently"),
    "data.augment": ("another experiment", "augmentation changes what the model sees"),
    "weights": ("another experiment", "starts from other weights"),
    "train.trained": ("another experiment", "trains other parameters"),
    "train.steps": ("another experiment", "another length: compare at the same step"),
    "train.global_batch": ("another experiment", "another number of samples a step, and another noise of the gradient"),
    "train.seed": ("same mathematics", "another order and other noise of the same experiment"),
    "train.ema_decay": ("another experiment", "the deployed parameters are averaged differently, or not at all"),
    "train.ema_every_steps": ("another experiment", "the average is taken at other steps"),
    "train.frozen": ("another experiment", "frozen weights are stored coarser"),
    "train.optimizer": ("another experiment", "other updates from the same gradients"),
    "train.optimizer.schedule": ("another experiment", "another learning rate at the same step"),
    "train.save": ("same mathematics", "what a checkpoint holds, not what is learned"),
    "train.save_every_steps": ("same mathematics", "how often it is saved"),
    "train.keep_every_steps": ("same mathematics", "which checkpoints are kept"),
    "train.log_every_steps": ("same mathematics", "how often it is logged"),
}


class Difference(NamedTuple):
    key: str
    published: object
    here: object
    weight: Weight
    why: str


def differences(published: Recipe, here: Recipe) -> list[Difference]:
    """Every key in which the two differ, names and descriptions aside; what makes another experiment comes first."""
    before, after = (_flat(each.model_dump(mode="json", exclude={"name", "description"})) for each in (published, here))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    found = [Difference(key, before.get(key, "–"), after.get(key, "–"), *meaning(key)) for key in keys]
    order = ("another experiment", "other data", "same mathematics")
    return sorted(found, key=lambda difference: order.index(difference.weight))


def differences_from_published(recipe: Recipe) -> list[Difference]:
    """Those from the published recipe."""
    return differences(load_recipe(PUBLISHED), recipe)


def meaning(key: str) -> tuple[Weight, str]:
    """What a difference in this key makes of a run, and why."""
    while key not in _MEANING:
        key = key.rpartition(".")[0]
    return _MEANING[key]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{prefix}.{name}" if prefix else name).items()}
