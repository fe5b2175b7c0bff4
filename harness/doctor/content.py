"""Checks of the training content: trained parameters, dataset, statistics, tokenizer, weights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from harness.artifacts.doctor import Finding
from harness.doctor.situation import NotNeeded, Situation, error, unknown, warning
from harness.download.cache import is_remote
from harness.errors import HarnessError
from harness.received.text import word
from harness.recipe.parameters import check_who_is_trained


def trained(situation: Situation) -> Iterator[Finding]:
    """Checks that exactly the parameters that the recipe names are trained."""
    try:
        check_who_is_trained(situation.recipe)
    except HarnessError as refusal:
        yield error(
            "trained",
            refusal.got or refusal.what,
            refusal.need or "adapters alone to be trained",
            refusal.fix,
        )


def dataset(situation: Situation) -> Iterator[Finding]:
    """Checks that the dataset has at least one batch, and that its reader found nothing odd."""
    found = situation.dataset
    if found is None:
        yield _not_here(situation, "dataset")
        return
    batch = situation.recipe.train.global_batch
    frames = found.trained
    if frames < batch:
        left = (
            "" if found.trained_frames is None else f" left by the {found.held_out_count} held-out episodes"
        )
        yield error(
            "dataset",
            f"{frames} frames{left}",
            f"at least one batch of {batch}",
            f"--set train.global_batch={frames}, or more data",
        )
    for text in found.findings if found.members else []:
        yield warning(
            "dataset", text, "datasets that are alike", "leave it, or mix others: data.datasets of the recipe"
        )
    for part in found.parts:
        for text in part.findings:
            yield warning(
                "dataset",
                f"{part.source}: {text}" if found.members else text,
                "a dataset without findings",
                f"harness data --dataset {word(part.source)} --html shows it",
            )


def statistics(situation: Situation) -> Iterator[Finding]:
    """Checks that no dimension of state or actions is degenerate.

    Normalizing a degenerate dimension gives very large values.
    """
    strict = situation.recipe.data.degenerate_dimensions == "error"
    if situation.stats is None:
        yield _not_here(situation, "statistics")
        return
    for found in situation.stats.findings:
        largest = (
            ""
            if found.largest_normalized is None
            else f"; the largest normalized value is {found.largest_normalized:.3g}"
        )
        make = error if strict else warning
        yield make(
            "statistics",
            f"{found.key}[{found.dimension}]: {found.problem}{largest}",
            "a spread that quantiles can be divided by",
            found.fix,
        )


def tokenizer(situation: Situation) -> Iterator[Finding]:
    """Checks that a tokenizer of the user's own is on this machine."""
    name = situation.recipe.data.tokenizer
    if name in ("sample", "paligemma"):
        raise NotNeeded("the package has it" if name == "sample" else "it is downloaded")
    if not Path(name).is_file():
        yield error(
            "tokenizer",
            f"there is no file {name}",
            "a sentencepiece .model file",
            "--set data.tokenizer=paligemma, or mount the file's directory into the container",
        )


def _not_here(situation: Situation, check: str) -> Finding:
    data = situation.recipe.data
    name = (data.away() or data.parts())[0].dataset
    got = f"the dataset {name} is not on this machine, so nothing was looked at"
    return unknown(
        check,
        got,
        "the data, to be looked at",
        f"harness data --dataset {word(name)} fetches it; harness train looks before it trains",
    )


def leftovers(situation: Situation) -> Iterator[Finding]:
    """Checks that the run's checkpoints contain no interrupted save.

    An interrupted save takes disk space, and no run resumes from it.
    """
    if situation.run is None:
        raise NotNeeded("no --run was named")
    for save in situation.leftovers:
        got = f"{save.path} was never finished ({', '.join(save.missing) or save.reason})"
        fix = (
            f"harness inspect {word(Path(save.path).parent)} --clean"
            if save.safe_to_delete
            else f"wait: {save.reason}"
        )
        yield warning("interrupted save", got, "whole checkpoints only", fix)


def weights(situation: Situation) -> Iterator[Finding]:
    """Checks that local weights exist and belong to the recipe's model."""
    source = situation.recipe.weights.source
    if source is None:
        raise NotNeeded("the recipe starts from random weights")
    if is_remote(source):
        raise NotNeeded("the weights are fetched; see the check of weights")
    if situation.why_not_weights is not None:
        refusal = situation.why_not_weights(Path(source), situation.recipe)
        if refusal is not None:
            got = f"{refusal.what}; {refusal.got}" if refusal.got else refusal.what
            yield error("weights", got, refusal.need or "weights of the recipe's model", refusal.fix)
        elif situation.other_actions is not None:
            other = situation.other_actions(Path(source), situation.recipe)
            if other is not None:
                fix = "--set data.relative=RANGES if yours are absolute joint targets, or leave it"
                yield warning("weights", other, "actions of the kind that the weights were trained on", fix)
    elif not Path(source).is_dir():
        fix = (
            "mount the directory into the container, or --set"
            " weights.source=gs://openpi-assets/checkpoints/pi05_base/params"
        )
        yield error("weights", f"there is no directory {source}", "an openpi params directory", fix)
    else:
        with contextlib.suppress(OSError):
            if not os.listdir(source):
                yield error(
                    "weights", f"{source} is empty", "an openpi params directory", "download it again, whole"
                )
