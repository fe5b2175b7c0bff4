"""Changes one thing of a run at a time, and prints which field `harness verify` names first.

    python -m benchmarks.flips [--scratch DIR] [--only TEXT] [--skip-pairs]

A small model on a copy of the packaged sample, from weights on disk. The untouched run must be equal, bit for
bit; every flip must be named first, both against the changed files (`verify RUN`) and between two runs that
were really trained (`verify A B`). Exit code 1 when one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.flips_changes import (
    Place,
    a_comment,
    a_statistic,
    checkpoint_byte,
    image_byte,
    last_digit,
    meta,
    nothing,
    one_pixel,
    replace,
    seed_in_both,
    state_value,
    weight_byte,
    weight_value,
)

SMALL = ("model.image_size=56", "data.augment=false", "train.save_every_steps=2", "train.keep_every_steps=2")
STEPS = 4
LOCK, OTHER_LOCK = "1" * 64, "2" * 64
FAST_MATH = "--xla_cpu_enable_fast_math=true"


class Flip(NamedTuple):
    """`change` gets the place and the copy of the run; `expected` is how the field named first begins."""

    name: str
    expected: str
    change: Callable[[Place, Path], None]
    arguments: tuple[str, ...] = ("--steps=2",)
    environment: tuple[tuple[str, str], ...] = ()


def harness(
    place: Place, *arguments: str, environment: tuple[tuple[str, str], ...] = ()
) -> subprocess.CompletedProcess[str]:
    known = {
        "HARNESS_CACHE": str(place.root / "cache"),
        "WANDB_MODE": "disabled",
        "JAX_PLATFORMS": "cpu",
        "HARNESS_LOCK_SHA256": LOCK,
    }
    command = [sys.executable, "-m", "harness.cli", *arguments]
    told = {name: value.replace("{root}", str(place.root)) for name, value in environment}
    return subprocess.run(command, env=os.environ | known | told, capture_output=True, text=True, check=False)


def train(place: Place, run: Path, *sets: str, environment: tuple[tuple[str, str], ...] = ()) -> None:
    overrides = [f"--set={key}" for key in (*SMALL, f"data.dataset={place.data}", *sets)]
    done = harness(place, "train", f"--steps={STEPS}", f"--run={run}", *overrides, environment=environment)
    if done.returncode != 0:
        raise SystemExit(f"a run did not train:\n{done.stderr[-3000:]}")


def prepare(root: Path) -> Place:
    """A dataset, weights to start from, and a run that starts from them."""
    from harness.data.sample import sample_dataset_path

    place = Place(root)
    shutil.copytree(sample_dataset_path(), place.data)
    train(place, root / "before")
    shutil.copytree(root / "before" / "checkpoints" / str(STEPS) / "params", place.weights)
    train(place, place.run, f"weights.source={place.weights}")
    return place


def verdict(place: Place, *arguments: str, environment: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    done = harness(place, "verify", *arguments, "--json", environment=environment)
    if done.returncode == 2:
        raise SystemExit(f"verify could not be done:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


@contextmanager
def kept(place: Place) -> Iterator[None]:
    """Data and weights as they were, afterwards."""
    with tempfile.TemporaryDirectory(dir=place.root) as scratch:
        for directory in (place.data, place.weights):
            shutil.copytree(directory, Path(scratch) / directory.name)
        try:
            yield
        finally:
            for directory in (place.data, place.weights):
                shutil.rmtree(directory)
                (Path(scratch) / directory.name).rename(directory)


FLIPS = [
    Flip("seed, in recipe.yaml", "recipe.train.seed", replace("recipe.yaml", "seed: 42", "seed: 43")),
    Flip("seed, in recipe.yaml and manifest.json", "recipe_sha256", seed_in_both),
    Flip(
        "learning rate, in recipe.yaml",
        "recipe.train.optimizer.schedule.peak",
        replace("recipe.yaml", "peak: 0.003", "peak: 0.00300001"),
    ),
    Flip("dataset: one bit of the image data", "dataset", image_byte),
    Flip("dataset: one pixel, by one", "dataset", one_pixel),
    Flip("dataset: one state value, by 0.001", "dataset", state_value),
    Flip("dataset: a full stop in meta/", "dataset", meta),
    Flip("weights: one bit of a file", "weights.weights", weight_byte),
    Flip("weights: one number", "weights.weights", weight_value),
    Flip(
        "XLA flag",
        f"environment.XLA_FLAGS.{FAST_MATH.partition('=')[0]}",
        nothing,
        environment=(("XLA_FLAGS", FAST_MATH),),
    ),
    Flip("lock", "lock", nothing, environment=(("HARNESS_LOCK_SHA256", OTHER_LOCK),)),
    Flip(
        "source: a comment in one module",
        "source",
        a_comment,
        environment=(("PYTHONSAFEPATH", "1"), ("PYTHONPATH", "{root}/source")),
    ),
    Flip("a lever of plan.json", "plan.remat", replace("plan.json", '"remat": "block"', '"remat": "none"')),
    Flip("norm_stats.json of the run", "files.norm_stats.json", a_statistic),
    Flip("last digits of a loss", "loss of step 1", last_digit),
    Flip("checkpoint: one bit, from step 2", "array", checkpoint_byte, ("--steps=2", "--from=2")),
]


class Pair(NamedTuple):
    """Another run, really trained, that differs in one thing."""

    name: str
    expected: str
    change: Callable[[Place, Path], None] = nothing
    sets: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    levers: tuple[tuple[str, Any], ...] = ()


PAIRS = [
    Pair("nothing", "None"),
    Pair("seed", "recipe.train.seed", sets=("train.seed=43",)),
    Pair("dataset: one pixel, by one", "dataset", one_pixel),
    Pair("dataset: one state value, by 0.001", "dataset", state_value),
    Pair("weights: one number", "weights.weights", weight_value),
    Pair(
        "XLA flag",
        f"environment.XLA_FLAGS.{FAST_MATH.partition('=')[0]}",
        environment=(("XLA_FLAGS", FAST_MATH),),
    ),
    Pair("lock", "lock", environment=(("HARNESS_LOCK_SHA256", OTHER_LOCK),)),
    Pair(
        "plan: 2 microbatches of 2",
        "plan.accumulation_steps",
        levers=(("microbatch", 2), ("accumulation_steps", 2)),
    ),
]


def other_run(place: Place, pair: Pair, run: Path) -> None:
    """Trains the other run; with other levers, by the trainer itself on the files of a run that has not
    begun.
    """
    if not pair.levers:
        train(place, run, f"weights.source={place.weights}", *pair.sets, environment=pair.environment)
        return
    run.mkdir()
    for name in ("recipe.yaml", "plan.json", "dataset.json", "norm_stats.json", "machine.json"):
        shutil.copy2(place.run / name, run / name)
    body = json.loads((run / "plan.json").read_text())
    body["chosen"]["levers"] |= dict(pair.levers)
    (run / "plan.json").write_text(json.dumps(body))
    known = {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "disabled", "HARNESS_LOCK_SHA256": LOCK}
    subprocess.run(
        [sys.executable, "-m", "harness.train.worker", str(run)],
        env=os.environ | known,
        check=True,
        capture_output=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--only", default="", help="flips whose name holds this text")
    parser.add_argument("--skip-pairs", action="store_true")
    arguments = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        print("training the run that is verified", file=sys.stderr)
        place = prepare(Path(scratch).resolve())
        print("| verify | flipped | named first | expected | verdict |\n| --- | --- | --- | --- | --- |")
        for start, what in ((0, "nothing"), (2, "nothing, from the checkpoint of step 2")):
            found = verdict(place, str(place.run), "--steps=2", f"--from={start}")
            replay = found["replay"]
            bitwise = (
                replay["status"],
                replay["tolerance"],
                replay["largest_difference"],
                replay["steps"],
            ) == ("equal", 0.0, 0.0, 2)
            wrong += found["verdict"] != "equal" or not bitwise
            print(
                f"| RUN | {what} | {found['first_difference']} | None | {found['verdict']}, {replay['steps']}"
                f" steps {replay['note']} |",
                flush=True,
            )
        for flip in [each for each in FLIPS if arguments.only in each.name]:
            run = place.root / "flipped"
            shutil.copytree(place.run, run)
            with kept(place):
                flip.change(place, run)
                wrong += report(
                    "RUN",
                    flip.name,
                    flip.expected,
                    verdict(place, str(run), *flip.arguments, environment=flip.environment),
                )
            shutil.rmtree(run)
        for pair in [each for each in PAIRS if arguments.only in each.name and not arguments.skip_pairs]:
            run = place.root / "other"
            with kept(place):
                pair.change(place, run)
                other_run(place, pair, run)
            wrong += report("A B", pair.name, pair.expected, verdict(place, str(place.run), str(run)))
            shutil.rmtree(run)
    return 1 if wrong else 0


def report(kind: str, name: str, expected: str, found: dict[str, Any]) -> bool:
    """Prints a row; True when another field was named."""
    first = str(found["first_difference"])
    note = next((f" ({row['note']})" for row in found["fields"] if row["field"] == first and row["note"]), "")
    # Where no field but a value is named, its figures follow.
    right = first == expected or first.startswith(f"{expected} ") or first.startswith(f"{expected}:")
    print(
        f"| {kind} | {name} | {first[:90]}{note} | {'as expected' if right else f'WRONG, not {expected}'} |"
        f" {found['verdict']} |",
        flush=True,
    )
    return not right


if __name__ == "__main__":
    sys.exit(main())
