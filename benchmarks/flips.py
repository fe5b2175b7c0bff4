"""Changes one thing of a run at a time, and prints which field `harness verify` names first.

    python -m benchmarks.flips [--scratch DIR] [--only TEXT] [--skip-pairs]

A small model on a copy of the packaged sample, from weights on disk. The untouched run must be equal, bit for
bit; every flip must be named first, both against the changed files (`verify RUN`) and between two runs that
were really trained (`verify A B`). Exit code 1 when one is not.
"""

from __future__ import annotations

import argparse
import io
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

SMALL = ("model.image_size=56", "data.augment=false", "train.save_every_steps=2", "train.keep_every_steps=2")
STEPS = 4
LOCK, OTHER_LOCK = "1" * 64, "2" * 64
FAST_MATH = "--xla_cpu_enable_fast_math=true"


class Place(NamedTuple):
    """What a run is made from: `root`/data, weights, cache."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def run(self) -> Path:
        return self.root / "run"


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


# --- what is flipped


def flip_byte(file: Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1
    file.write_bytes(data)


def parquet(place: Place) -> Path:
    return sorted((place.data / "data").rglob("*.parquet"))[0]


def image_byte(place: Place, _: Path) -> None:
    flip_byte(parquet(place), 0.4)


def rewrite(file: Path, column: str, change: Callable[[Any], Any]) -> None:
    """Puts `change` of the first row's value of a column in its place; everything else stays."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    index, values = table.schema.get_field_index(column), table.column(column).to_pylist()
    values[0] = change(values[0])
    pq.write_table(
        table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type)),
        file,
    )


def one_pixel(place: Place, _: Path) -> None:
    from PIL import Image

    def other(value: dict[str, Any]) -> dict[str, Any]:
        picture = Image.open(io.BytesIO(value["bytes"])).convert("RGB")
        red, green, blue = picture.getpixel((100, 100))
        picture.putpixel((100, 100), (red ^ 1, green, blue))
        out = io.BytesIO()
        picture.save(out, "PNG")
        return value | {"bytes": out.getvalue()}

    rewrite(parquet(place), "image", other)


def state_value(place: Place, _: Path) -> None:
    rewrite(parquet(place), "state", lambda value: [value[0] + 1e-3, *value[1:]])


def meta(place: Place, _: Path) -> None:
    file = place.data / "meta" / "tasks.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["task"] += "."
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def weight_byte(place: Place, _: Path) -> None:
    """A byte in the middle of the largest file, which holds array data."""
    flip_byte(
        max(place.weights.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0), 0.5
    )


def weight_value(place: Place, _: Path) -> None:
    """One number of one array, in a checkpoint that is written anew and whole."""
    subprocess.run([sys.executable, "-c", _ONE_NUMBER, str(place.weights)], check=True, capture_output=True)


_ONE_NUMBER = """
import shutil, sys
from pathlib import Path
import numpy as np
import orbax.checkpoint as ocp
from harness.checkpoint.leaves import read_array
from harness.checkpoint.weights import parameter_leaves
place, tree = Path(sys.argv[1]), {}
arrays = {path: np.array(read_array(leaf.store, leaf.dtype)) for path, leaf in parameter_leaves(place).items()}
arrays["PaliGemma/img/embedding/kernel"].reshape(-1)[0] += 1
for path, array in arrays.items():
    node = tree
    *parents, last = f"params/{path}/value".split("/")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = array
shutil.rmtree(place)
with ocp.PyTreeCheckpointer() as saver:
    saver.save(place, tree)
"""


def replace(name: str, before: str, after: str) -> Callable[[Place, Path], None]:
    def change(_: Place, run: Path) -> None:
        for each in name.split():
            text = (run / each).read_text()
            if before not in text:
                raise SystemExit(f"{each} has no {before!r}")
            (run / each).write_text(text.replace(before, after, 1))

    return change


def seed_in_both(place: Place, run: Path) -> None:
    replace("recipe.yaml", "seed: 42", "seed: 43")(place, run)
    replace("manifest.json", '"seed": 42', '"seed": 43')(place, run)


def a_statistic(_: Place, run: Path) -> None:
    body = json.loads((run / "norm_stats.json").read_text())
    body["norm_stats"]["state"]["q01"][0] += 1e-6
    (run / "norm_stats.json").write_text(json.dumps(body))


def last_digit(_: Place, run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    body = json.loads(lines[1])
    body["loss"] *= 1 + 1e-7
    lines[1] = json.dumps(body)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def checkpoint_byte(_: Place, run: Path) -> None:
    files = [path for path in (run / "checkpoints" / "2" / "params").rglob("*") if path.is_file()]
    flip_byte(max(files, key=lambda path: path.stat().st_size), 0.5)


def a_comment(place: Place, _: Path) -> None:
    """In a copy of the package, which is then imported in its place."""
    import harness as package

    copy = place.root / "source" / "harness"
    shutil.copytree(Path(package.__path__[0]), copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "units.py").open("a") as file:
        file.write("# another\n")


def nothing(_: Place, __: Path) -> None:
    return


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
