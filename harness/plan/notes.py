"""Writes a plan's notes: assumptions about the place, obstacles, and the card that would do."""

from __future__ import annotations

from collections.abc import Callable

from harness.artifacts import Candidate, Cluster, Machine
from harness.errors import HarnessError
from harness.plan import saving, shared
from harness.plan.atlas import Atlas
from harness.plan.busy import holders
from harness.plan.cards import CARDS
from harness.plan.cluster import notes_on
from harness.plan.place import Place
from harness.recipe.schema import Recipe
from harness.units import format_bytes, format_count


def notes_of(
    recipe: Recipe,
    machine: Machine,
    place: Place,
    chosen: Candidate | None,
    *,
    atlas: Atlas | None,
    smallest_card: Callable[[], str],
    exact: bool,
    together: Cluster | None = None,
) -> list[str]:
    """The notes of a plan, each a sentence.

    `smallest_card` names the card that would do. It is called only if the recipe itself does not fit.
    `exact`: nothing approximate was allowed. `together` are the machines of a plan for several.
    """
    notes = [*place.notes, *notes_on(place, together)]
    if place.platform == "cpu":
        return notes
    if atlas is not None and atlas.refused and chosen is not None and chosen.source == "compiled":
        notes.append(atlas.refused)
    if place.shared:
        notes.append(
            f"{place.name} has one memory for CPU and GPU: device and host bytes of each phase are counted"
            " together, saves included"
        )
        notes += shared.kept(chosen, place.pool_usable_bytes) if chosen is not None else []
    if place.wsl:
        notes.append(
            "WSL2: no part of the state can lie in pinned host memory, and Windows may take 1 GiB more of the"
            " card"
        )
    if place.host_usable_bytes is None:
        notes.append("host memory is not checked: it is not known; --host-ram-gib X says how much there is")
    notes += saving.notes_on(recipe, place, chosen)
    held = holders(machine) if place.here else ""
    if held:
        notes.append(f"{held}; harness plan --wait waits for them")
    if chosen is None or chosen.changes:
        notes.append(smallest_card())
    if chosen is not None and chosen.changes and not exact:
        notes.append(
            f"this is not recipe {recipe.name} but an approximation of it"
            f" ({format_count(len(chosen.deviations))} deviations); --exact refuses it"
        )
    return notes


def smallest_card(recipe: Recipe, place: Place, fits_exactly: Callable[[str], bool]) -> str:
    """The smallest card of the table on which the recipe fits exactly in this place, as a sentence."""
    exactly = f"recipe {recipe.name} exactly"
    if not place.shared:
        exactly += " under WSL2" if place.wsl else ""
        usable = place.host_usable_bytes
        exactly += "" if usable is None else f" beside {format_bytes(usable)} of host memory"
    for key in sorted(CARDS, key=lambda key: CARDS[key].memory_bytes):
        try:
            if fits_exactly(key):
                size = format_bytes(CARDS[key].memory_bytes)
                return f"the smallest card that carries out {exactly}: {key} ({size})"
        except HarnessError as error:
            if error.code != "not-in-atlas":
                raise
            return (
                "the atlas does not tell which card would carry the recipe out exactly; harness plan --gpu"
                " NAME"
                " --exact asks the compiler"
            )
    return f"no single card of the table carries out {exactly}"
