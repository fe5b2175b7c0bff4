"""Saving of each lever of a plan in GiB, by XLA's buffer assignment; writes benchmarks/levers.md.

    python -m benchmarks.levers [--minutes 5] [--only TEXT]

The card need not be present. The program compiles the step of every row that has no answer yet, one to four
minutes each on two idle cores, until `--minutes` are over, and writes the table of all answers. Another run
goes on from there. Answers are kept in levers.json of the cache (HARNESS_CACHE). After a change of the step's
code a row is lowered again, which is quick. It is compiled again only if the program has changed.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

# The flags of the images (docker/xla.env): what is asked here is what will run there.
os.environ["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true"

from harness.artifacts import Levers
from harness.errors import HarnessError
from harness.plan import atlas, cards
from harness.plan.compile import Answer, Request, compiled
from harness.plan.memory import pinned_bytes, state_parts
from harness.plan.source import source_hash
from harness.recipe.load import load_recipe
from harness.run.directory import cache_root, sha256_json, write_atomic
from harness.strict import Strict
from harness.units import GIB

FILE = Path(__file__).with_suffix(".md")
# Two cameras of LIBERO, and room for its longest prompt.
BASE = {"platform": "cuda", "prompt_tokens": 48, "cameras": ["base_0_rgb", "left_wrist_0_rgb"]}
# What openpi computes of the same batch: the camera that is not there too, and the prompt's padding.
AS_OPENPI = {"prompt_tokens": 200, "cameras": ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"]}
EVERYTHING = ["ema", "moments", "masters"]
BATCH_32 = ("train.global_batch=32",)
FROZEN_VISION_32 = (*BATCH_32, "train.trained=lora_frozen_vision")
NO_EMA_32 = (*BATCH_32, "train.ema_decay=null")
INT8 = ("train.optimizer.moments=int8",)


class Row(NamedTuple):
    """A plan to compile; `adds` are keys of the recipe that an approximate lever changes."""

    what: str
    card: str
    levers: dict[str, Any]
    target: float | None = None
    adds: tuple[str, ...] = ()

    def request(self, section: Section, *, only_lower: bool = False) -> Request:
        levers = Levers.model_validate({**BASE, **self.levers})
        recipe = load_recipe(section.recipe, [*section.overrides, *self.adds])
        return Request(
            recipe=recipe, levers=levers, target=cards.CARDS[self.card].target(), only_lower=only_lower
        )


class Section(NamedTuple):
    """Plans of one recipe. `openpi` says what openpi's own step needs for it."""

    title: str
    recipe: str
    overrides: tuple[str, ...]
    openpi: str
    rows: list[Row]


def rows_of(microbatch: int, batch: int, **levers: Any) -> dict[str, Any]:
    return {
        "microbatch": microbatch,
        "accumulation_steps": batch // (microbatch * levers.get("devices", 1)),
        **levers,
    }


def _eight(microbatch: int, **levers: Any) -> dict[str, Any]:
    return rows_of(microbatch, 256, devices=8, fsdp=8, **levers)


SECTIONS = [
    Section(
        "The published recipe: all parameters, EMA, global batch 256",
        "pi05_libero",
        (),
        "130.4 GiB",
        [
            Row(
                "openpi's tokens, the batch at once, in-place update",
                "a100_80",
                rows_of(256, 256, **AS_OPENPI),
            ),
            Row("fewer tokens", "a100_80", rows_of(256, 256)),
            Row("+ accumulation into one gradient buffer", "a100_80", rows_of(8, 256), 68.0),
            Row(
                "(+ bfloat16 compute copy, masters on the device)",
                "a100_80",
                rows_of(8, 256, compute_copy=True),
            ),
            Row("+ EMA in host memory", "a100_80", rows_of(8, 256, host=["ema"])),
            Row("+ moments in host memory", "rtx_a6000", rows_of(8, 256, host=["ema", "moments"]), 42.0),
            Row(
                "+ masters in host memory, bfloat16 copy on the device",
                "rtx_4090",
                rows_of(4, 256, host=EVERYTHING, compute_copy=True),
                21.5,
            ),
            Row("all on the card, 32 rows at once", "h200", rows_of(32, 256)),
            Row("+ the feed-forward products kept", "h200", rows_of(32, 256, remat="mlp")),
            Row("or the layers' products kept", "h200", rows_of(32, 256, remat="names")),
        ],
    ),
    Section(
        "The published recipe over 8 x A40 (48 GB), a device",
        "pi05_libero",
        (),
        "not compiled for this; 72.8 GiB a device over 2 x A100-80 with fsdp 2",
        [
            Row("FSDP over 8, no accumulation", "a40", _eight(32)),
            Row("+ accumulation", "a40", _eight(4)),
            Row("+ EMA and moments in host memory", "a40", _eight(4, host=["ema", "moments"])),
            Row(
                "+ masters in host memory, bfloat16 copy on the devices",
                "a40",
                _eight(4, host=EVERYTHING, compute_copy=True),
            ),
        ],
    ),
    Section(
        "All parameters, no EMA, global batch 32",
        "pi05_libero",
        NO_EMA_32,
        "56.3 GiB; 34.6 GiB at batch 8 with a toy 8-bit Adam",
        [
            Row("accumulation, float32 moments", "rtx_a6000", rows_of(4, 32)),
            Row("+ 8-bit moments", "rtx_a6000", rows_of(4, 32), adds=INT8),
            Row("+ 8-bit moments in host memory", "rtx_5090", rows_of(4, 32, host=["moments"]), 27.0, INT8),
            Row(
                "+ masters in host memory, bfloat16 copy on the device",
                "rtx_5090",
                rows_of(4, 32, host=["moments", "masters"], compute_copy=True),
                27.0,
                INT8,
            ),
        ],
    ),
    Section(
        "LoRA as upstream defines it (vision tower trained), global batch 32",
        "pi05_libero_lora",
        BATCH_32,
        "21.3 GiB",
        [
            Row("openpi's tokens, the batch at once", "rtx_4090", rows_of(32, 32, **AS_OPENPI)),
            Row("fewer tokens", "rtx_4090", rows_of(32, 32)),
            Row("+ chunked attention", "rtx_4090", rows_of(32, 32, attention="chunked")),
            Row("accumulation", "rtx_4090", rows_of(4, 32)),
            Row("accumulation, smaller microbatch", "rtx_4090", rows_of(2, 32), 13.0),
            Row("+ moments in host memory", "rtx_4090", rows_of(4, 32, host=["moments"]), 13.0),
        ],
    ),
    Section(
        "LoRA with the vision tower frozen, global batch 32",
        "pi05_libero_lora",
        FROZEN_VISION_32,
        "15.9 GiB",
        [
            Row("the batch at once", "rtx_3060", rows_of(32, 32)),
            Row("accumulation", "rtx_3060", rows_of(4, 32), 8.5),
            Row("+ frozen weights in 8 bits", "rtx_3070", rows_of(4, 32), adds=("train.frozen=int8",)),
            Row("+ frozen weights in 4 bits", "rtx_3070", rows_of(4, 32), 5.5, ("train.frozen=int4",)),
        ],
    ),
]


class Kept(Strict):
    """Answers by row; each with the hash of the step's code that it was last found to hold for."""

    answers: dict[str, Answer] = {}
    source: dict[str, str] = {}


class Book:
    """The answers at hand, on disk after every change."""

    def __init__(self) -> None:
        self._path = cache_root() / "levers.json"
        self._kept = self._read()

    def _read(self) -> Kept:
        return Kept.model_validate_json(self._path.read_bytes()) if self._path.is_file() else Kept()

    def known(self, request: Request) -> Answer | None:
        """The answer for the step as it is now, or None."""
        key = _key(request)
        return self._kept.answers.get(key) if self._kept.source.get(key) == source_hash() else None

    def ask(self, request: Request) -> Answer:
        """`known`, or an older answer whose program is today's, or the compiler's."""
        key, old = _key(request), self._kept.answers.get(_key(request))
        if self.known(request) is None:
            lowered = compiled(request.model_copy(update={"only_lower": True})).program_sha256 if old else ""
            answer = old if old and old.program_sha256 == lowered else compiled(request)
            # Another process may have answered other rows meanwhile.
            self._kept = self._read()
            self._kept.answers[key], self._kept.source[key] = answer, source_hash()
            write_atomic(self._path, self._kept.model_dump_json(indent=1) + "\n")
        return self._kept.answers[key]


def _key(request: Request) -> str:
    recipe = request.recipe
    learned = {"step": atlas.step_key(recipe), "batch": recipe.train.global_batch}
    return sha256_json(
        {**learned, "levers": request.levers.model_dump(mode="json"), "target": request.target}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.levers",
        description="Compile the plans of benchmarks/levers.md and write it.",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=600.0,
        help="begin no compile after so many minutes (default: all are done)",
    )
    parser.add_argument(
        "--only", default="", help="compile only rows that contain this text in their section, plan or card"
    )
    options = parser.parse_args()
    end, book = time.monotonic() + 60 * options.minutes, Book()
    # Those with a target first.
    for section, row in sorted(
        ((each, row) for each in SECTIONS for row in each.rows), key=lambda one: one[1].target is None
    ):
        if options.only in f"{section.title} {row.what} {row.card}" and time.monotonic() < end:
            begun = time.monotonic()
            try:
                told = f"{_gib(book.ask(row.request(section)).bytes['device'])} GiB"
            except HarnessError as error:
                # The others are still worth having.
                told = str(error)
            print(
                f"{section.title}, {row.what}: {told} on {row.card} ({time.monotonic() - begun:.0f} s)",
                flush=True,
            )
            FILE.write_text("\n".join([_HEAD, *(_table(each, book) for each in SECTIONS)]))


_HEAD = """\
# What the levers save

Written by `python -m benchmarks.levers`. GiB that XLA's buffer assignment gives our own training step, compiled for the named card, none of which
was here; nothing was run on a GPU. Host is pinned host memory, over all devices of the plan.

- *Counted*: the state between steps and the gradients, from the parameters' sizes alone.
- *Planned*: what the shipped atlas answers for the plan, 1 % of the temporary bytes added; ≤ where it answers with the bound of a larger plan;
  a dash where it does not know and the planner would ask the compiler.
- *In place*: of the compiled bytes, those that a step receives and gives back in the same buffers (XLA's alias bytes): parameters, moments, average.
- *openpi*: openpi's own step (commit 15a9616, its pins) for the same recipe and batch, compiled for an RTX A6000 (`benchmarks/openpi_compiled.py`).

Every plan of the published recipe and of LoRA learns the same as any other of it (tests/test_train_levers.py, tests/support/sharded_laws.py); 8-bit moments and
quantized frozen weights are approximations (benchmarks/approximate_levers.md).
"""


def _table(section: Section, book: Book) -> str:
    lines = [f"## {section.title}", "", f"openpi's step: {section.openpi}.", ""]
    lines += [
        "| plan | microbatch x accumulation | card | counted | planned | compiled | target | in place |"
        " host |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in section.rows:
        request = row.request(section)
        answer, levers = book.known(request), request.levers
        counted = sum(state_parts(request.recipe, levers).values())
        target = "" if row.target is None else f"≤ {row.target:g}"
        device, alias = (
            ("not compiled yet", "")
            if answer is None
            else (f"**{_gib(answer.bytes['device'])}**", _gib(answer.bytes["alias"]))
        )
        host = (
            pinned_bytes(request.recipe, levers) if answer is None else answer.bytes["host"] * levers.devices
        )
        cut = f"{levers.microbatch} x {levers.accumulation_steps}"
        lines.append(
            f"| {row.what} | {cut} | {row.card} | {_gib(counted)} | {_planned(request)} | {device} | {target}"
            f" | {alias} | {_gib(host)} |"
        )
    return "\n".join([*lines, ""])


def _planned(request: Request) -> str:
    known = atlas.shipped().look_up(request.recipe, request.levers)
    return (
        "–"
        if known is None
        else ("≤ " if known.source == "interpolated" else "") + _gib(known.bytes["device"])
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


if __name__ == "__main__":
    main()
