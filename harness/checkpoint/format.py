"""What a step and an item have on disk: the names, what a name may be, which steps are whole.

No JAX, no tensorstore.

    <checkpoints>/<step>/_CHECKPOINT_METADATA         written when the save is finished
                        /params, /train_state         Orbax items: `_METADATA`, zarr arrays, in OCDBT or plain
                        /assets/<asset_id>/norm_stats.json
                        /harness/*.json               what the harness writes beside them

Source: orbax-checkpoint 0.11.13 and 0.12.8; openpi src/openpi/training/checkpoints.py, commit 15a9616.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from harness.received.names import why_no_relative_name
from harness.recipe.parameters import Group
from harness.units import MIB

METADATA = "_METADATA"
MANIFEST = "manifest.ocdbt"
COMMIT = "_CHECKPOINT_METADATA"
# A part of the name of every directory that is being written, or was when its process died.
INTERRUPTED = ".orbax-checkpoint-tmp"

PARAMS, TRAIN_STATE, ASSETS, HARNESS = "params", "train_state", "assets", "harness"
TREES = (PARAMS, TRAIN_STATE)
USUAL_ITEMS = (ASSETS, PARAMS, TRAIN_STATE)
NORM_STATS = "norm_stats.json"
RECORD = "harness/record.json"
DIGESTS = "harness/digests.json"
EXPORT = "harness/export.json"
# Beside `params` that hold only what was trained: which weights hold the rest.
BASE = "harness/base.json"

# A leaf is stored in chunks of this size, so that saving and loading need no second copy of a 4.5 GiB leaf.
CHUNK_BYTES = 64 * MIB
# Nodes of the tree in `_METADATA` that hold no array.
EMPTY = ("None", "Dict", "List", "NamedTuple", "Tuple")
# The file, or key, that describes an array: of zarr v2, of v3.
ZARR2, ZARR3 = ".zarray", "zarr.json"
GROUPS: tuple[Group, ...] = ("vision", "language", "expert", "adapters", "projections")

# JavaScript and JSON readers count no further.
_MOST_STEPS = 2**53
# What tensorstore raises for a store that is not what its format says.
DAMAGE = (ValueError, LookupError, TypeError, ArithmeticError, NotImplementedError)


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
    """Whether a name that an item gives to one of its files leads out of the item, or is no plain name at
    all.
    """
    return why_no_relative_name(name) is not None


def parse_location(text: str) -> Location:
    """The place that OCDBT writes as "kind:base:file:offset:length"; base and file are percent-encoded, base
    may be empty.

    Raises: ValueError.
    """
    _, base, file, offset, length = text.split(":")
    place = Location(unquote(base) + unquote(file), int(offset), int(length))
    if place.offset < 0 or place.length < 0 or place.end >= 2**63:
        raise ValueError(f"a location of {place.length} bytes at {place.offset}")
    return place


def step_number(name: str) -> int | None:
    """The step that a directory's name says; None for another name.

    Orbax may write it with zeros in front.
    """
    number = int(name) if re.fullmatch(r"[0-9]{1,20}", name) else _MOST_STEPS
    return number if number < _MOST_STEPS else None


def step_directories(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, directory) of every step, whole or not, ascending.

    A link is none: it may belong to another run.
    """
    entries = checkpoints.iterdir() if checkpoints.is_dir() else []
    numbered = [(step, path) for path in entries if (step := step_number(path.name)) is not None]
    return sorted((step, path) for step, path in numbered if path.is_dir() and not path.is_symlink())


def is_whole(step: Path) -> bool:
    """Whether `step` is a finished checkpoint of ours; reads names only."""
    needed = [COMMIT, RECORD, *(f"{item}/{name}" for item in TREES for name in (METADATA, MANIFEST))]
    return all((step / name).is_file() for name in needed)


def whole_steps(checkpoints: Path) -> list[int]:
    """The steps of ours that a run can resume from, ascending, each in the directory that bears its plain
    number.
    """
    return [step for step, path in step_directories(checkpoints) if path.name == str(step) and is_whole(path)]


def newest_with_params(checkpoints: Path) -> Path | None:
    """The newest step that training can start from: one whose save was finished when there is one."""
    steps = [path for _, path in step_directories(checkpoints) if (path / PARAMS / METADATA).is_file()]
    finished = [path for path in steps if (path / COMMIT).is_file()]
    return next(reversed(finished or steps), None)


def first_line(error: BaseException) -> str:
    """What an error of a library says, cut to one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
