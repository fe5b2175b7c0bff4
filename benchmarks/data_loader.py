"""Samples a second of the harness's loader against LeRobot's reader behind a torch DataLoader of two workers,
in turn on the same cores.

    python benchmarks/data_loader.py DIR --lerobot PYTHON [--seconds 15] [--rounds 3] [--workers 0]
    python benchmarks/data_loader.py DIR --mixture DIR DIR DIR [--seconds 15] [--rounds 3] [--workers 0]

DIR is a dataset of benchmarks/data_make.py; PYTHON is of an environment with lerobot 0.3.3 (without --lerobot
only our side is measured). Ours gives whole batches of 32: uint8 images, normalized states and chunks,
tokens; once as the training loop takes them (256 × 256 as stored: the device resizes them to Pillow's very
pixels, which costs these cores nothing), and once with images that Pillow resized to 224. LeRobot's is
measured in the same two ways: as its reader gives them (float32, 256 × 256), and with what openpi's
transforms do to each sample in the worker (uint8, resized to 224 with Pillow). Each is compared with its
like. Every turn is a fresh process and a first epoch: no image was seen before. `--warm` batches go first
unmeasured on our side, in which row groups are read and kept; `--warm 0` shows the start. Prints wall and
processor time: on a busy machine only the second compares.

With --mixture our loader alone is measured, in turn on DIR and on a mixture of DIR and the other datasets,
which are drawn equally often.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

BATCH = 32
RECIPE = "smoke"


def cpu_seconds() -> float:
    """Processor time of this process and of its workers so far."""
    total = 0.0
    for pid in ["self", *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def ours(directory: str, seconds: float, workers: int, warm: int, resize: bool, others: list[str]) -> None:
    from harness.data.dataset import describe
    from harness.data.loader import Loader
    from harness.data.stats import compute
    from harness.recipe.load import load_recipe

    mixed = [{"dataset": name, "weight": 1} for name in (directory, *others)]
    data = f"data.datasets={json.dumps(mixed)}" if others else f"data.dataset={directory}"
    recipe = load_recipe(RECIPE, [data, "model.action_horizon=10"])
    dataset = describe(recipe)
    loader = Loader(recipe, dataset, compute(recipe, dataset), batch_size=BATCH, seed=0, workers=workers)
    with closing(loader.iterate(0, resized=resize)) as batches:
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


def run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


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
        ours(
            options.directory,
            options.seconds,
            options.workers,
            options.warm,
            options.resize,
            options.mixture,
        )
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
    if options.mixture:
        mixed = [*mine, "--mixture", *options.mixture]
        sides = {"one dataset": mine, f"a mixture of {1 + len(options.mixture)}": mixed}
        pairs = [(name, "one dataset") for name in list(sides)[1:]]
    elif options.lerobot is None:
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
