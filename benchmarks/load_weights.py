"""Loading weights against reading the same bytes with tensorstore alone, on one machine in one run.

    python benchmarks/load_weights.py [--gib 2] [--rounds 3] [--chunk-mib 0] [--dtype float32] [--cold]

Writes a checkpoint of that size in openpi's layout to a temporary directory (leaves of π0.5's proportions;
one chunk a leaf, as openpi saves, unless --chunk-mib), then loads it alternately in fresh processes. `--cold`
drops the page cache before each (needs root). Prints seconds, throughput, the ratio, and peak host memory
above the loaded parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

GIB = 2**30
# Shares of the leaves: the largest is a third, as gating_einsum is of PaliGemma's language model.
SHARES = {
    "llm/gating": 0.34,
    "llm/linear": 0.17,
    "embedder": 0.16,
    "expert/gating": 0.1,
    "img/dense_0": 0.08,
    "img/dense_1": 0.08,
} | {f"small/{i}": 0.07 / 32 for i in range(32)}


def shapes(gib: float) -> dict[str, tuple[int, int]]:
    return {
        f"{name}/kernel": (max(int(share * gib * GIB / 4 / 2048), 1), 2048) for name, share in SHARES.items()
    }


def write(directory: Path, gib: float, chunk_mib: int) -> None:
    import numpy as np
    import orbax.checkpoint as ocp

    from harness.checkpoint.paths import nested

    rng = np.random.default_rng(0)
    tree = {
        "params": nested(
            {path: 0.02 * rng.standard_normal(shape, dtype=np.float32) for path, shape in shapes(gib).items()}
        )
    }
    arguments = ocp.SaveArgs(chunk_byte_size=chunk_mib * 2**20 or None)
    import jax

    with ocp.PyTreeCheckpointer() as writer:
        writer.save(
            directory, args=ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda _: arguments, tree))
        )


def with_harness(directory: Path, gib: float, dtype: str) -> int:
    import jax
    import jax.numpy as jnp

    from harness.checkpoint.weights import load_params

    loaded = load_params(
        directory,
        {path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for path, shape in shapes(gib).items()},
    )
    return sum(array.block_until_ready().nbytes for array in loaded.params.values())


def with_tensorstore(directory: Path, gib: float, dtype: str) -> int:
    import tensorstore as ts

    def spec(path: str) -> dict[str, object]:
        name = ".".join(["params", *path.split("/"), "value"])
        return {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": directory.as_uri() + "/", "path": f"{name}/"},
        }

    context = ts.Context()
    stores = [
        future.result()
        for future in [ts.open(spec(path), open=True, read=True, context=context) for path in shapes(gib)]
    ]
    arrays = [future.result() for future in [ts.cast(store, ts.dtype(dtype)).read() for store in stores]]
    return sum(array.nbytes for array in arrays)


def peak_bytes() -> int:
    """The largest resident size of this process (getrusage would count the parent's)."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def child(how: str, directory: Path, gib: float, dtype: str) -> None:
    import jax
    import tensorstore  # noqa: F401  (imports are not what is measured)

    import harness.checkpoint.weights  # noqa: F401

    jax.devices()
    start_bytes = peak_bytes()
    start = time.perf_counter()
    nbytes = (with_harness if how == "harness" else with_tensorstore)(directory, gib, dtype)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "extra_bytes": peak_bytes() - start_bytes - nbytes}))


def measure(how: str, directory: Path, options: argparse.Namespace) -> dict[str, float]:
    if options.cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    command = [
        sys.executable,
        __file__,
        "--child",
        how,
        str(directory),
        "--gib",
        str(options.gib),
        "--dtype",
        options.dtype,
    ]
    return json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk-mib", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]), options.gib, options.dtype)
        return
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "params"
        write(directory, options.gib, options.chunk_mib)
        nbytes = sum(4 * rows * columns for rows, columns in shapes(options.gib).values())
        largest = max(4 * rows * columns for rows, columns in shapes(options.gib).values())
        # One unmeasured turn each, so that both meet the page cache in the same state.
        runs: dict[str, list[dict[str, float]]] = {"tensorstore": [], "harness": []}
        for how in runs:
            measure(how, directory, options)
        for _ in range(options.rounds):
            for how, found in runs.items():
                found.append(measure(how, directory, options))
    seconds = {how: statistics.median(run["seconds"] for run in found) for how, found in runs.items()}
    for how, found in runs.items():
        extra = max(run["extra_bytes"] for run in found)
        print(
            f"{how:12} {seconds[how]:6.2f} s  {nbytes / seconds[how] / 1e9:5.2f} GB/s  peak above the loaded"
            f" parameters {extra / GIB:5.2f} GiB"
        )
    print(
        f"largest leaf {largest / GIB:.2f} GiB; ratio of throughputs"
        f" {seconds['tensorstore'] / seconds['harness']:.2f} (must be at least 0.70)"
    )


if __name__ == "__main__":
    main()
