"""What each exact lever of a plan saves: GiB by XLA's buffer assignment for a card that need not be here, written to benchmarks/levers.md.

    python -m benchmarks.levers [--minutes 5] [--only TEXT]

Compiles the step of every row that the plan cache (HARNESS_CACHE) has no answer for, a minute or so each, until `--minutes` are over, and writes
the table of all answers; run it again to go on. A change of the step's code voids the answers.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

from harness.artifacts import Levers
from harness.plan import cards
from harness.plan.compile import Request, answered, compiled
from harness.plan.memory import pinned_bytes, state_parts
from harness.recipe import load_recipe
from harness.units import GIB

FILE = Path(__file__).with_suffix(".md")
# Two cameras of LIBERO, and room for its longest prompt with the state as text.
BASE = {"platform": "cuda", "prompt_tokens": 48, "cameras": ["base_0_rgb", "left_wrist_0_rgb"]}
EVERYTHING = ["ema", "moments", "masters"]
LORA_32 = ("train.global_batch=32",)
FROZEN_VISION_32 = ("train.global_batch=32", "train.trained=lora_frozen_vision")


class Row(NamedTuple):
    """A plan to compile."""

    what: str
    card: str
    levers: dict[str, Any]
    target: float | None = None

    def request(self, section: Section) -> Request:
        levers = Levers.model_validate({**BASE, **self.levers})
        return Request(recipe=load_recipe(section.recipe, list(section.overrides)), levers=levers, target=cards.CARDS[self.card].target())


class Section(NamedTuple):
    """Plans of one recipe. `openpi` is what openpi's own step needs for it, in GiB."""

    title: str
    recipe: str
    overrides: tuple[str, ...]
    openpi: float
    rows: list[Row]


def rows_of(microbatch: int, batch: int, **levers: Any) -> dict[str, Any]:
    return {"microbatch": microbatch, "accumulation_steps": batch // microbatch, **levers}


SECTIONS = [
    Section(
        "The published recipe: all parameters, EMA, global batch 256",
        "pi05_libero",
        (),
        130.4,
        [
            Row("the batch at once, fewer tokens, in-place update", "a100_80", rows_of(256, 256)),
            Row("+ accumulation into one gradient buffer", "a100_80", rows_of(8, 256), 68.0),
            Row("+ EMA in host memory", "a100_80", rows_of(8, 256, host=["ema"])),
            Row("+ moments in host memory", "rtx_a6000", rows_of(8, 256, host=["ema", "moments"]), 42.0),
            Row("+ masters in host memory, bfloat16 copy on the device", "rtx_4090", rows_of(4, 256, host=EVERYTHING, compute_copy=True), 21.5),
        ],
    ),
    Section(
        "LoRA as upstream defines it (vision tower trained), global batch 32",
        "pi05_libero_lora",
        LORA_32,
        21.3,
        [
            Row("the batch at once", "rtx_4090", rows_of(32, 32)),
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
        15.9,
        [
            Row("the batch at once", "rtx_3060", rows_of(32, 32)),
            Row("accumulation", "rtx_3060", rows_of(4, 32), 8.5),
        ],
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.levers", description="Compile the plans of benchmarks/levers.md and write it.")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no compile after so many minutes (default: all are done)")
    parser.add_argument("--only", default="", help="compile only rows that contain this text in their plan or card")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    for section in SECTIONS:
        for row in section.rows:
            if options.only in f"{row.what} {row.card}" and time.monotonic() < end:
                print(f"{section.recipe}, {row.what}: {_gib(compiled(row.request(section)).bytes['device'])} GiB on {row.card}", flush=True)
    FILE.write_text("\n".join([_HEAD, *map(_table, SECTIONS)]))


_HEAD = """\
# What the exact levers save

Written by `python -m benchmarks.levers`. GiB that XLA's buffer assignment gives our own training step, compiled for the named card, none of which
was here; nothing was run on a GPU. *Counted* is the state between steps and the gradients, from the parameters' sizes alone; the rest of *compiled* is
activations and workspace. *Host* is pinned host memory. openpi's figure is its own step with its own pins, compiled for an RTX A6000 (openpi, commit
15a9616). All plans of a table learn the same (tests/test_train_levers.py).
"""


def _table(section: Section) -> str:
    lines = [f"## {section.title}", "", f"openpi's step: {section.openpi} GiB.", ""]
    lines += ["| plan | microbatch | card | counted | compiled | target | host |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in section.rows:
        request = row.request(section)
        answer = answered(request)
        counted = sum(state_parts(request.recipe, request.levers).values())
        target = "" if row.target is None else f"≤ {row.target:g}"
        device = "not compiled yet" if answer is None else f"**{_gib(answer.bytes['device'])}**"
        host = pinned_bytes(request.recipe, request.levers) if answer is None else answer.bytes["host"]
        lines.append(f"| {row.what} | {request.levers.microbatch} | {row.card} | {_gib(counted)} | {device} | {target} | {_gib(host)} |")
    return "\n".join([*lines, ""])


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


if __name__ == "__main__":
    main()
