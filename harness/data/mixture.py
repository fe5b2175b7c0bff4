"""Mixtures of datasets: the shares in which they are drawn, and what is said of all of them together.

A weight is a dataset's share of the samples, whatever its size: with weights 3 and 1 three of four samples
are of the first. Without weights every frame is drawn equally often, as if the datasets were one. Source of
the two ways: openpi's RLDS mixtures and Octo's `sample_weights` are shares; LeRobot's MultiLeRobotDataset
puts datasets one after the other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

from harness.artifacts import Dataset
from harness.data.mapping import widths_of
from harness.errors import HarnessError
from harness.recipe.schema import Recipe


def shares_of(recipe: Recipe, frames: Sequence[int]) -> list[int]:
    """The shares of the recipe's datasets in the samples, as the least whole numbers in their proportion.

    `frames` are the numbers of frames that are trained on.
    """
    weights = [member.weight for member in recipe.data.datasets or []]
    if any(weight is None for weight in weights) or not weights:
        whole = list(frames)
    else:
        # The decimal digits that were written: 0.7 and 0.3 are 7 to 3.
        exact = [Fraction(repr(weight)) for weight in weights]
        scale = math.lcm(*(each.denominator for each in exact))
        whole = [int(each * scale) for each in exact]
    common = math.gcd(*whole)
    return [each // common for each in whole]


def together(recipe: Recipe, members: list[Dataset]) -> Dataset:
    """The datasets of a mixture as one artifact.

    Raises: HarnessError "dataset-twice" if two have the same content.
    """
    for n, one in enumerate(members):
        same = next((other for other in members[:n] if other.sha256 == one.sha256), None)
        if same is not None:
            raise twice(n, one.source, same.source)
    trained = [one.trained for one in members]
    shares = shares_of(recipe, trained)
    lines = [f"{one.sha256} {share}\n" for one, share in zip(members, shares, strict=True)]
    features = {name: feature for one in reversed(members) for name, feature in one.features.items()}
    versions = dict.fromkeys(one.format_version for one in members)
    return Dataset(
        source=f"a mixture of {', '.join(one.source for one in members)}",
        path="",
        format_version=", ".join(versions),
        fps=members[0].fps,
        episodes=sum(one.episodes for one in members),
        frames=sum(one.frames for one in members),
        tasks=list(dict.fromkeys(task for one in members for task in one.tasks)),
        features=features,
        cameras=dict(recipe.data.cameras),
        sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
        **prompts_together(members),
        total_bytes=sum(one.total_bytes for one in members),
        findings=[*_of_all(recipe, members)],
        trained_frames=sum(trained) if recipe.train.holdout is not None else None,
        members=members,
        shares=shares,
    )


def prompts_together(members: list[Dataset]) -> dict[str, object]:
    """The prompts' lengths over all datasets; unknown if one of them is."""
    lengths = [one.longest_prompt_tokens for one in members]
    known = [length for length in lengths if length is not None]
    why = {key: text for one in members for key, text in one.unknown.items()}
    return {
        "longest_prompt_tokens": max(known) if len(known) == len(lengths) else None,
        "prompt_tokens": max(one.prompt_tokens for one in members),
        "unknown": why,
    }


def twice(n: int, source: str, other: str) -> HarnessError:
    """The error for dataset `n` of a mixture, which another of its datasets is already."""
    return HarnessError(
        "dataset-twice",
        f"data.datasets.{n}: {source} is the same dataset as {other}",
        got="one dataset under two names",
        need="each dataset once, with a weight",
        fix=f"leave data.datasets.{n} out, and give the other one its weight",
    )


def _of_all(recipe: Recipe, members: list[Dataset]) -> list[str]:
    """Findings on the datasets beside each other: what differs, and how often small ones are seen."""
    horizon = recipe.model.action_horizon
    rates = {one.source: one.fps for one in members}
    found = []
    if len(set(rates.values())) > 1:
        said = ", ".join(f"{name} {fps:g} ({horizon / fps:.3g} s)" for name, fps in rates.items())
        found.append(
            f"the datasets have different rates, so a chunk of {horizon} actions spans other times (frames a"
            f" second): {said}"
        )
    widths = {
        one.source: widths_of(part.data, one.features)["actions"]
        for one, part in zip(members, recipe.parts(), strict=True)
    }
    if len(set(widths.values())) > 1:
        said = ", ".join(f"{name} {width}" for name, width in widths.items())
        found.append(f"the actions have different numbers of dimensions, and are padded with zeros: {said}")
    return found
