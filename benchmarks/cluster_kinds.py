"""Kinds of run by two processes of this machine, against the same run by one process.

    python -m benchmarks.cluster_kinds --scratch DIR [KIND …]

Each kind is trained for 4 steps on two devices: by one process that has both, and by two processes that have
one each and join each other over the loopback device. Metrics, the frames that were read, and every array of
the checkpoint are compared. Exit code 1 when a metric differs by more than 1e-5 of its value, or an array by
more than 1e-5 of its largest entry. A minute of CPU a kind; a run that is done is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cluster import QUICKLY_COMPILED
from harness.artifacts import Candidate
from harness.data.dataset import describe
from harness.data.stats import compute
from harness.recipe.load import to_yaml
from harness.recipe.schema import Recipe
from harness.run.directory import RECIPE, RunDir, write_atomic
from tests.support.members import TOKENS, Members, ended, levers, recipe_of, stored
from tests.support.mixtures import MAPPED, three
from tests.support.planned import plan_of
from tests.support.real_runs import metrics
from tests.support.tiny import LORA

STEPS, DEVICES, WITHIN = 4, 2, 1e-5
_TRAINED = ("train.trained=full", "train.ema_decay=0.9")
_COMPARED = ("loss", "grad_norm", "param_norm", "learning_rate")


class Kind(NamedTuple):
    """What is unlike in the recipe; the plan's shards, parts in host memory and tokens of a prompt."""

    sets: Sequence[str] = ()
    fsdp: int = 1
    host: Sequence[str] = ()
    tokens: int = TOKENS


KINDS = {
    "replicas": Kind(),
    "shards": Kind(_TRAINED, fsdp=2),
    "host memory": Kind(_TRAINED, host=("ema", "moments", "masters")),
    "host memory in shards": Kind(_TRAINED, fsdp=2, host=("ema", "moments", "masters")),
    "int8 LoRA in shards": Kind((*LORA, "train.frozen=int8", "train.ema_decay=null"), fsdp=2),
    "int4 LoRA in shards": Kind((*LORA, "train.frozen=int4", "train.ema_decay=null"), fsdp=2),
    "8-bit moments in shards": Kind((*_TRAINED, "train.optimizer.moments=int8"), fsdp=2),
    "mixture of three datasets": Kind(tokens=16),
}


def recipe(kind: str, root: Path) -> Recipe:
    if not kind.startswith("mixture"):
        return recipe_of(STEPS, *KINDS[kind].sets)
    if not (root / "c").is_dir():
        three(root)
    members = [MAPPED | {"dataset": str(root / name), "weight": 1 + n} for n, name in enumerate("abc")]
    return recipe_of(STEPS, "data.cameras=null", f"data.datasets={json.dumps(members)}")


def trained(run: Path, what: Recipe, kind: Kind, processes: int) -> Path:
    """The directory of the run, trained to its end."""
    if (run / "checkpoints" / str(STEPS)).is_dir():
        return run
    shutil.rmtree(run, ignore_errors=True)
    directory, dataset = RunDir(run), describe(what)
    plan = levers(what, DEVICES, kind.fsdp)
    plan = plan.model_copy(update={"host": list(kind.host), "prompt_tokens": kind.tokens})
    chosen = Candidate(levers=plan, verdict="fits", reason="", source="compiled")
    for artifact in (plan_of(chosen, "cpu"), dataset, compute(what, dataset)):
        directory.write(artifact)
    write_atomic(run / RECIPE, to_yaml(what))
    ended(Members([["harness.train.worker", str(run)]] * processes, devices=DEVICES))
    return run


def compared(alone: Path, joined: Path) -> tuple[bool, str, str]:
    """(whether they are alike, how the metrics differ, how the arrays differ)."""
    lines = list(zip(metrics(alone), metrics(joined), strict=True))
    alike = all(a[key] == b[key] for a, b in lines for key in ("step", "frames"))
    named = [(a.get("datasets") or {}, b.get("datasets") or {}) for a, b in lines]
    alike &= all(a.keys() == b.keys() for a, b in named)
    pairs = [(a[key], b[key]) for a, b in lines for key in _COMPARED]
    pairs += [(a[name], b[name]) for a, b in named for name in a]
    metric = max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)
    first, second = (stored(run / "checkpoints", STEPS) for run in (alone, joined))
    alike &= first.keys() == second.keys()
    worst = max(
        float(np.abs(a.astype(np.float64) - second[path]).max() / max(float(np.abs(a).max()), 1e-12))
        for path, a in first.items()
        if a.size
    )
    return bool(alike and metric <= WITHIN and worst <= WITHIN), _told(metric), _told(worst)


def _told(difference: float) -> str:
    return f"{difference:.1e}" if difference else "bitwise equal"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--scratch", type=Path, required=True)
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    os.environ.setdefault("XLA_FLAGS", QUICKLY_COMPILED)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    good = True
    print("| run | metrics, relative | arrays, of the largest entry | |\n|---|---|---|---|", flush=True)
    for name in arguments.kinds or KINDS:
        what, kind = recipe(name, arguments.scratch), KINDS[name]
        place = arguments.scratch / name.replace(" ", "-")
        runs = [trained(place / str(count), what, kind, count) for count in (1, 2)]
        alike, metric, worst = compared(*runs)
        good &= alike
        print(f"| {name} | {metric} | {worst} | {'alike' if alike else 'NOT ALIKE'} |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
