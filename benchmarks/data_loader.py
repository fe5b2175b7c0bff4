"""Samples a second of the harness's loader against LeRobot's reader behind a torch DataLoader of two workers,
in turn on the same cores.

    python benchmarks/data_loader.py DIR --lerobot PYTHON [--seconds 15] [--rounds 3] [--workers 0]
    python benchmarks/data_loader.py DIR --mixture DIR DIR DIR DIR [--rounds 30] [--warm 60]

DIR is a dataset of benchmarks/data_make.py; PYTHON is of an environment with lerobot 0.3.3 (without --lerobot
only our side is measured). Ours gives whole batches of 32: uint8 images, normalized states and chunks,
tokens; once as the training loop takes them (256 × 256 as stored: the device resizes them to Pillow's very
pixels, which costs these cores nothing), and once with images that Pillow resized to 224. LeRobot's is
measured in the same two ways: as its reader gives them (float32, 256 × 256), and with what openpi's
transforms do to each sample in the worker (uint8, resized to 224 with Pillow). Each is compared with its
like. Every turn is a fresh process and a first epoch: no image was seen before. `--warm` batches go first
unmeasured on our side, in which row groups are read and kept; `--warm 0` shows the start. Prints wall and
processor time: on a busy machine only the second compares.

With --mixture our loader alone is measured, on DIR and on a mixture of the other datasets, which are drawn
equally often: in turns of ten batches in one process, --rounds of them after --warm batches. Let DIR be as
large as the others together, so that both see new pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.data_loader_turn import run

os.environ.setdefault("JAX_PLATFORMS", "cpu")

BATCH = 32
RECIPE = "smoke"
# Batches in a turn of one dataset against a mixture.
SLICE = 10


def cpu_seconds() -> float:
    """Processor time of this process and of its workers so far."""
    total = 0.0
    for pid in ["self", *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def loader_of(names: list[str], workers: int) -> Any:
    """The loader of a dataset, or of a mixture whose datasets are drawn equally often."""
    from harness.data.dataset import describe
    from harness.data.loader import Loader
    from harness.data.stats import compute
    from harness.recipe.load import load_recipe

    mixed = [{"dataset": name, "weight": 1} for name in names]
    data = f"data.datasets={json.dumps(mixed)}" if len(names) > 1 else f"data.dataset={names[0]}"
    recipe = load_recipe(RECIPE, [data, "model.action_horizon=10"])
    dataset = describe(recipe)
    return Loader(recipe, dataset, compute(recipe, dataset), batch_size=BATCH, seed=0, workers=workers)


def ours(directory: str, seconds: float, workers: int, warm: int, resize: bool) -> None:
    with closing(loader_of([directory], workers).iterate(0, resized=resize)) as batches:
        for _ in range(4 + warm):
            next(batches)
        frames, begun, cpu = 0, time.perf_counter(), cpu_seconds()
        while time.perf_counter() - begun < seconds:
            next(batches)
            frames += BATCH
        print(
            json.dumps(
                {"frames": frames, "seconds": time.perf_counter() - begun, "cpu_s": cpu_seconds() - cpu}
            )
        )


def against_mixture(options: argparse.Namespace) -> None:
    """Prints the pace of a mixture against that of one dataset, in turns of SLICE batches in one process.

    Whatever else runs here then slows both alike.
    """
    names = {"one dataset": [options.directory], "mixture": options.mixture}
    loaders = {name: loader_of(each, options.workers) for name, each in names.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    before = -(-options.warm // SLICE)
    for turn in range(before + options.rounds):
        for name, loader in loaders.items():
            begun, cpu = time.perf_counter(), cpu_seconds()
            with closing(loader.iterate(turn * SLICE, resized=options.resize)) as batches:
                for _ in range(SLICE):
                    next(batches)
            if turn >= before:
                found[name].append((time.perf_counter() - begun, cpu_seconds() - cpu))
    for name, turns in found.items():
        wall, cpu = (statistics.median(turn[n] for turn in turns) / (SLICE * BATCH) for n in (0, 1))
        print(f"{name:12} {1 / wall:7.1f} samples/s, {1000 * cpu:.2f} ms of a core a sample")
    for n, what in enumerate(("samples a second", "samples a second of a core")):
        pairs = zip(found["one dataset"], found["mixture"], strict=True)
        ratios = sorted(one[n] / mixed[n] for one, mixed in pairs)
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(
            f"mixture / one dataset: {statistics.median(ratios):.2f} times the {what}"
            f" (half of {len(ratios)} turns: {low:.2f} to {high:.2f}; must be at least 0.9)"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory")
    parser.add_argument("--lerobot", metavar="PYTHON")
    parser.add_argument(
        "--backend",
        choices=("pyav", "torchcodec"),
        default="torchcodec",
        help="LeRobot's video decoder; torchcodec is its default",
    )
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--warm", type=int, default=30)
    parser.add_argument("--mixture", nargs="+", default=[], metavar="DIR")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resize", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = _options()
    if options.child:
        ours(options.directory, options.seconds, options.workers, options.warm, options.resize)
        return
    if options.mixture:
        against_mixture(options)
        return
    shared = [options.directory, "--seconds", str(options.seconds)]
    mine = [
        sys.executable,
        __file__,
        *shared,
        "--child",
        "--workers",
        str(options.workers),
        "--warm",
        str(options.warm),
    ]
    sides = {"harness": mine, "harness, resized": [*mine, "--resize"]}
    pairs = []
    if options.lerobot is None:
        print("LeRobot's side is skipped: --lerobot names the Python of an environment with lerobot 0.3.3")
    else:
        theirs = [
            options.lerobot,
            str(Path(__file__).with_name("data_lerobot.py")),
            "loader",
            *shared,
            "--backend",
            options.backend,
        ]
        sides |= {"LeRobot": theirs, "LeRobot, openpi's resize": [*theirs, "--resize"]}
        alike = [("harness", "LeRobot"), ("harness, resized", "LeRobot, openpi's resize")]
        pairs = [*alike, ("harness", "LeRobot, openpi's resize"), ("harness, resized", "LeRobot")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, command in sides.items():
            turn = run(command)
            found[name].append(turn)
            print(f"  {name}: {turn['frames'] / turn['seconds']:.1f} samples/s", file=sys.stderr, flush=True)
    show(found, pairs)


def show(found: dict[str, list[dict[str, float]]], pairs: list[tuple[str, str]]) -> None:
    """Prints the pace of each side, and of each pair how they compare."""
    pace = {name: [turn["frames"] / turn["seconds"] for turn in turns] for name, turns in found.items()}
    cpu = {
        name: statistics.median(1000 * turn["cpu_s"] / turn["frames"] for turn in turns)
        for name, turns in found.items()
    }
    for name, values in pace.items():
        print(
            f"{name:26} {statistics.median(values):7.1f} samples/s ({min(values):.1f} to {max(values):.1f}) "
            f" {cpu[name]:6.2f} ms of a core a sample"
        )
    for ours_name, their_name in pairs:
        each = [a / b for a, b in zip(pace[ours_name], pace[their_name], strict=True)]
        times = (
            f"{statistics.median(each):.2f} times the samples a second ({min(each):.2f} to {max(each):.2f})"
        )
        print(
            f"{ours_name} / {their_name}: {times}, {cpu[their_name] / cpu[ours_name]:.2f} times less"
            " processor time"
        )


if __name__ == "__main__":
    main()
