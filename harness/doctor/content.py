"""Checks of what is to be learned: who is trained, the data, its statistics, the weights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from harness.artifacts.doctor import Finding
from harness.doctor.situation import Situation, error, warning
from harness.download import is_remote
from harness.errors import HarnessError
from harness.parameters import check_who_is_trained


def trained(situation: Situation) -> Iterator[Finding]:
    """Who is trained is what the recipe says, and no more."""
    try:
        check_who_is_trained(situation.recipe)
    except HarnessError as refusal:
        yield error("trained", refusal.got or refusal.what, refusal.need or "adapters alone to be trained", refusal.fix)


def deviations(situation: Situation) -> Iterator[Finding]:
    """The plan is the recipe's own mathematics; where it is not, it says so before the run."""
    chosen = situation.plan.chosen if situation.plan else None
    for deviation in chosen.deviations if chosen else []:
        yield warning("deviation", deviation, "the recipe as it is written", "harness plan --exact tells the smallest card that carries it out exactly")


def dataset(situation: Situation) -> Iterator[Finding]:
    """The dataset holds at least one batch, and nothing that its reader stumbled over."""
    found = situation.dataset
    if found is None:
        return
    batch = situation.recipe.train.global_batch
    if found.frames < batch:
        yield error("dataset", f"{found.frames} frames", f"at least one batch of {batch}", f"--set train.global_batch={found.frames}, or more data")
    for text in found.findings:
        yield warning("dataset", text, "a dataset without findings", f"harness data --dataset {found.source} --html shows it")


def statistics(situation: Situation) -> Iterator[Finding]:
    """No dimension of state or actions is degenerate, so that nothing explodes when it is normalized."""
    strict = situation.recipe.data.degenerate_dimensions == "error"
    for found in situation.stats.findings if situation.stats else []:
        largest = "" if found.largest_normalized is None else f"; the largest normalized value is {found.largest_normalized:.3g}"
        make = error if strict else warning
        yield make("statistics", f"{found.key}[{found.dimension}]: {found.problem}{largest}", "a spread that quantiles can be divided by", found.fix)


def leftovers(situation: Situation) -> Iterator[Finding]:
    """No interrupted save lies in the run's checkpoints; one is never resumed from, but holds disk space."""
    for save in situation.leftovers:
        got = f"{save.path} was never finished ({', '.join(save.missing) or save.reason})"
        fix = f"harness inspect {Path(save.path).parent} --clean" if save.safe_to_delete else f"wait: {save.reason}"
        yield warning("interrupted save", got, "whole checkpoints only", fix)


def weights(situation: Situation) -> Iterator[Finding]:
    """Weights that are said to lie on this machine do, and are those of the recipe's model."""
    source = situation.recipe.weights.source
    if source is None or is_remote(source):
        return
    if situation.why_not_weights is not None:
        refusal = situation.why_not_weights(Path(source), situation.recipe)
        if refusal is not None:
            got = f"{refusal.what}; {refusal.got}" if refusal.got else refusal.what
            yield error("weights", got, refusal.need or "weights of the recipe's model", refusal.fix)
    elif not Path(source).is_dir():
        fix = "mount the directory into the container, or --set weights.source=gs://openpi-assets/checkpoints/pi05_base/params"
        yield error("weights", f"there is no directory {source}", "an openpi params directory", fix)
    else:
        with contextlib.suppress(OSError):
            if not os.listdir(source):
                yield error("weights", f"{source} is empty", "an openpi params directory", "download it again, whole")
