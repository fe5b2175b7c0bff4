"""Statistics: against openpi's way through LeRobot's reader, the cost a frame as the dataset grows, and the
memory for ten million frames, of one dataset and of a mixture of four.

    python benchmarks/data_stats.py [DIR --lerobot PYTHON] [--seconds 20] [--rounds 3] [--grow
    100000,1000000,10000000]

DIR is a dataset of benchmarks/data_make.py; PYTHON is of an environment with lerobot 0.3.3 (without DIR and
--lerobot that comparison is left out). openpi goes through every frame in order, decodes all images and
updates running sums and histograms; after the first batches its cost a frame is constant, so it is measured
for --seconds and multiplied by the number of frames. Ours is the whole `harness stats` computation, measured
in a fresh process, from opening the dataset to the result. --grow makes numbers in memory, block by block, in
place of files: what is measured is the statistics themselves.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.data_loader_turn import run

STATE, ACTIONS, HORIZON, EPISODE = 8, 7, 10, 250
# The tenths of the frames that each dataset has.
GROWN = {"one dataset": (10,), "a mixture of four": (1, 2, 3, 4)}


def ours(directory: str) -> dict[str, float]:
    from harness.artifacts import Dataset
    from harness.data import stats
    from harness.recipe.load import load_recipe

    recipe = load_recipe("smoke", [f"data.dataset={directory}", f"model.action_horizon={HORIZON}"])
    start, cpu = time.perf_counter(), time.process_time()
    found = stats.compute(recipe, Dataset.model_construct(path=directory))
    return {
        "seconds": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "frames": found.frames,
    }


def grown(frames: int, tenths: tuple[int, ...]) -> dict[str, float]:
    """The statistics of `frames` made-up rows in datasets of so many tenths of them. Of four datasets the
    shares are 4 : 3 : 2 : 1. A block is made anew each time, so that only one is
    ever there.
    """
    from harness.data.metadata import Episode
    from harness.data.pooled import Part, pooled
    from harness.data.rows import Block
    from harness.data.space import Space
    from harness.data.stats import BLOCK_ROWS

    before, start, made_s = peak_bytes(), time.perf_counter(), [0.0]
    rows_of_block = BLOCK_ROWS // EPISODE * EPISODE

    def blocks(part: int) -> Iterator[Block]:
        total = frames * tenths[part] // 10
        for first in range(0, total, rows_of_block):
            begun = time.perf_counter()
            rows = min(rows_of_block, total - first)
            generator = np.random.default_rng([part, first])
            state, actions = (
                generator.normal(part, 1 + part, (rows, width)).astype(np.float32)
                for width in (STATE, ACTIONS)
            )
            lengths = [EPISODE] * (rows // EPISODE) + ([rows % EPISODE] if rows % EPISODE else [])
            episodes = [Episode(n, 0, length, "", 0, {}) for n, length in enumerate(lengths)]
            made_s[0] += time.perf_counter() - begun
            yield Block(episodes, state, actions, np.zeros(0), np.zeros(0, np.int64))

    plain, shares = Space(None, ()), range(len(tenths), 0, -1)
    pooled(
        [
            Part(partial(blocks, part), share, ("state", "actions"), plain)
            for part, share in enumerate(shares)
        ],
        HORIZON,
    )
    return {
        "seconds": time.perf_counter() - start - made_s[0],
        "frames": frames,
        "peak_bytes": peak_bytes(),
        "imports_bytes": before,
    }


def peak_bytes() -> int:
    """The largest resident size of this process."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="?")
    parser.add_argument("--lerobot", metavar="PYTHON")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grow", default="100000,1000000,10000000")
    parser.add_argument("--child", choices=("ours", *GROWN), help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(
            json.dumps(
                ours(options.directory)
                if options.child == "ours"
                else grown(options.frames, GROWN[options.child])
            )
        )
        return
    if options.directory is None or options.lerobot is None:
        print(
            "The comparison with openpi's way is skipped: it needs DIR (benchmarks/data_make.py) and"
            " --lerobot PYTHON (lerobot 0.3.3)"
        )
    else:
        against_openpi(options)
    for name in GROWN:
        for frames in map(int, filter(None, options.grow.split(","))):
            found = run([sys.executable, __file__, "--child", name, "--frames", str(frames)])
            cost = f"{found['seconds']:7.2f} s, {1e6 * found['seconds'] / frames:.2f} µs a frame"
            print(
                f"{name:17} {frames:>11,} frames: {cost}, peak {found['peak_bytes'] / 1e6:.0f} MB of which"
                f" {found['imports_bytes'] / 1e6:.0f} MB are imports"
            )


def against_openpi(options: argparse.Namespace) -> None:
    theirs = [
        options.lerobot,
        str(Path(__file__).with_name("data_lerobot.py")),
        "stats",
        options.directory,
        "--seconds",
        str(options.seconds),
    ]
    mine, other = [], []
    for _ in range(options.rounds):
        other.append(run(theirs))
        mine.append(run([sys.executable, __file__, options.directory, "--child", "ours"]))
    ratios = [
        their["seconds"] / their["frames"] * their["total"] / our["seconds"]
        for their, our in zip(other, mine, strict=True)
    ]
    their_s = statistics.median(turn["seconds"] / turn["frames"] * turn["total"] for turn in other)
    our_s = statistics.median(turn["seconds"] for turn in mine)
    print(
        f"{mine[0]['frames']:,} frames: openpi's way {their_s:.1f} s (two workers, extrapolated), harness"
        f" {our_s:.3f} s"
    )
    print(
        f"harness is {statistics.median(ratios):.0f} times faster ({min(ratios):.0f} to {max(ratios):.0f};"
        " must be at least 200)"
    )
    cpu = [
        their["cpu_s"] / their["frames"] * their["total"] / our["cpu_s"]
        for their, our in zip(other, mine, strict=True)
    ]
    print(
        f"and takes {statistics.median(cpu):.0f} times less processor time ({min(cpu):.0f} to"
        f" {max(cpu):.0f}), which does not depend on what else runs here"
    )


if __name__ == "__main__":
    main()
