"""What `harness inspect` costs on a checkpoint of the published recipe's size: python
benchmarks/inspect_large.py [DIRECTORY]

Makes a step of 42 GB in DIRECTORY (default: a temporary one) without writing 42 GB: every array is declared,
its chunks are sparse files of the full size. Then runs the command in a process of its own and prints its
time and peak memory. Both forms that Orbax writes are made: plain files, and OCDBT, where chunks of zeros
stand for the data and the tree is as large as a real one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tensorstore as ts

from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from harness.units import format_bytes

CHUNK_BYTES = 64 * 2**20


def chunk_of(shape: tuple[int, ...], itemsize: int = 4) -> list[int]:
    """Chunks of about 64 MiB, cut from the first axis on, as a real save has them."""
    chunk = list(shape)
    for axis in range(len(chunk)):
        while math.prod(chunk) * itemsize > CHUNK_BYTES and chunk[axis] > 1:
            chunk[axis] = -(-chunk[axis] // 2)
    return chunk


def write_item(directory: Path, shapes: dict[str, tuple[int, ...]], *, ocdbt: bool) -> None:
    """An item whose metadata is real and whose data takes no space."""
    directory.mkdir(parents=True)
    base = directory.absolute().as_uri() + "/"
    for path, shape in shapes.items():
        name = path.replace("/", ".")
        chunk = chunk_of(shape)
        header = {
            "chunks": chunk,
            "compressor": None,
            "dtype": "<f4",
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": shape,
            "zarr_format": 2,
        }
        header["dimension_separator"] = "."
        counts = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
        keys = [".".join(map(str, _index(i, counts))) or "0" for i in range(math.prod(counts))]
        if ocdbt:
            store = ts.KvStore.open({"driver": "ocdbt", "base": base, "path": f"{name}/"}).result()
            with ts.Transaction() as transaction:
                staged = store.with_transaction(transaction)
                staged[".zarray"] = json.dumps(header)
                for key in keys:
                    staged[key] = bytes(200)
        else:
            (directory / name).mkdir()
            (directory / name / ".zarray").write_text(json.dumps(header))
            for key in keys:
                with (directory / name / key).open("wb") as file:
                    os.truncate(file.fileno(), math.prod(chunk) * 4)
    keyed = {path: [{"key": key, "key_type": 2} for key in path.split("/")] for path in shapes}
    tree = {
        str(path): {"key_metadata": keys, "value_metadata": {"value_type": "jax.Array"}}
        for path, keys in keyed.items()
    }
    (directory / "_METADATA").write_text(
        json.dumps({"tree_metadata": tree, "use_zarr3": False, "store_array_data_equal_to_fill_value": True})
    )


def _index(flat: int, counts: list[int]) -> list[int]:
    index = []
    for n in reversed(counts):
        flat, place = divmod(flat, n)
        index.append(place)
    return index[::-1]


def make(directory: Path, *, ocdbt: bool) -> Path:
    """A checkpoint directory with one step of pi05_libero: parameters, raw parameters beside the average, and
    two moments.
    """
    shapes = parameter_shapes(load_recipe("pi05_libero").model)
    step = directory / "1000"
    write_item(
        step / "params", {f"params/{path}/value": shape for path, shape in shapes.items()}, ocdbt=ocdbt
    )
    state = {
        f"opt_state/1/0/{moment}/{path}/value": shape
        for moment in ("mu", "nu")
        for path, shape in shapes.items()
    }
    write_item(
        step / "train_state",
        state | {f"params/{path}/value": shape for path, shape in shapes.items()},
        ocdbt=ocdbt,
    )
    (step / "assets").mkdir()
    handlers = dict.fromkeys(("assets", "params", "train_state"), "handler")
    (step / "_CHECKPOINT_METADATA").write_text(
        json.dumps({"item_handlers": handlers, "commit_timestamp_nsecs": 1})
    )
    return directory


def measure(directory: Path) -> tuple[float, float, int, dict]:
    """(seconds, seconds of the processor, peak bytes, answer) of the command in a process of its own."""
    before, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "inspect", str(directory), "--json"], stdout=subprocess.PIPE
    )
    out, _ = process.communicate()
    seconds = time.monotonic() - before
    assert process.returncode == 0, process.returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return seconds, cpu, after.ru_maxrss * 1024, json.loads(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", nargs="?", type=Path, help="an empty or new directory on a filesystem with sparse files"
    )
    where = parser.parse_args().directory or Path(tempfile.mkdtemp(prefix="inspect-large-"))
    for form in ("files", "ocdbt"):
        directory = make(where / form, ocdbt=form == "ocdbt")
        seconds, cpu, peak, answer = measure(directory)
        (step,) = answer["steps"]
        arrays = sum(item["arrays"] or 0 for item in step["items"])
        told = (
            f"{answer['parameters_total']:,} parameters, whole: {step['complete']},"
            f" {format_bytes(step['bytes'])} of files"
        )
        print(
            f"{form}: {seconds:.2f} s ({cpu:.2f} s of one core), peak {format_bytes(peak)} (must: 2 s, 500"
            f" MB); {arrays} arrays, {told}"
        )
    print(f"made in {where}; delete it when done")


if __name__ == "__main__":
    main()
