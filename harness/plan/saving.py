"""Chooses how a plan saves: in the background, or streamed where host memory is short for that.

An asynchronous save holds a copy of the state on the host while it is written. A streamed one has buffers,
and training waits. It is chosen where no plan of the same recipe fits with asynchronous saves, or where those
that do are clearly slower. On a host whose memory is not known it is chosen where parts of the state lie in
host memory, of which the copy would be a second one.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.artifacts import Candidate, Levers
from harness.plan import memory, shared
from harness.plan.candidates import changed
from harness.plan.place import HOST_MARGIN_BYTES, Place
from harness.recipe.schema import Recipe
from harness.units import GIB, format_bytes

# A plan with streamed saves must save more than this share of a step, because training waits at each save.
_WORTH = 0.07


def ranked(seconds: float, levers: Levers) -> float:
    """The seconds by which a plan is compared with others: more than a step's where saves are streamed."""
    return seconds * (1 + _WORTH) if levers.save == "streamed" else seconds


def streamed_where_unknown(
    place: Place, best: Candidate, made: list[Candidate], again: Callable[[Levers], Candidate]
) -> tuple[Candidate, list[Candidate]]:
    """(the chosen plan, all plans). Those that use a host of unknown memory stream their saves.

    `again` makes a plan of given levers.
    """
    if place.host_usable_bytes is not None or place.shared:
        return best, made

    def least(one: Candidate) -> Candidate:
        if one.verdict == "rejected" or one.changes != best.changes or not one.levers.host:
            return one
        other = again(streamed(one.levers))
        return other if other.verdict == "fits" else one

    told = {id(one): least(one) for one in made}
    return told[id(best)], list(told.values())


def streamed_where_short(recipe: Recipe, sets: list[Levers], place: Place) -> list[Levers]:
    """Those of the sets whose asynchronous saves are too much for the host, with streamed ones."""
    return [streamed(levers) for levers in sets if _is_short(recipe, levers, place)]


def notes_on(recipe: Recipe, place: Place, chosen: Candidate | None) -> list[str]:
    """A note on the pause, and on what asynchronous saves would need, if the plan streams its saves."""
    if chosen is None or chosen.levers.save != "streamed":
        return []
    recipe = changed(recipe, chosen.changes)
    levers = chosen.levers.model_copy(update={"save": "async"})
    copy, other = memory.checkpoint_bytes(recipe), memory.host_bytes(recipe, levers)
    note = (
        f"saves are streamed: at each, training waits until {format_bytes(copy)} are packed and on the disk,"
        " at a rate that is not known here"
    )
    of = "host memory"
    if place.shared:
        other, of = shared.save_bytes(recipe, levers), "the memory of CPU and GPU"
    note += f"; asynchronous saves would need {format_bytes(other)} of {of}"
    if place.host_usable_bytes is None:
        note += f" (--host-ram-gib {-(-(other + HOST_MARGIN_BYTES) // GIB)} plans them)"
    return [note]


def _is_short(recipe: Recipe, levers: Levers, place: Place) -> bool:
    """Whether host memory, or the memory that CPU and GPU share, is too small for asynchronous saves."""
    if place.platform == "cpu" or levers.save == "streamed":
        return False
    if place.shared:
        usable, need = place.pool_usable_bytes, shared.save_bytes(recipe, levers)
    else:
        usable, need = place.host_usable_bytes, memory.host_bytes(recipe, levers)
    return usable is not None and need > usable


def streamed(levers: Levers) -> Levers:
    """The same levers with streamed saves."""
    return levers.model_copy(update={"save": "streamed"})
