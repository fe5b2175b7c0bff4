"""Describes how a changed recipe differs from the requested one, and what is known of the cost. No JAX.

A deviation is a different experiment. Each sentence names the deviation, the key that causes it, and its
known cost, or says that no cost is known. recipe/meaning.py lists the keys that deviate.

The figures of π0 come from openpi's README, those of users from its issues 711 and 799. Errors are relative
root mean squares: of an update with 8-bit moments (tests/test_train_moments.py), and of weights that are
normally distributed (tests/test_model_quantize.py). `TINY` is the output of `python -m
benchmarks.approximate_levers` for the tiny model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.recipe.meaning import changed_keys, flat, meaning
from harness.recipe.parameters import counts
from harness.recipe.schema import Recipe, Trained
from harness.units import format_count

# Key that deviates → the error that the benchmark found on the tiny model.
TINY = {
    "train.optimizer.moments=int8": (
        "an update is off by 1.2 %, the loss differs by 0.2 % after 30 steps, and the parameters by 63 %"
        " of the distance that they moved (noise of 1 % on exact moments: by 54 %)"
    ),
    "train.optimizer.moments=bfloat16": (
        "the loss differs by 0.2 % after 30 steps, and the parameters by 18 % of the distance that they moved"
    ),
    "train.ema_every_steps": (
        "(decay 0.9, every 8 steps) the parameters that are deployed after 30 steps differ by 12 % of the"
        " distance that they moved"
    ),
    "train.ema_decay": (
        "(decay 0.9) the parameters that are deployed after 30 steps differ by 35 % of the distance that"
        " they moved"
    ),
    "train.frozen=int8": (
        "the loss differs by less than 0.01 % after 30 steps, and the parameters by 2 % of the distance"
        " that they moved"
    ),
    "train.frozen=int4": (
        "the loss differs by 0.2 % at first and 0.1 % after 30 steps, and the parameters by 26 % of the"
        " distance that they moved"
    ),
}

# Keys that do not make another experiment, and are reported all the same: a run of another length, and other
# random numbers.
_TOLD = frozenset({"train.steps", "train.seed"})

_WHO: dict[Trained, str] = {
    "full": "all parameters",
    "lora": "LoRA adapters, the vision tower and the projections",
    "lora_frozen_vision": "LoRA adapters and the projections, with the vision tower frozen",
    "action_expert": "the action expert and the projections alone",
}
_WHO_COSTS: dict[Trained, str] = {
    "full": "this is more than the recipe trains",
    "lora": (
        "LIBERO success published for π0: 92.4 % full, 90.9 % LoRA; for π0.5 none is published, users report"
        " 1 to 65 %"
    ),
    "lora_frozen_vision": (
        "what it costs in success is not known: upstream keeps the vision tower trained, and users of its"
        " LoRA report 1 to 65 %"
    ),
    "action_expert": (
        "what it costs in success is not known: neither images nor instructions are read any better than"
        " before"
    ),
}


def deviations(base: Recipe, changed: Recipe) -> list[str]:
    """A sentence for each way in which `changed` learns something else than `base`.

    Empty if both are the same experiment.
    """
    before, after = flat(base.model_dump(mode="json")), flat(changed.model_dump(mode="json"))
    differing = {key for key in changed_keys(before, after) if meaning(key).deviates or key in _TOLD}
    sentences = []
    for prefixes, explain in _EXPLAINED:
        explained = {key for key in differing if key.startswith(prefixes)}
        if explained:
            differing -= explained
            sentences.append(explain(base, changed))
    sentences = [sentence for sentence in sentences if sentence]
    return sentences + [
        f"{key} is {_said(after.get(key))} instead of {_said(before.get(key))}: {_words(key)}"
        for key in sorted(differing)
    ]


def _words(key: str) -> str:
    weight, why = meaning(key)
    return f"{weight}, {why}"


def _said(value: Any) -> str:
    return "absent" if value is None else f"{value:,}" if type(value) is int else str(value)


def _who_is_trained(base: Recipe, changed: Recipe) -> str:
    was, now = base.train.trained, changed.train.trained
    (_, before), (total, after) = (counts(recipe.model, recipe.train.trained) for recipe in (base, changed))
    adapters = _adapters(changed)
    if was == now:
        return (
            f"other adapters: {adapters or 'none'} instead of {_adapters(base) or 'none'},"
            f" {format_count(after)} instead of {format_count(before)} trained"
        )
    bfloat16 = "" if now == "full" else "; what is frozen is kept in bfloat16"
    return (
        f"train.trained={now}: {_WHO[now]}{f' ({adapters})' if adapters else ''} instead of {_WHO[was]}:"
        f" {format_count(after)} of {format_count(total)} parameters trained instead of"
        f" {format_count(before)}{bfloat16}; {_WHO_COSTS[now]}"
    )


def _adapters(recipe: Recipe) -> str:
    model = recipe.model
    ranks = {
        name: part.lora
        for name, part in (("paligemma", model.paligemma), ("action_expert", model.action_expert))
    }
    forgets = {
        name: "" if lora is None or lora.scale_feed_forward else " (not applied in the feed-forward)"
        for name, lora in ranks.items()
    }
    return ", ".join(
        f"rank {lora.rank} alpha {lora.alpha:g}{forgets[name]} on {name}"
        for name, lora in ranks.items()
        if lora
    )


def _average(base: Recipe, changed: Recipe) -> str:
    """The sentence on the average; empty if neither recipe keeps one."""
    was, now = base.train, changed.train
    if was.ema_decay is None and now.ema_decay is None:
        return ""
    if now.ema_decay is None:
        return (
            f"train.ema_decay=null: no average of the parameters (decay {was.ema_decay}); the last ones are"
            " deployed instead, which are noisier" + _on_tiny("train.ema_decay")
        )
    if was.ema_decay is None:
        return (
            f"train.ema_decay={now.ema_decay}: an average of the parameters is deployed instead of the last"
            " ones"
        )
    decay = (
        ""
        if was.ema_decay == now.ema_decay
        else f"train.ema_decay={now.ema_decay} instead of {was.ema_decay}: another average is deployed"
    )
    if was.ema_every_steps == now.ema_every_steps:
        return decay
    every = (
        f"train.ema_every_steps={now.ema_every_steps} instead of {was.ema_every_steps}: the average takes"
        f" every {now.ema_every_steps}th step's parameters with decay^{now.ema_every_steps}; the weights of"
        " the average sum to the same, the parameters in between are left out"
        + _on_tiny("train.ema_every_steps")
    )
    return f"{decay}; {every}" if decay else every


def _moments(base: Recipe, changed: Recipe) -> str:
    how = {
        "float32": "Adam's moments are kept exactly",
        "bfloat16": (
            "Adam's moments are kept in bfloat16, rounded at random so that they stay right on average; each"
            " is off by up to 0.8 %"
        ),
        "int8": (
            "Adam's moments are kept in 8 bits, in blocks of 256 that share a scale; an update is off by 2 to"
            " 3 % where a block's gradients lie within two decades"
        ),
    }
    key = "train.optimizer.moments"
    now = changed.train.optimizer.moments
    return f"{key}={now} instead of {base.train.optimizer.moments}: {how[now]}" + _on_tiny(f"{key}={now}")


def _frozen(base: Recipe, changed: Recipe) -> str:
    """The sentence on frozen weights; empty if nothing is frozen."""
    if changed.train.trained == "full":
        return ""
    how = {
        "bfloat16": "frozen weights are kept in bfloat16, as upstream does",
        "int8": (
            "frozen kernels are kept in 8 bits, in blocks of 64 that share a scale, and are off by 0.6 %;"
            " what is trained learns on slightly another network, which is what is saved"
        ),
        "int4": (
            "frozen kernels are kept in 4 bits (NF4, blocks of 64, as QLoRA does), and are off by 9 %; what"
            " is trained learns on another network, which is what is saved"
        ),
    }
    now = changed.train.frozen
    return f"train.frozen={now} instead of {base.train.frozen}: {how[now]}" + _on_tiny(f"train.frozen={now}")


def _global_batch(base: Recipe, changed: Recipe) -> str:
    was, now = base.train.global_batch, changed.train.global_batch
    samples = (
        f"{changed.train.steps:,} steps then see {now * changed.train.steps:,} samples instead of"
        f" {was * base.train.steps:,}"
    )
    noise = "gradients are noisier" if now < was else "gradients are less noisy"
    rate = (
        ", at the same learning rate"
        if base.train.optimizer.schedule == changed.train.optimizer.schedule
        else ""
    )
    return (
        f"train.global_batch={now} instead of {was}: {noise}, by a factor of"
        f" {(max(was, now) / min(was, now)) ** 0.5:.1f}{rate}; {samples}"
    )


def _steps(base: Recipe, changed: Recipe) -> str:
    was, now = base.train.steps, changed.train.steps
    warmup = changed.train.optimizer.schedule.warmup_steps
    ends = f"; the run ends inside the warm-up of {warmup:,} steps" if now <= warmup else ""
    return (
        f"train.steps={now:,} instead of {was:,}: each step is the recipe's, the run is"
        f" {'shorter' if now < was else 'longer'}{ends}"
    )


def _seed(base: Recipe, changed: Recipe) -> str:
    return (
        f"train.seed={changed.train.seed} instead of {base.train.seed}: the same experiment with other random"
        " numbers and another order of frames"
    )


def _on_tiny(key: str) -> str:
    return f"; on the tiny model {TINY[key]}" if key in TINY else ""


_EXPLAINED: list[tuple[tuple[str, ...], Callable[[Recipe, Recipe], str]]] = [
    (("train.trained", "model.paligemma.lora", "model.action_expert.lora"), _who_is_trained),
    (("train.frozen",), _frozen),
    (("train.optimizer.moments",), _moments),
    (("train.ema_decay", "train.ema_every_steps"), _average),
    (("train.global_batch",), _global_batch),
    (("train.steps",), _steps),
    (("train.seed",), _seed),
]
