"""Chooses what the backward pass keeps of each layer, where a plan leaves memory for it.

The search finds its plans with the level "block", which keeps least. Of the best of them the other levels are
then tried, with as many rows at once or fewer: a smaller microbatch that keeps more may be faster than a
larger one. What is predicted to be fastest is tried first, and the first that fits is chosen. A plan is not
asked about if what it keeps, counted from shapes, would not fit beside what the best plan needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, get_args

from harness.artifacts import Candidate, Levers
from harness.artifacts.plan import Remat
from harness.plan.activations import KEPT_SHARE, kept_bytes
from harness.plan.candidates import smaller
from harness.plan.memory import ACTIVATIONS, REST
from harness.plan.place import Place
from harness.recipe.schema import Recipe

# What keeps more must save more than this share of a step: the cost model is some percent off.
_WORTH = 0.03


class Answers(NamedTuple):
    """The search's answers about plans of one recipe: the predicted seconds, the candidate, and whether the
    compiler's answer is there or may be asked for.
    """

    seconds: Callable[[Levers], float]
    candidate: Callable[[Levers], Candidate]
    may_ask: Callable[[Levers], bool]


def with_more_kept(
    recipe: Recipe, place: Place, best: Candidate, made: list[Candidate], search: Answers
) -> tuple[Candidate, list[Candidate]]:
    """(the fastest plan that fits and differs from `best` in what is kept, or else `best`; all plans)."""
    if place.platform != "cuda":
        return best, made
    others = [
        levers.model_copy(update={"remat": level})
        for levers in smaller(recipe, best.levers)
        for level in get_args(Remat)
        if level != best.levers.remat
    ]
    most = search.seconds(best.levers) * (1 - _WORTH)
    for levers in sorted(others, key=search.seconds):
        if search.seconds(levers) > most:
            break
        if not _may_fit(recipe, place, best, levers) or not search.may_ask(levers):
            continue
        tried = search.candidate(levers)
        made = [*made, tried]
        if tried.verdict == "fits":
            return tried, made
    return best, made


def _may_fit(recipe: Recipe, place: Place, best: Candidate, levers: Levers) -> bool:
    """Whether the device has room for what `levers` keep, by a count that is rather too small.

    What `best` needs beside the state is taken to shrink with the rows.
    """
    more = int(KEPT_SHARE * kept_bytes(recipe, levers))
    by_row = best.breakdown.get(ACTIVATIONS, best.breakdown.get(REST, 0))
    less = int(by_row * (1 - levers.microbatch / best.levers.microbatch))
    found, usable = best.phases, place.usable_bytes
    if place.shared:
        found, usable = best.shared_phases, place.pool_usable_bytes
    return usable is None or found["step"] + more - less <= usable
