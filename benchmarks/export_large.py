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
        harness()
        return 0
    if sys.argv[1:2] == ["make"]:
        layers, period, directory = sys.argv[2:]
        keep(int(layers))
        write_params(Path(directory), arrays(int(period)))
        return 0
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
        # In a process of its own: a process that is started counts the memory of the one that starts it.
        period = _RANDOM if options.random else _PACKED
        call("make", options.layers, period, folder / "step/params")
        return measure(folder, options)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, options: argparse.Namespace) -> int:
    """Prints the figures; 1 if one of the limits is broken."""
    shapes = parameter_shapes(load_recipe("pi05_libero").model)
    largest = 4 * max(math.prod(shape) for shape in shapes.values())
    exports, copies, peaks, size = [], [], [], 0
    for _ in range(options.rounds):
        seconds, peak = exported(folder, options)
        exports.append(seconds)
        peaks.append(peak)
        size, seconds = copied(folder)
        copies.append(seconds)
        print(f"export {exports[-1]:.1f} s, cp {seconds:.1f} s", flush=True)
    peak = max(peaks)
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


def call(*arguments: object) -> int:
    """The peak memory, in bytes, of this program with these arguments in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.export_large", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss * 1024


def exported(folder: Path, options: argparse.Namespace) -> tuple[float, int]:
    """(seconds, peak memory in bytes) of one export to the folder's `out`."""
    start = time.monotonic()
    peak = call(
        "export", options.layers, folder / "step", folder / "out", "--to", options.to,
        "--dtype", options.dtype, "--recipe", "pi05_libero",
    )  # fmt: skip
    return time.monotonic() - start, peak


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
