"""Measures an export of the real π0.5: peak host memory against the largest leaf, and pace against `cp`.

    python -m benchmarks.export_large FOLDER [--to openpi-pytorch] [--dtype float32] [--rounds 1]
    python -m benchmarks.export_large FOLDER --layers 4 --random --rounds 5

Makes a float32 checkpoint of the real shapes in FOLDER, exports it in a process of its own, and copies at
most 4 GiB of the written file with `cp`, flushed to the disk as the export flushes its own. Each round does
both, one after the other; the ratio is that of the medians. The numbers are a short pattern, which packs to
little. With --random they do not pack, as real weights. --layers keeps so many layers of each network.

FOLDER needs 24 GiB for all layers, and 13 more with --random; all that was made is removed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.checkpoint.export import write_params
from harness.recipe.load import load_recipe
from harness.recipe.parameters import GEMMA, VISION, parameter_shapes
from harness.units import GIB, format_bytes

_COPIED_BYTES = 4 * GIB
# zstd looks back less far than the second.
_PACKED, _RANDOM = 2**16, 2_000_003


def keep(layers: int) -> None:
    """Leaves so many layers of each network, for this process."""
    for table in (GEMMA, VISION):
        for name, size in table.items():
            table[name] = size._replace(depth=min(size.depth, layers))  # type: ignore[index]


def arrays(period: int) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter of the published recipe, filled with a pattern of `period` numbers."""
    pattern = np.random.default_rng(0).standard_normal(period).astype(np.float32)
    for path, shape in parameter_shapes(load_recipe("pi05_libero").model).items():
        yield path, np.resize(pattern, math.prod(shape)).reshape(shape)


def main() -> int:
    if sys.argv[1:2] == ["export"]:
        from harness.cli import main as harness

        keep(int(sys.argv.pop(2)))
        return harness() or 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", default="openpi-pytorch", choices=("openpi-pytorch", "lerobot"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    keep(options.layers)
    folder = options.folder / "export_large"
    folder.mkdir(parents=True)
    try:
        write_params(folder / "step/params", arrays(_RANDOM if options.random else _PACKED))
        return measure(folder, options)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, options: argparse.Namespace) -> int:
    """Prints the figures; 1 if one of the limits is broken."""
    shapes = parameter_shapes(load_recipe("pi05_libero").model)
    largest = 4 * max(math.prod(shape) for shape in shapes.values())
    exports, copies, size = [], [], 0
    for _ in range(options.rounds):
        exports.append(exported(folder, options))
        size, seconds = copied(folder)
        copies.append(seconds)
        print(f"export {exports[-1]:.1f} s, cp {seconds:.1f} s", flush=True)
    # No process that was waited for was larger than the exports: `cp` is small.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    took, copy = statistics.median(exports), statistics.median(copies)
    figures = {
        "bytes": size,
        "seconds": round(took, 1),
        "MB_s": round(size / took / 1e6),
        "cp_seconds": round(copy, 1),
        "cp_MB_s": round(size / copy / 1e6),
        "ratio": round(copy / took, 2),
        "peak_gib": round(peak / GIB, 2),
        "largest_leaf_gib": round(largest / GIB, 2),
        "leaves": round(peak / largest, 2),
    }
    print(format_bytes(size), json.dumps(figures))
    return 0 if figures["ratio"] >= 0.5 and figures["leaves"] <= 3 else 1


def exported(folder: Path, options: argparse.Namespace) -> float:
    """Seconds of one export to the folder's `out`."""
    command = [sys.executable, "-m", "benchmarks.export_large", "export", str(options.layers)]
    command += [str(folder / "step"), str(folder / "out")]
    command += ["--to", options.to, "--dtype", options.dtype, "--recipe", "pi05_libero"]
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def copied(folder: Path) -> tuple[int, float]:
    """(bytes of the written file, seconds that `cp` would take for them); the file and `out` are removed."""
    file = folder / "out/model.safetensors"
    size = file.stat().st_size
    os.truncate(file, part := min(size, _COPIED_BYTES))
    start = time.monotonic()
    subprocess.run(["cp", str(file), str(folder / "copy")], check=True)
    with (folder / "copy").open("rb") as copy:
        os.fsync(copy.fileno())
    took = time.monotonic() - start
    (folder / "copy").unlink()
    shutil.rmtree(folder / "out")
    return size, took * size / part


if __name__ == "__main__":
    sys.exit(main())
