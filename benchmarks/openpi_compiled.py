"""What openpi's own training step needs on a GPU, by XLA's buffer assignment; writes
harness/openpi/table.json.

    python -m benchmarks.openpi_compiled --openpi CHECKOUT --python ENV/bin/python [--only TEXT] [--again]

Upstream's `train_step` is compiled as it is shipped (scripts/train.py, its pins), with abstract arrays, for
cards that are not here; no GPU, no weights and no data are needed. CHECKOUT is openpi at the commit below;
ENV holds its pinned jax, flax and optax, jax-cuda12-plugin and jax-cuda12-pjrt of the same version, ptxas on
its PATH or nvidia-cuda-nvcc-cu12. The data loader is imported but not used: where lerobot is not installed,
an empty module stands in for it.

Rows that are there already are skipped, so an interrupted run goes on; `--again` compiles them once more and
prints how far the two are apart, without writing. A point takes 1 to 3 minutes on two cores and up to 8 GB of
memory. Without --openpi and --python it says so, and nothing is done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMIT = "15a9616"
TABLE = Path(__file__).parent.parent / "harness/openpi/table.json"
GIB = 2**30
FULL_EMA: dict[str, Any] = {"adapters": "none", "trained": "full", "ema": True}
FULL: dict[str, Any] = {"adapters": "none", "trained": "full", "ema": False}
LORA: dict[str, Any] = {"adapters": "both", "trained": "lora", "ema": False}
FROZEN_VISION: dict[str, Any] = {"adapters": "both", "trained": "lora_frozen_vision", "ema": False}
EXPERT: dict[str, Any] = {"adapters": "none", "trained": "action_expert", "ema": False}
# What is trained where the adapters are there but no filter is: the mistake of the report, with one and with
# both adapters.
UNFILTERED: dict[str, Any] = {"adapters": "paligemma", "trained": "full", "ema": True}
BOTH_UNFILTERED: dict[str, Any] = {"adapters": "both", "trained": "full", "ema": True}
PALIGEMMA_LORA: dict[str, Any] = {"adapters": "paligemma", "trained": "lora", "ema": False}


def points() -> list[dict[str, Any]]:
    """What is compiled, the most useful first: who is trained, global batch, devices, shards, card."""

    def on(
        card: str, who: dict[str, Any], *batches: int, fsdp: int = 1, devices: int = 0, phase: str = "step"
    ) -> list[dict[str, Any]]:
        return [
            {**who, "phase": phase, "batch": batch, "devices": devices or fsdp, "fsdp": fsdp, "card": card}
            for batch in batches
        ]

    return [
        *on("rtx_a6000", LORA, 8),
        *on("rtx_a6000", LORA, 0, phase="init"),
        *on("a100_80", FULL_EMA, 256, fsdp=2),
        *on("rtx_a6000", FULL, 128),
        *on("rtx_a6000", LORA, 256, 128),
        *on("a100_80", FULL_EMA, 256, fsdp=8),
        *on("rtx_a6000", LORA, 16, devices=2),
        *on("rtx_a6000", FROZEN_VISION, 256),
        *on("rtx_a6000", EXPERT, 256, 8),
        *on("rtx_a6000", PALIGEMMA_LORA, 8, 32, 256),
        *on("rtx_a6000", LORA, 16),
        *on("a100_80", FULL, 32),
        *on("rtx_a6000", BOTH_UNFILTERED, 8),
        *on("rtx_a6000", FROZEN_VISION, 64, 1, 128),
        *on("rtx_a6000", EXPERT, 64, 1, 128),
        *on("rtx_a6000", LORA, 64, fsdp=2),
        *on("a100_80", FULL_EMA, 256, fsdp=4),
        *on("rtx_a6000", UNFILTERED, 8, 32, 256),
        *on("rtx_a6000", FULL_EMA, 8),
        *on("rtx_a6000", FULL, 16, 96, 192),
        *on("rtx_4090", LORA, 32),
        *on("rtx_a6000", LORA, 4, 24, 48),
    ]


def assigned(dump: Path) -> dict[str, int]:
    """Bytes of the largest program that XLA wrote its buffer assignment of into `dump`, and what of them is
    arguments and temporary.

    jaxlib 0.5.3 does not tell the sizes of a program for an absent card; they are argument + output - alias +
    temp, as newer ones add up.
    """
    programs = []
    for file in dump.glob("*buffer-assignment.txt"):
        with file.open() as lines:
            sizes = [
                (int(found[1]), line)
                for line in lines
                if (found := re.match(r"allocation \d+: size (\d+), ", line))
            ]
        arguments = sum(size for size, line in sizes if ", parameter " in line)
        temporary = sum(size for size, line in sizes if "preallocated-temp" in line)
        programs.append(
            {"bytes": sum(size for size, _ in sizes), "arguments": arguments, "temporary": temporary}
        )
    return max(programs, key=lambda program: program["bytes"])


def in_environment(point: dict[str, Any], openpi: Path, python: Path) -> dict[str, int]:
    from harness.openpi.table import model_with
    from harness.plan.cards import CARDS
    from harness.recipe.parameters import counts, is_trained, parameter_shapes

    model = model_with(point["adapters"])
    frozen = [path for path in parameter_shapes(model) if not is_trained(path, model, point["trained"])]
    request = {
        "point": point,
        "frozen": frozen,
        "trained": counts(model, point["trained"])[1],
        "target": CARDS[point["card"]].target(),
    }
    paths = [openpi / "scripts", openpi / "src", openpi / "packages/openpi-client/src"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # Upstream's run-time types know arrays, not the descriptions of arrays that a lowering without arrays
    # passes around.
    environment["JAXTYPING_DISABLE"] = "1"
    command = [str(python), str(Path(__file__).with_name("openpi_compiled_child.py").resolve())]
    with tempfile.TemporaryDirectory() as dump:
        environment["XLA_FLAGS"] = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
        done = subprocess.run(
            command, input=json.dumps(request), env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{label(point)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        return assigned(Path(dump))


def is_of(row: dict[str, Any], point: dict[str, Any]) -> bool:
    return all(row[key] == value for key, value in point.items())


def label(point: dict[str, Any]) -> str:
    who = f"{point['adapters']}+{point['trained']}{'+ema' if point['ema'] else ''}"
    return (
        f"{who} {point['phase']} batch {point['batch']} on {point['devices']} x {point['card']} fsdp"
        f" {point['fsdp']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--openpi", type=Path, help=f"a checkout of openpi at {COMMIT}")
    parser.add_argument("--python", type=Path, help="the python of its environment")
    parser.add_argument("--only", default="", help="points whose label contains this text")
    parser.add_argument("--limit", type=int, default=None, help="stop after so many points")
    parser.add_argument(
        "--again", action="store_true", help="compile rows that are there once more and compare"
    )
    options = parser.parse_args()
    if options.openpi is None or options.python is None:
        print(
            "skipped: needs --openpi CHECKOUT and --python ENV/bin/python (see the top of this file)",
            file=sys.stderr,
        )
        return
    head = subprocess.run(
        ["git", "-C", str(options.openpi), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not head.startswith(COMMIT):
        raise SystemExit(
            f"{options.openpi} is at {head[:7] or 'no commit'}; the table is of {COMMIT}: git -C"
            f" {options.openpi} checkout {COMMIT}"
        )
    compiled = 0
    for point in points():
        table = json.loads(TABLE.read_text())
        same = [row for row in table["rows"] if is_of(row, point)]
        known = same[0] if same else None
        done = known is not None and known["source"] == "compiled"
        if options.only not in label(point) or (done and not options.again) or compiled == options.limit:
            continue
        compiled += 1
        start = time.perf_counter()
        found = in_environment(point, options.openpi, options.python)
        seconds = time.perf_counter() - start
        compared = f", {found['bytes'] / known['bytes'] - 1:+.2%} of the row" if known else ""
        print(f"{label(point)}: {found['bytes'] / GIB:.2f} GiB ({seconds:.0f} s){compared}", flush=True)
        if not done:
            from harness.run.directory import write_atomic

            table = json.loads(TABLE.read_text())
            others = [row for row in table["rows"] if not is_of(row, point)]
            table["rows"] = [*others, {**point, **found, "source": "compiled"}]
            lines = ",\n".join("    " + json.dumps(row) for row in table["rows"])
            head_lines = "".join(
                f"  {json.dumps(key)}: {json.dumps(value)},\n"
                for key, value in table.items()
                if key != "rows"
            )
            write_atomic(TABLE, f'{{\n{head_lines}  "rows": [\n{lines}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
