"""Chooses what the backward pass keeps of each layer, where a plan leaves memory for it.

The search finds its plans with the level "block", which keeps least. Of the best of them the other levels are
then tried, with as many rows at once or fewer: a smaller microbatch that keeps more may be faster than a
larger one. What is predicted to be fastest is tried first, and the first that fits is chosen. A plan is not
asked about if what it keeps, counted from shapes, would not fit beside what the best plan needs.

A plan whose state lies elsewhere may leave room to keep more, and be faster by that. Such plans are tried
last, where the atlas knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

from harness.artifacts import Candidate, Levers
from harness.artifacts.plan import Remat
from harness.plan.activations import KEPT_SHARE, kept_bytes
from harness.plan.candidates import smaller
from harness.plan.memory import ACTIVATIONS, REST, least_bytes
from harness.plan.place import Place
from harness.recipe.schema import Recipe

# What keeps more must save more than this share of a step: the cost model is some percent off.
_WORTH = 0.03
# What moves more of the state besides must save more than this share.
_WORTH_ELSEWHERE = 0.04


class Answers(NamedTuple):
    """The search's answers about plans of one recipe: the predicted seconds, the candidate, and whether the
    compiler's answer is there or may be asked for.
    """

    seconds: Callable[[Levers], float]
    candidate: Callable[[Levers], Candidate]
    may_ask: Callable[[Levers], bool]


def with_more_kept(
    recipe: Recipe,
    place: Place,
    best: Candidate,
    made: list[Candidate],
    search: Answers,
    elsewhere: Sequence[Levers] = (),
) -> tuple[Candidate, list[Candidate]]:
    """(the fastest plan that fits and differs from `best` in what is kept, or else `best`; all plans).

    `elsewhere` are plans whose state may lie in other places.
    """
    if place.platform != "cuda":
        return best, made
    own = where(best.levers)
    far = [levers for levers in elsewhere if where(levers) != own]
    for rows, worth in ((smaller(recipe, best.levers), _WORTH), (far, _WORTH_ELSEWHERE)):
        best, made = _fastest(recipe, place, best, made, search, rows, worth)
    return best, made


def _fastest(
    recipe: Recipe,
    place: Place,
    best: Candidate,
    made: list[Candidate],
    search: Answers,
    rows: list[Levers],
    worth: float,
) -> tuple[Candidate, list[Candidate]]:
    """(the fastest plan of `rows`, at any level, that fits and is worth it, or else `best`; all plans)."""
    others = [
        levers.model_copy(update={"remat": level})
        for levers in rows
        for level in get_args(Remat)
        if (level, where(levers)) != (best.levers.remat, where(best.levers))
    ]
    most = search.seconds(best.levers) * (1 - worth)
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


def where(levers: Levers) -> tuple[int, list[str], str]:
    """Where the state lies, and how it is saved."""
    return levers.fsdp, list(levers.host), levers.save


def _may_fit(recipe: Recipe, place: Place, best: Candidate, levers: Levers) -> bool:
    """Whether the device has room for what `levers` keep, by a count that is rather too small.

    What `best` needs beside the state is taken to shrink with the rows.
    """
    more, already = (int(KEPT_SHARE * kept_bytes(recipe, one)) for one in (levers, best.levers))
    by_row = max(0, best.breakdown.get(ACTIVATIONS, best.breakdown.get(REST, 0)) - already)
    more -= already
    less = int(by_row * (1 - levers.microbatch / best.levers.microbatch))
    less += least_bytes(recipe, best.levers) - least_bytes(recipe, levers)
    found, usable = best.phases, place.usable_bytes
    if place.shared:
        found, usable = best.shared_phases, place.pool_usable_bytes
    return usable is None or found["step"] + more - less <= usable
