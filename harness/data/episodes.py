"""The episodes of a dataset that are read: a pure function of the recipe and of the numbers that it has.

What is left out is not opened: its files may be broken or gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError
from harness.received.text import word
from harness.recipe.episodes import Numbers, compact, expanded, spelled_out
from harness.recipe.schema import Episodes

# Most runs of numbers that an error shows.
_MOST_SHOWN = 8
# What is wrong in the files of single episodes. The run can do without these episodes.
_OF_EPISODES = frozenset(
    {
        "dataset-file-corrupt",
        "dataset-file-missing",
        "dataset-not-finite",
        "dataset-rows-mismatch",
        "image-corrupt",
        "image-missing",
        "image-too-large",
        "timestamps-wrong",
        "video-corrupt",
        "video-other-rate",
        "video-too-short",
    }
)


class Selection(NamedTuple):
    """What a recipe says of the episodes, and the `key` at which it says so."""

    episodes: Episodes | None = None
    key: str = "data.episodes"

    def leave_out(self, numbers: Sequence[int]) -> str:
        """The advice to leave these episodes out as well, with the option that does it."""
        known = self.episodes.exclude if self.episodes is not None else []
        which = _named(numbers)
        both = compact({*expanded(known), *numbers})
        return f"leave {which} out: --set {word(f'{self.key}.exclude={spelled_out(both)}')}"


def chosen(selection: Selection, there: Sequence[int], where: Path) -> set[int]:
    """The numbers of the episodes that are read, of those that are `there`.

    Raises: HarnessError "episodes-not-there" if the recipe names another; "episodes-none-left".
    """
    has = set(there)
    said = selection.episodes or Episodes()
    include = has if said.include is None else expanded(said.include)
    exclude = expanded(said.exclude)
    for name, numbers in (("include", include), ("exclude", exclude)):
        lacking = sorted(numbers - has)
        if lacking:
            rest = compact(numbers & has)
            key = f"{selection.key}.{name}"
            value = spelled_out(rest) if rest or name == "exclude" else "null"
            raise HarnessError(
                "episodes-not-there",
                f"{key} names {_named(lacking)}, and {where} has no such",
                got=_shown(compact(numbers)),
                need=f"of the dataset's {len(has):,}: {_shown(compact(has))}",
                fix=f"--set {word(f'{key}={value}')}",
            )
    if not include - exclude:
        raise HarnessError(
            "episodes-none-left",
            f"{selection.key} leaves no episode of {where}",
            got=f"{len(include):,} included, {len(exclude & include):,} of them excluded",
            need="at least one episode",
            fix=f"--set {word(f'{selection.key}.exclude=[]')}",
        )
    return include - exclude


ALL = Selection()


@contextmanager
def naming(selection: Selection, numbers: Sequence[int], read: int) -> Iterator[None]:
    """Adds the way without these episodes to the fix of what is wrong in their files.

    `read` is the number of episodes that are read now: the last one cannot be left out.
    """
    try:
        yield
    except HarnessError as refusal:
        if refusal.code in _OF_EPISODES and len(numbers) < read and f"{selection.key}." not in refusal.fix:
            refusal.fix = f"{refusal.fix}; or {selection.leave_out(numbers)}"
        raise


def _named(numbers: Sequence[int]) -> str:
    plural = "s" if len(numbers) > 1 else ""
    return f"episode{plural} {_shown(compact(numbers))}"


def _shown(numbers: Numbers) -> str:
    more = f" and {len(numbers) - _MOST_SHOWN:,} more runs" if len(numbers) > _MOST_SHOWN else ""
    return ", ".join(map(str, numbers[:_MOST_SHOWN])) + more if numbers else "none"
