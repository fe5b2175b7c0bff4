"""Constants and helpers for the files inside an item of a checkpoint: chunks, locations, safe names, shapes.

No JAX, no tensorstore. `harness.run.steps` has the names and contents of a step.
Source: orbax-checkpoint 0.11.13 and 0.12.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from harness.received.names import why_no_relative_name
from harness.recipe.parameters import Group
from harness.units import MIB

# A leaf is stored in chunks of this size, so that saving and loading need no second copy of a 4.5 GiB leaf.
CHUNK_BYTES = 64 * MIB
# Nodes of the tree in `_METADATA` that hold no array.
EMPTY = ("None", "Dict", "List", "NamedTuple", "Tuple")
# The file, or key, that describes an array: of zarr v2, of v3.
ZARR2, ZARR3 = ".zarray", "zarr.json"
GROUPS: tuple[Group, ...] = ("vision", "language", "expert", "adapters", "projections")

# Errors that tensorstore raises for a store that violates its format.
DAMAGE = (ValueError, LookupError, TypeError, ArithmeticError, NotImplementedError)

Shapes = Mapping[str, tuple[int, ...]]


class Location(NamedTuple):
    """Bytes `offset` to `end` of `file`, a name below the item."""

    file: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@lru_cache(4096)
def outside(name: str) -> bool:
    """Whether a name that an item gives to one of its files leads out of the item, or is not a plain name."""
    return why_no_relative_name(name) is not None


def parse_location(text: str) -> Location:
    """The location that OCDBT writes as "kind:base:file:offset:length".

    Base and file are percent-encoded; base may be empty.
    Raises: ValueError.
    """
    _, base, file, offset, length = text.split(":")
    location = Location(unquote(base) + unquote(file), int(offset), int(length))
    if location.offset < 0 or location.length < 0 or location.end >= 2**63:
        raise ValueError(f"a location of {location.length} bytes at {location.offset}")
    return location


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, cut to 300 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def mismatches(found: Shapes, wanted: Shapes) -> list[str]:
    """One line for every missing, unexpected and mis-shaped array."""
    lines = [f"{path} is missing" for path in sorted(wanted.keys() - found.keys())]
    lines += [f"{path} is unexpected" for path in sorted(found.keys() - wanted.keys())]
    both = sorted(wanted.keys() & found.keys())
    return lines + [
        f"{path} has shape {tuple(found[path])}, not {tuple(wanted[path])}"
        for path in both
        if tuple(found[path]) != tuple(wanted[path])
    ]
