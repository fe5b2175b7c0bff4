"""Saves a state of some hundred MB N times, and says whether the host's memory grows with the number of
saves.

    python -m benchmarks.saves [--saves 50] [--mib 256] [--scratch DIR]

The state is new before every save, as it is between two saves of a run; the memory is that of the process
(resident set, `/proc/self/statm`) when a save is whole on disk and the older step is pruned. The slope is
that of a least-squares line over the second half of the saves, with its 95 % interval. Exit code 1 when the
interval lies above one percent of the state a save. Progress goes to stderr, the table to stdout.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from harness.checkpoint.store import Store
from harness.units import MIB

_LEAVES = 16
_SHARE = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--saves", type=int, default=50)
    parser.add_argument(
        "--mib", type=int, default=256, help="bytes of the state: a third parameters, two thirds moments"
    )
    parser.add_argument("--scratch", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        resident = measure(Path(scratch) / "checkpoints", arguments.saves, arguments.mib)
    half = len(resident) // 2
    line = stats.linregress(range(half, len(resident)), resident[half:])
    width = stats.t.ppf(0.975, len(resident) - half - 2) * line.stderr
    low, high = line.slope - width, line.slope + width
    shown = [1, 2, 5, 10, 20, 30, 40, 50]
    print("| after save | " + " | ".join(str(number) for number in shown if number <= len(resident)) + " |")
    print("| --- |" + " --- |" * sum(number <= len(resident) for number in shown))
    print(
        "| MiB resident | "
        + " | ".join(f"{resident[number - 1]:.0f}" for number in shown if number <= len(resident))
        + " |"
    )
    print(
        f"\nslope over saves {half + 1} to {len(resident)}: {line.slope:+.2f} MiB a save (95 %: {low:+.2f} to"
        f" {high:+.2f}), of a state of {arguments.mib} MiB"
    )
    grows = low > _SHARE * arguments.mib
    print(
        "host memory grows with the number of saves"
        if grows
        else "host memory does not grow with the number of saves"
    )
    return 1 if grows else 0


def measure(directory: Path, saves: int, mib: int) -> list[float]:
    """MiB resident after each save."""
    import jax

    store = Store(directory, keep_every_steps=10 * saves)
    resident = []
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x * 1.0001 + 1e-3, tree), donate_argnums=0)
    state = make(mib)
    for step in range(1, saves + 1):
        state = change(state)
        store.save(
            step,
            params=state["params"],
            train_state={"opt_state": state["moments"]},
            norm_stats_json="{}",
            asset_id="a",
            record={"step": step},
        )
        store.wait()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE") / MIB)
        print(f"save {step} of {saves}: {resident[-1]:.0f} MiB", file=sys.stderr, flush=True)
    store.close()
    return resident


def make(mib: int) -> dict[str, Any]:
    """A state of so many MiB, random, so that nothing compresses well."""
    import jax.numpy as jnp

    rng, each = np.random.default_rng(0), mib * MIB // 3 // 4 // _LEAVES // 1024
    leaves = {
        f"layers/{i}/w": jnp.asarray(rng.normal(size=(each, 1024)), jnp.float32) for i in range(_LEAVES)
    }
    return {
        "params": leaves,
        "moments": {name: {path: x * 2 for path, x in leaves.items()} for name in ("mu", "nu")},
    }


if __name__ == "__main__":
    sys.exit(main())
