"""What a model card says of the recipe's keys: how the policy is run as it was trained.

In openpi states, actions and prompts are transformed by a training configuration, which is not a file of the
checkpoint. So the card names what that configuration must have.

Source: openpi src/openpi/training/config.py, transforms.py, models/pi0_config.py, commit 15a9616.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePath
from typing import NamedTuple

from harness.recipe.dimensions import numbers_of
from harness.recipe.schema import Data, Recipe

Row = tuple[str, str]


class _Said(NamedTuple):
    """What a card says of one key, for both kinds of programs."""

    name: str
    openpi: str
    lerobot: str


def key_rows(recipe: Recipe, target: str) -> list[Row]:
    """(name, text) for each key that a person needs to know of. `target` is one of an export."""
    parts = [part.data for part in recipe.parts()]
    said = [*_prompt_form(recipe, parts[0]), *_of_all(recipe)]
    of_each = [(part, _of_one(part)) for part in parts]
    alike = {
        each: [part for part, whole in of_each if each in whole] for _, found in of_each for each in found
    }
    for each, members in alike.items():
        whose = "" if len(members) == len(parts) else f", {' and '.join(part.dataset for part in members)}"
        said.append(each._replace(name=f"{each.name}{whose}"))
    return [(each.name, each.lerobot if target == "lerobot" else each.openpi) for each in said]


def _prompt_form(recipe: Recipe, first: Data) -> Iterator[_Said]:
    """Whether the state stands in the prompt: openpi's own default for π0.5 is that it does."""
    flag = recipe.model.discrete_state_input
    yield _Said(
        "state in the prompt",
        f"{'yes, in 256 bins' if flag else 'no'}: Pi0Config(pi05=True, discrete_state_input={flag})",
        "yes, in 256 bins: the preprocessor writes it"
        if flag
        else "no: the prompt is the task and a line break. Give the task in one line, without underscores",
    )
    if recipe.data.normalization == "zscore":
        yield _Said("normalization", "z-scores: use_quantile_norm=False", "z-scores: MEAN_STD")
    if recipe.data.tokenizer != "paligemma":
        name = PurePath(recipe.data.tokenizer).name
        text = f"{name}, not PaliGemma's: the prompts must be made with it"
        yield _Said("tokenizer", text, text)
    if (flag or first.relative) and first.state_features not in ((), ("observation.state",)):
        text = ", then ".join(first.state_features)
        yield _Said("state", text, f"observation.state is {text}")


def _of_all(recipe: Recipe) -> Iterator[_Said]:
    data = recipe.data
    if data.datasets is not None:
        names = ", ".join(
            f"{member.dataset}{'' if member.weight is None else f' ({member.weight:g})'}"
            for member in data.datasets
        )
        yield _Said("mixture of", names, names)
    asset = f"AssetsConfig(asset_id={json.dumps(data.asset_id)})"
    if data.norm_stats is not None:
        given = "the base's" if data.norm_stats == "base" else PurePath(data.norm_stats).name
        yield _Said("statistics", f"given ({given}): {asset}", f"given ({given}), in both pipelines")
    elif data.datasets is not None:
        yield _Said("statistics", f"of the mixture: {asset}", "of the mixture, in both pipelines")
    else:
        yield _Said("statistics", f"of the dataset: {asset}", "of the dataset, in both pipelines")
    if most := recipe.train.most_delay:
        given = f"up to {most} first actions of a chunk may be given, clean and at flow time 0"
        yield _Said(
            "trained with delays",
            f"{given}: openpi's sampler gives none, and then the policy acts as any other",
            f"{given}: rtc_training_max_delay is {most}, for --inference.rtc.mode=trained of LeRobot from"
            " commit 15b19df on",
        )


def _of_one(data: Data) -> list[_Said]:
    """What is said of one dataset's states, actions and prompts."""
    said = []
    if numbers := numbers_of(data.relative):
        dimensions = f"dimensions {', '.join(data.relative or [])}"
        mask = f"make_bool_mask({', '.join(map(str, _runs(numbers)))})"
        said.append(
            _Said(
                "relative actions",
                f"{dimensions}: DeltaActions({mask}) before the model, AbsoluteActions({mask}) after it",
                f"{dimensions}: both pipelines have the steps. n_action_steps is 1: for whole chunks call"
                " predict_action_chunk and the postprocessor on the chunk, or use --inference.type=rtc",
            )
        )
    if data.adapt is not None:
        said.append(
            _Said("ALOHA's joints", "turned into π0.5's: AlohaInputs and AlohaOutputs(adapt_to_pi=True)", "")
        )
    for name, text in (("prompt", data.prompt), ("prompt without a task", data.default_prompt)):
        if text is not None:
            quoted = json.dumps(text, ensure_ascii=False)
            alone = "; send no other" if name == "prompt" else ""
            said.append(
                _Said(name, f"InjectDefaultPrompt({quoted}){alone}", f"{quoted}: give it as the task")
            )
    return said


def _runs(numbers: list[int]) -> list[int]:
    """Runs of openpi's `make_bool_mask` up to the last number: their lengths, negative where not relative."""
    mask = [number in numbers for number in range(numbers[-1] + 1)]
    return [sum(1 for _ in run) * (1 if relative else -1) for relative, run in groupby(mask)]
