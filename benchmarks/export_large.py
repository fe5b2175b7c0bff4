"""Measures an export of the real π0.5: peak host memory against the largest leaf, and pace against `cp`.

    python -m benchmarks.export_large FOLDER [--to openpi-pytorch] [--dtype float32] [--rounds 1]
    python -m benchmarks.export_large FOLDER --layers 4 --rounds 5

Makes a float32 checkpoint of the real shapes in FOLDER. Its numbers do not pack, as real weights; with
--packed they are a short pattern, which packs to little. Each round copies that checkpoint with `cp -r` and
exports it in a process of its own, alternately, in both states: *cold*, with none of the source in the page
cache, and *warm*, after all of it was read. How much of it was in the cache is printed too. Both end with the
last byte on the disk.

    ratio   seconds of `cp` for the source / seconds of the export
    pace    bytes that the export writes in a second / bytes that `cp` writes in a second

The two differ where the export writes more or fewer bytes than the source has. --layers keeps so many layers
of each network. FOLDER needs 27 GiB for all layers; all that was made is removed.
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
from typing import NamedTuple

import numpy as np

from harness.checkpoint.export import write_params
from harness.recipe.load import load_recipe
from harness.recipe.parameters import GEMMA, VISION, parameter_shapes
from harness.units import GIB, MIB, format_bytes

_LOOK_BYTES = MIB
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
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    keep(options.layers)
    folder = options.folder / "export_large"
    folder.mkdir(parents=True)
    try:
        # In a process of its own: a process that is started counts the memory of the one that starts it.
        call("make", options.layers, _PACKED if options.packed else _RANDOM, folder / "step/params")
        # Only what is on the disk leaves the cache.
        flush(folder / "step")
        return max(measure(folder, options, dtype) for dtype in options.dtype)
    finally:
        shutil.rmtree(folder)


class Run(NamedTuple):
    """One export, or one copy."""

    bytes: int
    seconds: float
    processor_seconds: float = 0.0
    peak: int = 0


def measure(folder: Path, options: argparse.Namespace, dtype: str) -> int:
    """Prints the figures of one type; 1 if one of the limits is broken."""
    shapes = parameter_shapes(load_recipe("pi05_libero").model)
    largest = 4 * max(math.prod(shape) for shape in shapes.values())
    done = True
    for state in ("cold", "warm"):
        copies, exports = [], []
        for _ in range(options.rounds):
            there = [prepare(folder / "step", state)]
            copies.append(copied(folder))
            there.append(prepare(folder / "step", state))
            exports.append(exported(folder, options, dtype))
            print(
                f"{dtype} {state}: cp {copies[-1].seconds:.1f} s with {there[0]:.0%} of the source in the"
                f" cache, export {exports[-1].seconds:.1f} s with {there[1]:.0%},"
                f" load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        copy, export = (statistics.median(run.seconds for run in runs) for runs in (copies, exports))
        read, written = copies[0].bytes, exports[0].bytes
        peak = max(run.peak for run in exports)
        figures = {
            "dtype": dtype,
            "state": state,
            "cp_seconds": round(copy, 1),
            "cp_bytes": read,
            "cp_MB_s": round(read / copy / 1e6),
            "seconds": round(export, 1),
            "bytes": written,
            "MB_s": round(written / export / 1e6),
            "processor_seconds": round(statistics.median(run.processor_seconds for run in exports), 1),
            "ratio": round(copy / export, 2),
            "pace": round(written / export / (read / copy), 2),
            "peak_gib": round(peak / GIB, 2),
            "largest_leaf_gib": round(largest / GIB, 2),
            "leaves": round(peak / largest, 2),
        }
        done = done and min(figures["ratio"], figures["pace"]) >= 0.5 and figures["leaves"] <= 3  # type: ignore[type-var,operator]
        print(format_bytes(written), json.dumps(figures), flush=True)
    return 0 if done else 1


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def flush(directory: Path) -> None:
    """Brings all files to the disk."""
    for path in files(directory):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def prepare(directory: Path, state: str) -> float:
    """The share of the files that is in the page cache, after they were read to their ends, or taken out."""
    here = total = 0
    for path in files(directory):
        with path.open("rb", buffering=0) as file:
            if state == "warm":
                while file.read(_LOOK_BYTES):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for path in files(directory):
        with path.open("rb", buffering=0) as file:
            # A look must not read ahead.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for start in range(0, path.stat().st_size, _LOOK_BYTES):
                total += 1
                here += in_cache(file.fileno(), start)
    return here / total


def in_cache(descriptor: int, offset: int) -> bool:
    """Whether the byte at `offset` can be read without the disk."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


def call(*arguments: object) -> tuple[float, int]:
    """(the processor's seconds, peak memory in bytes) of this program with these arguments, as a process."""
    command = [sys.executable, "-m", "benchmarks.export_large", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def exported(folder: Path, options: argparse.Namespace, dtype: str) -> Run:
    """One export to the folder's `out`, which is removed."""
    start = time.monotonic()
    processor, peak = call(
        "export", options.layers, folder / "step", folder / "out", "--to", options.to,
        "--dtype", dtype, "--recipe", "pi05_libero",
    )  # fmt: skip
    took = time.monotonic() - start
    size = (folder / "out/model.safetensors").stat().st_size
    shutil.rmtree(folder / "out")
    return Run(size, took, processor, peak)


def copied(folder: Path) -> Run:
    """One copy of the step with `cp`, which is removed."""
    start = time.monotonic()
    subprocess.run(["cp", "-r", str(folder / "step"), str(folder / "copy")], check=True)
    flush(folder / "copy")
    took = time.monotonic() - start
    size = sum(path.stat().st_size for path in files(folder / "copy"))
    shutil.rmtree(folder / "copy")
    return Run(size, took)


if __name__ == "__main__":
    sys.exit(main())
