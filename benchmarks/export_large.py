"""Measures an export of the real π0.5: peak host memory against the largest leaf, and pace against `cp`.

    python benchmarks/export_large.py FOLDER [--to openpi-pytorch] [--dtype float32]

Makes a float32 checkpoint of the real shapes in FOLDER from a short pattern (which packs to little), exports
it in a process of its own, and copies 4 GiB of the written file with `cp`, flushed to the disk as the export
flushes its own. FOLDER needs 24 GiB; all that was made is removed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.checkpoint.export import write_params
from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from harness.units import GIB, format_bytes

_COPIED_BYTES = 4 * GIB


def arrays() -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter of the published recipe, filled with a pattern of 2^16 numbers."""
    pattern = np.random.default_rng(0).standard_normal(2**16).astype(np.float32)
    for path, shape in parameter_shapes(load_recipe("pi05_libero").model).items():
        yield path, np.resize(pattern, math.prod(shape)).reshape(shape)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", default="openpi-pytorch")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    folder = options.folder / "export_large"
    folder.mkdir(parents=True)
    try:
        write_params(folder / "step/params", arrays())
        return measure(folder, options.to, options.dtype)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, target: str, dtype: str) -> int:
    """Prints the figures; 1 if one of the limits is broken."""
    shapes = parameter_shapes(load_recipe("pi05_libero").model)
    largest = 4 * max(math.prod(shape) for shape in shapes.values())
    command = [sys.executable, "-m", "harness.cli", "export", str(folder / "step"), str(folder / "out")]
    command += ["--to", target, "--dtype", dtype, "--recipe", "pi05_libero"]
    start = time.monotonic()
    subprocess.run(command, check=True)
    took = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    file = folder / "out/model.safetensors"
    size = file.stat().st_size
    os.truncate(file, part := min(size, _COPIED_BYTES))
    start = time.monotonic()
    subprocess.run(["cp", str(file), str(folder / "copy")], check=True)
    with (folder / "copy").open("rb") as copy:
        os.fsync(copy.fileno())
    copied = (time.monotonic() - start) * size / part
    figures = {
        "bytes": size,
        "seconds": round(took, 1),
        "MB_s": round(size / took / 1e6),
        "cp_seconds": round(copied, 1),
        "cp_MB_s": round(size / copied / 1e6),
        "ratio": round(copied / took, 2),
        "peak_gib": round(peak / GIB, 2),
        "largest_leaf_gib": round(largest / GIB, 2),
        "leaves": round(peak / largest, 2),
    }
    print(format_bytes(size), json.dumps(figures))
    return 0 if figures["ratio"] >= 0.5 and figures["leaves"] <= 3 else 1


if __name__ == "__main__":
    sys.exit(main())
