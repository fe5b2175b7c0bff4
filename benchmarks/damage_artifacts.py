"""Damages the text files of a run in N ways, one file each, and reads the run with every verb that looks at
one, and as a resume would.

    python -m benchmarks.damage_artifacts [--times 10000] [--minutes M] [--processes 2] [--seed 0]

Half of the damages change bytes, the other half a value of a file that stays JSON. Every reader must answer,
or refuse with our own error: what a file says is not protected by a hash, so a changed number is read as it
stands. Prints a table of outcomes by reader. Exit code 1 when anything else came up.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

from tests.support.mutation import damage_file, damage_value
from tests.support.run_readers import READERS, TEXTS, outcome

Table = dict[str, collections.Counter[str]]
# A page with its drawings takes as long as all of the other readers together.
_REPORT_EVERY = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="stop after so many minutes, with the damages done by then",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "offline"}
    table: Table = collections.defaultdict(collections.Counter)
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        run = make(Path(scratch) / "smoke-001")
        counts = [
            arguments.times // arguments.processes + (i < arguments.times % arguments.processes)
            for i in range(arguments.processes)
        ]
        until = time.time() + 60 * arguments.minutes
        jobs = [(run, count, f"{arguments.seed}/{i}", until) for i, count in enumerate(counts)]
        with get_context("spawn").Pool(arguments.processes) as pool:
            for part, problems in pool.starmap(damaged, jobs):
                bad += problems
                for reader, counter in part.items():
                    table[reader].update(counter)
    for reader, counter in table.items():
        print(f"{reader}: " + ", ".join(f"{result} {count}" for result, count in counter.most_common()))
    print(
        "\n".join(bad[:50])
        or f"\n{sum(table['status'].values())} damages, "
        f"{sum(map(sum, (c.values() for c in table.values())))} readings: no crash"
    )
    return 1 if bad else 0


def make(run: Path) -> Path:
    """A small run with every file that a run may have."""
    small = [
        f"--set={key}" for key in ("model.image_size=56", "data.augment=false", "train.save_every_steps=4")
    ]
    train = [
        sys.executable,
        "-m",
        "harness.cli",
        "train",
        "--recipe=smoke",
        "--steps=8",
        *small,
        f"--run={run}",
    ]
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(
        [sys.executable, "-m", "harness.cli", "verify", str(run), "--steps=0"],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    missing = [name for name in TEXTS if not (run / name).is_file()]
    if missing:
        raise SystemExit(f"the run lacks {missing}")
    return run


def damaged(run: Path, times: int, seed: str, until: float) -> tuple[Table, list[str]]:
    """(outcomes by reader, crashes)."""
    chance, table, bad = random.Random(seed), collections.defaultdict(collections.Counter), []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(times):
            if time.time() > until:
                break
            copy = shutil.copytree(run, Path(scratch) / "smoke-001")
            victim = copy / chance.choice(TEXTS)
            whole = victim.suffix in (".json", ".jsonl") and chance.random() < 0.5
            done = damage_value(victim, chance) if whole else damage_file(victim, chance)
            for name, reader in READERS.items():
                if name == "report" and number % _REPORT_EVERY:
                    continue
                try:
                    result = outcome(reader, copy)
                except Exception:
                    result = "crash"
                    bad.append(f"{done}: {name}: {traceback.format_exc()[-1500:]}")
                table[name][result] += 1
                if result == "a refusal without a fix":
                    bad.append(f"{done}: {name}: {result}")
            shutil.rmtree(copy)
            if (number + 1) % 250 == 0:
                print(f"{seed}: {number + 1} of {times}, {len(bad)} crashes", file=sys.stderr, flush=True)
    return table, bad


if __name__ == "__main__":
    sys.exit(main())
