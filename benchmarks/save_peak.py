"""Measures the host memory that one save takes beside the state, for saves in the background and streamed.

    python -m benchmarks.save_peak [--mib 1024 2560] [--saves background orbax streamed] [--scratch DIR]

Each case is a process of its own. It makes a state of so many MiB, on the device or in pinned host memory,
saves it with the run's own store, and goes on as training does: the next step donates the state. The memory
is that of the process (VmHWM of `/proc/self/status`, set back before the save) beyond what it had. The pause
is the time until `save` returns. "orbax" is Orbax's own limit, `save_device_host_concurrent_gb` of one GB
with no prioritized leaf, in the place of ours.

On a CPU a copy of an array costs nothing until the array is replaced, so what a background save holds shows
here only because training goes on. Exit code 1 if a streamed save takes more than STREAMED_HOST_BYTES, or if
that grows with the state by more than a tenth of what the state grows. Progress goes to stderr, the table to
stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifacts.plan import STREAMED_HOST_BYTES
from harness.units import GIB, MIB

_CASES = ("background", "orbax", "streamed")
_PLACES = ("device", "pinned_host")
_SHARE = 0.1
_LAYER_MIB = 128


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, nargs="+", default=[1024, 2560], help="sizes of the state")
    parser.add_argument("--saves", nargs="+", default=list(_CASES), choices=_CASES)
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case, place, directory = arguments.case
        print(json.dumps(measure(Path(directory), case, place, arguments.mib[0])))
        return 0
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    print("| save | state | of MiB | MiB beside it, at most | pause, s | whole after, s |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for case in arguments.saves:
        for place in _PLACES:
            for mib in arguments.mib:
                with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
                    command = [sys.executable, "-m", "benchmarks.save_peak", "--mib", str(mib)]
                    made = subprocess.run(
                        [*command, "--case", case, place, scratch], stdout=subprocess.PIPE, check=True
                    )
                one = found[case, place, mib] = json.loads(made.stdout.splitlines()[-1])
                print(
                    f"| {case} | {place} | {mib} | {one['beside']:.0f} | {one['pause']:.1f} |"
                    f" {one['whole']:.1f} |",
                    flush=True,
                )
    if "streamed" not in arguments.saves:
        return 0
    small, large = min(arguments.mib), max(arguments.mib)
    wrong = [
        place
        for place in _PLACES
        if found["streamed", place, large]["beside"] > STREAMED_HOST_BYTES / MIB
        or found["streamed", place, large]["beside"] - found["streamed", place, small]["beside"]
        > max(_SHARE * (large - small), 64)
    ]
    bound = f"{STREAMED_HOST_BYTES / GIB:.0f} GiB"
    print(
        f"\na streamed save exceeds {bound}, or grows with the state: {' and '.join(wrong)}"
        if wrong
        else f"\na streamed save stays within {bound}, whatever the state's size"
    )
    return 1 if wrong else 0


def measure(directory: Path, case: str, place: str, mib: int) -> dict[str, float]:
    """MiB beside the state at most, seconds until `save` returned, and until the step was whole."""
    import jax
    import orbax.checkpoint as ocp

    from harness.checkpoint.store import Store

    if case == "orbax":
        real = ocp.PyTreeCheckpointHandler
        ocp.PyTreeCheckpointHandler = lambda **given: real(
            **given, save_device_host_concurrent_gb=1, is_prioritized_key_fn=lambda _: False
        )
    change = jax.jit(lambda tree: jax.tree.map(lambda x: x * 1.0001 + 1e-3, tree), donate_argnums=0)
    store = Store(directory / "checkpoints", keep_every_steps=1, streamed=case == "streamed")
    # What a first save loads and compiles is there before.
    _save(store, 1, make(1, place))
    store.wait()
    state = jax.block_until_ready(make(mib, place))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    begun = time.monotonic()
    _save(store, 2, state)
    pause = time.monotonic() - begun
    if case == "orbax":
        # It reads the arrays until the step is whole.
        store.wait()
    if place == "device":
        state = jax.block_until_ready(change(state))
    store.wait()
    whole = time.monotonic() - begun
    store.close()
    del state
    return {"beside": _status("VmHWM") - before, "pause": pause, "whole": whole}


def _save(store: Any, step: int, state: dict[str, Any]) -> None:
    params = {path: x for path, x in state.items() if path.startswith("layers")}
    moments = {"opt_state": {"mu": {path: x for path, x in state.items() if path not in params}}}
    store.save(
        step, params=params, train_state=moments, norm_stats_json="{}", asset_id="a", record={"step": step}
    )


def _status(key: str) -> float:
    """MiB that the kernel tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MIB for line in lines if line.startswith(key))


def make(mib: int, place: str) -> dict[str, Any]:
    """A state of so many MiB, random, so that nothing compresses well. Half of it is one leaf."""
    import jax
    from jax.sharding import SingleDeviceSharding

    rng, rows = np.random.default_rng(0), mib * MIB // 4 // 1024 // 2
    count = max(mib // 2 // _LAYER_MIB, 1)
    where = SingleDeviceSharding(jax.devices()[0], memory_kind=place)
    sizes = {"stack/w": rows} | {f"layers/{i}/w": rows // count for i in range(count)}
    return {
        path: jax.device_put(rng.standard_normal((size, 1024), np.float32), where)
        for path, size in sizes.items()
    }


if __name__ == "__main__":
    sys.exit(main())
