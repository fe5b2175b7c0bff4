"""The atlas: XLA's answers for the real step, shipped in the package.

With it a plan for any card is known at once and without JAX.

One class of cards. The same program compiled for an RTX A4000, A6000, A40, 4090, 5090, A100 and H100 differs
by 0.4 % of its bytes (LoRA, 32 samples: 17.37 to 17.44 GiB). The difference within one compute capability is
as large as between them. The A4000's answer stays the same although it exceeds that card's memory. So every
entry is compiled once, for a card whose memory sets no limit, and 1 % of its temporary bytes is added.

An entry answers exactly its own question. It is also an upper bound for each question that differs only by
fewer samples at once, fewer prompt tokens or a smaller global batch. Such an answer is marked as
interpolated. Entries of another jaxlib or another step are refused. `python benchmarks/atlas.py` makes the
files, and says how the figures above were found (--spread).
"""

from __future__ import annotations

import functools
import json
from importlib import metadata, resources
from typing import Any, Literal, NamedTuple

from pydantic import Field

from harness.artifacts import Levers
from harness.plan.cards import CARDS
from harness.plan.source import source_hash
from harness.received.litter import named
from harness.recipe.schema import Recipe
from harness.run.directory import sha256_json
from harness.strict import Strict
from harness.units import GIB

MAKE = "python benchmarks/atlas.py"
# The card that the entries are compiled for. Its memory is so large that XLA never has to recompute anything.
REFERENCE = CARDS["rtx_a6000"]._replace(cuda_bytes=192 * GIB)
# The share of temporary bytes by which another card's answer may exceed the reference's.
ALLOWANCE = 0.01


class Entry(Strict):
    """One answer.

    `recipe` is the `step_key` of the recipe. `program_sha256` is that of the lowered program; the files of
    the atlas call it by its first name.
    """

    recipe: str
    levers: Levers
    phase: str = "step"
    bytes: dict[str, int]
    program_sha256: str = Field(alias="fingerprint")


class AtlasFile(Strict):
    """The entries that one run of the benchmark has stamped, with their jaxlib and the hash of their step.

    `recipes` are the recipes of the entries, by `step_key`.
    """

    jaxlib: str
    source: str
    recipes: dict[str, dict[str, Any]]
    entries: list[Entry]


class Known(NamedTuple):
    """Bytes by name (device, temp, host, …); device includes the allowance.

    `activations`: how many of the bytes grow with the microbatch, if known.
    """

    bytes: dict[str, int]
    source: Literal["atlas", "interpolated", "compiled"]
    program_sha256: str
    activations: int | None


class Atlas:
    """The answers that can be used; `refused` says why others were not taken."""

    def __init__(self, files: list[AtlasFile]) -> None:
        here, source = metadata.version("jaxlib"), source_hash() if files else ""
        self.refused = ""
        self._entries: dict[str, list[Entry]] = {}
        for file in files:
            if (file.jaxlib, file.source) != (here, source):
                changed = (
                    f"jaxlib {file.jaxlib}, here {here}"
                    if file.jaxlib != here
                    else "another version of the step"
                )
                self.refused = (
                    f"the atlas was made with {changed}: its answers are not used; {MAKE} makes it anew"
                )
                continue
            for entry in file.entries:
                self._entries.setdefault(_key(entry.recipe, entry.levers, entry.phase), []).append(entry)

    def look_up(self, recipe: Recipe, levers: Levers, phase: str = "step") -> Known | None:
        """The exact answer, or else the smallest upper bound, or None."""
        alike = self._entries.get(_key(step_key(recipe), levers, phase), [])
        bounds = [entry for entry in alike if _size(entry.levers) == _size(levers)] or [
            entry for entry in alike if _covers(entry.levers, levers)
        ]
        if not bounds:
            return None
        least = min(bounds, key=lambda entry: entry.bytes["device"])
        exact = _size(least.levers) == _size(levers)
        sizes = least.bytes | {"device": least.bytes["device"] + int(ALLOWANCE * least.bytes["temp"])}
        return Known(
            sizes, "atlas" if exact else "interpolated", least.program_sha256, _activations(least, alike)
        )


@functools.cache
def shipped() -> Atlas:
    """The atlas of the package."""
    folder = resources.files("harness.plan") / "atlas"
    files = named(folder.iterdir(), ".json") if folder.is_dir() else []
    return Atlas([AtlasFile.model_validate_json(file.read_bytes()) for file in files])


def step_key(recipe: Recipe) -> str:
    """Hash of everything in a recipe that changes the step's memory.

    Rates, decays, seeds and the data's origin do not.
    """
    train = recipe.train
    # How many tokens a prompt has is a lever's; what is written in it changes no memory.
    model = recipe.model.model_dump(mode="json", exclude={"prompt_tokens", "discrete_state_input"})
    learned = {
        "trained": train.trained,
        "frozen": train.frozen,
        "moments": train.optimizer.moments,
        "ema": train.ema_decay is not None,
    }
    # Present only where it is asked for, so that the keys of other recipes stay what they were.
    given = {"delays": True} if train.most_delay else {}
    return sha256_json(
        {"model": model, "augment": recipe.data.augment, "ema_every": train.ema_every_steps > 1}
        | learned
        | given
    )


def _key(recipe: str, levers: Levers, phase: str) -> str:
    """The part of a question that an entry must equal.

    Of the sizes it holds only whether gradients are accumulated at all.
    """
    kept = levers.model_dump(
        mode="json", exclude={"microbatch", "accumulation_steps", "prompt_tokens", "platform"}
    )
    return json.dumps([recipe, phase, levers.accumulation_steps > 1, kept], sort_keys=True)


def _size(levers: Levers) -> tuple[int, int, int]:
    return levers.microbatch, levers.prompt_tokens, levers.microbatch * levers.accumulation_steps


def _covers(larger: Levers, smaller: Levers) -> bool:
    return all(a >= b for a, b in zip(_size(larger), _size(smaller), strict=True))


def _activations(entry: Entry, alike: list[Entry]) -> int | None:
    """Bytes by which the answer grows from no sample to the entry's number of samples at once.

    They are extrapolated from the nearest smaller microbatch.
    """
    m, tokens, rows = _size(entry.levers)
    smaller = [
        other for other in alike if other.levers.microbatch < m and _size(other.levers)[1:] == (tokens, rows)
    ]
    if not smaller:
        return None
    other = max(smaller, key=lambda each: each.levers.microbatch)
    return (entry.bytes["device"] - other.bytes["device"]) * m // (m - other.levers.microbatch)
