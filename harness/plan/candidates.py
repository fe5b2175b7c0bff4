"""Lists the plans to try, in order: every exact lever before the first approximate change.

Exact plans differ in where the state lies and how attention is computed. Approximate changes come in a fixed
order, least deviation first. Each is tried with all exact levers:

1. no average of the parameters (the same training, the last parameters are deployed)
2. Adam's moments in 8 bits (the same parameters trained, each update slightly off)
3. LoRA on both experts, as upstream defines it (a seventh of the parameters trained)
4. LoRA with the vision tower frozen
5. frozen weights in 8 bits, then in 4 bits (the network under the adapters is another one)

The global batch is never made smaller. Accumulation reaches every batch, so a smaller batch would only be a
shorter experiment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from harness.artifacts import Dataset, Levers
from harness.errors import HarnessError
from harness.recipe.load import recipe_from
from harness.recipe.parameters import check_who_is_trained
from harness.recipe.schema import Recipe

Changes = dict[str, Any]

# The longest prompt, in tokens, of a dataset that has not been read, rounded up as the loader does. Source:
# facts on platforms (570 tokens a sample: two cameras of 256, 10 actions, and the prompt).
_KNOWN_PROMPTS = {"physical-intelligence/libero": 48, "sample": 32}
# So many divisors are tried: none of a batch below the square of it is missed.
_MOST_TRIED = 2**20
# No tokenizer makes as many tokens of a task's text. A dataset.json with more is not ours.
_MOST_PROMPT_TOKENS = 2**16

# Upstream's adapters. Source: openpi src/openpi/models/gemma.py `get_config` (gemma_2b_lora,
# gemma_300m_lora), commit 15a9616.
_UPSTREAM_LORA: Changes = {
    "train.trained": "lora",
    "train.ema_decay": None,
    "model.paligemma.lora": {"rank": 16, "alpha": 16.0, "scale_feed_forward": True},
    "model.action_expert.lora": {"rank": 32, "alpha": 32.0, "scale_feed_forward": True},
}


def changes_of(recipe: Recipe) -> Iterator[Changes]:
    """The changes of the recipe that are worth trying, from none to the largest."""
    yield {}
    train = recipe.train
    so_far: Changes = {}
    if train.ema_decay is not None:
        so_far = {"train.ema_decay": None}
        yield so_far
    if train.optimizer.moments != "int8":
        yield so_far | {"train.optimizer.moments": "int8"}
    adapted = bool(recipe.model.paligemma.lora or recipe.model.action_expert.lora)
    if train.trained == "full":
        so_far = dict(_UPSTREAM_LORA)
        yield so_far
        adapted = True
    if train.trained in ("full", "lora") and adapted:
        so_far = so_far | {"train.trained": "lora_frozen_vision"}
        yield so_far
    if train.frozen == "bfloat16":
        yield so_far | {"train.frozen": "int8"}
    if train.frozen != "int4":
        yield so_far | {"train.frozen": "int4"}


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with these keys replaced.

    Raises: HarnessError "recipe-invalid".
    """
    if not changes:
        return recipe
    body = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = body
        for part in parents:
            node = node[part]
        node[last] = value
    made = recipe_from(body, where=f"recipe {recipe.name} as the plan changes it")
    check_who_is_trained(made)
    return made


def lever_sets(base: Levers, recipe: Recipe, *, shards: list[int], host: bool) -> list[Levers]:
    """Lever sets for the memories where the state may lie, cheapest first.

    First on the devices, whole before sharded. Then in host memory: the least used parts are moved first.
    Moments in bfloat16 are rounded at random, and cannot be streamed from host memory.
    """
    spread = [base.model_copy(update={"fsdp": fsdp}) for fsdp in shards]
    if not host:
        return spread
    average = ["ema"] if recipe.train.ema_decay is not None else []
    moved = [average] if average else []
    if recipe.train.optimizer.moments != "bfloat16":
        moved += [[*average, "moments"], [*average, "moments", "masters"]]
    return spread + [
        levers.model_copy(update={"host": names, "compute_copy": "masters" in names})
        for levers in spread
        for names in moved
    ]


def divisors(n: int) -> list[int]:
    """Every microbatch that divides n rows, ascending.

    Of more than 2**40 rows some in the middle are left out.
    """
    small = [d for d in range(1, min(math.isqrt(n), _MOST_TRIED) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def prompt_tokens(recipe: Recipe, dataset: Dataset | None) -> int:
    """Number of prompt tokens that are computed.

    It is the dataset's longest prompt if known, else the recipe's padding.
    Raises: HarnessError "artifact-invalid" for a dataset.json whose count no tokenizer can produce.
    """
    padded = recipe.model.prompt_tokens
    told = dataset.prompt_tokens if dataset is not None else None
    if told is None:
        own = recipe.model.discrete_state_input or recipe.data.prompt is not None
        return padded if own else min(padded, _KNOWN_PROMPTS.get(recipe.data.dataset, padded))
    if not 0 < told <= _MOST_PROMPT_TOKENS:
        fix = "harness data --dataset DIR --run RUN writes dataset.json anew"
        raise HarnessError(
            "artifact-invalid",
            "dataset.json has an impossible count of prompt tokens",
            got=told,
            need="a count of tokens",
            fix=fix,
        )
    return told


def cut(recipe: Recipe, levers: Levers, microbatch: int) -> Levers:
    """The levers with so many rows at once, and as many accumulation steps as the batch then needs."""
    return levers.model_copy(
        update={
            "microbatch": microbatch,
            "accumulation_steps": recipe.train.global_batch // (levers.devices * microbatch),
        }
    )


def smaller(recipe: Recipe, levers: Levers) -> list[Levers]:
    """The levers with every number of rows at once that divides the batch, up to their own."""
    sizes = divisors(recipe.train.global_batch // levers.devices)
    return [cut(recipe, levers, size) for size in sizes if size <= levers.microbatch]
