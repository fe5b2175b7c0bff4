"""The table of what a changed recipe key means for the run, and why. All other tables derive from it.

The recipe's hash leaves out keys that are *cadence*. The planner's deviations, the report's differences and
the verdict's fields use the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

# cadence: how long, how often, and names. Each step learns the same.
# same mathematics: other numbers or bytes of the same experiment.
# other data: the loss is over other samples. another experiment: something else is learned.
Weight = Literal["another experiment", "other data", "same mathematics", "cadence"]
HEAVIEST_FIRST: tuple[Weight, ...] = ("another experiment", "other data", "same mathematics", "cadence")
# A run with a change of these weights learns something else.
_DEVIATES: frozenset[Weight] = frozenset({"another experiment", "other data"})


class Meaning(NamedTuple):
    weight: Weight
    why: str

    @property
    def deviates(self) -> bool:
        """True if a run with this change learns something else."""
        return self.weight in _DEVIATES


# The longest prefix of a key decides.
MEANING: dict[str, Meaning] = {
    "": Meaning("another experiment", "changes what is learned"),
    "name": Meaning("cadence", "only a name"),
    "description": Meaning("cadence", "only words"),
    "model": Meaning("another experiment", "another network"),
    "model.paligemma.variant": Meaning(
        "another experiment", "another language model: no released weights fit it"
    ),
    "model.action_expert.variant": Meaning(
        "another experiment", "another action expert: no released weights fit it"
    ),
    "model.paligemma.lora": Meaning(
        "another experiment", "adapters on the language model instead of training its weights"
    ),
    "model.action_expert.lora": Meaning(
        "another experiment", "adapters on the action expert instead of training its weights"
    ),
    "model.prompt_tokens": Meaning(
        "same mathematics", "padding of the prompt is masked; it matters only where prompts are cut"
    ),
    "model.discrete_state_input": Meaning(
        "another experiment", "the state enters the model with the prompt, or does not"
    ),
    "model.action_horizon": Meaning("another experiment", "predicts chunks of another length"),
    "model.compute_dtype": Meaning("another experiment", "rounds differently in every step"),
    "data": Meaning("other data", "the loss is over other samples: not comparable number by number"),
    "data.asset_id": Meaning("same mathematics", "only the name of the statistics in the checkpoint"),
    "data.tokenizer": Meaning("other data", "other tokens for the same words"),
    "data.normalization": Meaning("another experiment", "scales the actions differently, and so the loss"),
    "data.relative": Meaning(
        "another experiment", "other action dimensions are differences to the state: another target"
    ),
    "data.adapt": Meaning("another experiment", "other joint and gripper values for the same movement"),
    "data.prompt": Meaning("other data", "another instruction for the same frames"),
    "data.degenerate_dimensions": Meaning(
        "another experiment", "treats near-constant dimensions differently"
    ),
    "data.augment": Meaning("another experiment", "augmentation changes what the model sees"),
    "data.datasets": Meaning("other data", "other datasets are mixed, or in other shares"),
    "data.episodes": Meaning("other data", "other episodes are trained on"),
    "data.norm_stats": Meaning(
        "another experiment", "other statistics scale the actions differently, and so the loss"
    ),
    "weights": Meaning("another experiment", "starts from other weights"),
    "train.trained": Meaning("another experiment", "trains other parameters"),
    "train.steps": Meaning("cadence", "another length; each step is the same: compare at the same step"),
    "train.global_batch": Meaning(
        "another experiment", "another number of samples a step, and another noise of the gradient"
    ),
    "train.seed": Meaning("same mathematics", "another order and other noise of the same experiment"),
    "train.ema_decay": Meaning(
        "another experiment", "the deployed parameters are averaged differently, or not at all"
    ),
    "train.ema_every_steps": Meaning("another experiment", "the average is taken at other steps"),
    "train.frozen": Meaning("another experiment", "frozen weights are stored coarser"),
    "train.optimizer": Meaning("another experiment", "other updates from the same gradients"),
    "train.optimizer.schedule": Meaning("another experiment", "another learning rate at the same step"),
    "train.holdout": Meaning("other data", "other episodes are trained on"),
    "train.holdout.frames": Meaning("cadence", "how much is measured at a save, not what is learned"),
    "train.action_delay": Meaning(
        "another experiment", "the first actions of a chunk are given, and the loss counts the others"
    ),
    "train.save": Meaning("cadence", "what a checkpoint holds, not what is learned"),
    "train.save_every_steps": Meaning("cadence", "how often it is saved"),
    "train.keep_every_steps": Meaning("cadence", "which checkpoints are kept"),
    "train.log_every_steps": Meaning("cadence", "how often it is logged"),
}


def meaning(key: str) -> Meaning:
    """The meaning of a difference in the dotted `key`."""
    while key not in MEANING:
        key = key.rpartition(".")[0]
    return MEANING[key]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key: `{"a": {"b": 1}}` → `{"a.b": 1}`.

    Lists are leaves, and so is an empty mapping below the top.
    """
    if not isinstance(value, Mapping) or (not value and prefix):
        return {prefix: value}
    return {
        path: leaf
        for key, inner in value.items()
        for path, leaf in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The sorted keys in which two `flat` mappings differ. An absent key counts as None."""
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def without_cadence(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's nested mapping without its cadence keys."""
    kept = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else key
        if meaning(path).weight != "cadence":
            kept[key] = without_cadence(value, path) if isinstance(value, Mapping) else value
    return kept
