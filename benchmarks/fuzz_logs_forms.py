"""A log of every form that people post. Part of `benchmarks.fuzz_logs`.

The forms are those of openpi, its PyTorch trainer, LeRobot, transformers, accelerate and the harness, and
tables of their losses.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable

UNITS = ("", "K", "M", "B")


def curve(step: int, rng: random.Random) -> float:
    return 0.05 + 0.5 * math.exp(-step / 2000) + rng.gauss(0, 0.01)


def rounded(count: float) -> str:
    """LeRobot's way to print a count: 999, 1K, 25K, 1M."""
    for unit in UNITS:
        if abs(count) < 1000:
            return f"{count:.0f}{unit}"
        count /= 1000
    return str(count)


def openpi(rng: random.Random, steps: int = 6000) -> str:
    rows = [
        f"Step {s}: grad_norm={1 + rng.random():.4f}, loss={curve(s, rng):.4f},"
        f" param_norm={1802.386 + s * 1e-5:.4f}"
        for s in range(0, steps, 100)
    ]
    return "\n".join(rows) + "\n"


def openpi_nan(_: random.Random) -> str:
    return "".join(f"Step {s}: grad_norm=nan, loss=nan, param_norm=nan\n" for s in range(0, 1000, 100))


def openpi_bars(rng: random.Random) -> str:
    """Progress bars, saves, a pause of hours and a resume between the records."""
    text, clock = "", 0
    for s in range(0, 4400, 100):
        clock += 659 + (18_000 if s == 2300 else 0)
        if s % 500 == 0:
            passed = f"{clock // 3600}:{clock // 60 % 60:02d}:{clock % 60:02d}"
            text += (
                f"\r {s // 150}%|##   | {s}/15000 [{passed}<23:48:14,  6.59s/it]14:00:49.191 [I] Deleted step"
                " 0.\n"
            )
        if s == 3000:
            text += "12:00:00.000 [I] Running on: host (1:train.py:196)\n"
        text += f"Step {s}: grad_norm=0.3, loss={curve(s, rng):.4f}, param_norm={1378 + s * 4e-4:.4f}   \n"
    return text


def pytorch(rng: random.Random, bars: bool = True) -> str:
    text = "13:48:16.000 [I] Training config: batch_size=256, num_train_steps=8000 (1:train_pytorch.py:517)\n"
    for s in range(0, 8000, 20):
        clock = f"{13 + s // 9000}:{s * 2 // 300 % 60:02d}:{s * 2 // 5 % 60:02d}"
        if s % 100 == 0:
            text += (
                f"{clock}.400 [I] step={s} loss={curve(s, rng):.4f} lr={5e-9 * (s + 1):.2e} grad_norm=1.20"
                " time=40.0s    (1:train_pytorch.py:560)\n"
            )
        if bars:
            values = f"loss={curve(s, rng) * 2:.4f}, lr=5e-09, step={s + 1}"
            passed = f"{s // 150:02d}:{s * 2 // 5 % 60:02d}"
            text += f"\rTraining:  {s // 80:2d}%|#   | {s + 1}/8000 [{passed}<53:20,  2.50it/s, {values}]"
    return text + "\n"


def lerobot(
    rng: random.Random,
    *,
    every: int = 200,
    batch: int = 32,
    steps: int = 30_000,
    evaluates: bool = False,
    nan: bool = False,
) -> str:
    text = "INFO 2025-11-17 21:50:11 ot_train.py:283 Output dir: outputs\n"
    for s in range(every, steps + 1, every):
        values = "loss:nan grdn:nan" if nan else f"loss:{curve(s, rng):.3f} grdn:2.421"
        clock = f"2025-11-{17 + s // 90_000} {s // 3600 % 24:02d}:{s // 60 % 60:02d}:{s % 60:02d}"
        seen = (
            f"step:{rounded(s)} smpl:{rounded(s * batch)} ep:{rounded(s * batch / 700)}"
            f" epch:{s * batch / 2e5:.2f}"
        )
        text += f"INFO {clock} ot_train.py:351 {seen} {values} lr:2.5e-05 updt_s:0.478 data_s:0.038\n"
        if evaluates and s % (5 * every) == 0:
            text += f"INFO {clock} ot_train.py:402 step {s}: eval_loss={0.12 + s * 1e-5:.4f}\n"
    return text


def transformers(rng: random.Random, *, bars: bool = True, quoted: bool = False, totals: bool = False) -> str:
    """The lines of Hugging Face's Trainer, which name no step."""
    text = (
        "***** Running training *****\n  Num Epochs = 10\n  Total optimization steps = 1,000\n"
        if totals
        else ""
    )
    quote = "'" if quoted else ""
    for s in range(1001):
        if bars:
            text += f"\r  {s // 10}%|##    | {s}/1000 [{s // 60:02d}:{s % 60:02d}<10:00,  1.00it/s]"
        if s and s % 10 == 0:
            values = {
                "loss": f"{curve(3 * s, rng):.4g}",
                "grad_norm": "1.25",
                "learning_rate": "5e-05",
                "epoch": f"{s / 100:.4g}",
            }
            text += (
                "\r"
                + " " * 30
                + "\r{" * bars
                + "{" * (not bars)
                + ", ".join(f"'{key}': {quote}{value}{quote}" for key, value in values.items())
                + "}\n"
            )
        if s and s % 200 == 0:
            text += (
                f"{{'eval_loss': {quote}{curve(s, rng):.4f}{quote}, 'eval_runtime': 1.2, 'epoch':"
                f" {s / 100}}}\n"
            )
    return text + "{'train_runtime': 1000.1, 'train_loss': 0.3, 'epoch': 10.0}\n"


def accelerate(rng: random.Random) -> str:
    bars = (
        f"\rSteps:  {s // 10}%|#  | {s}/1000 [{s // 60:02d}:{s % 60:02d}<10:00,  1.00it/s, lr=1e-5,"
        f" step_loss={curve(3 * s, rng):.4f}]"
        for s in range(1000)
    )
    return "".join(bars) + "\n"


def accelerate_lines(rng: random.Random) -> str:
    rows = (
        f"11/17/2025 21:{s // 60:02d}:{s % 60:02d} - INFO - __main__ - Step: {s}, Loss:"
        f" {curve(3 * s, rng):.4f}, LR: 1e-5\n"
        for s in range(1000)
    )
    return "".join(rows)


def metrics(rng: random.Random) -> str:
    rows = [
        {
            "step": s,
            "loss": curve(20 * s, rng),
            "grad_norm": 1.0,
            "param_norm": 69.6,
            "learning_rate": 3e-3,
            "step_s": 0.5,
            "data_s": 0.1,
            "time": 1.7e9 + s,
        }
        for s in range(300)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def wandb_table(rng: random.Random) -> str:
    rows = (f'"{s}","{curve(s, rng)}","0.03","0.1","{curve(s, rng)}"\n' for s in range(0, 20_000, 100))
    return '"Step","mine - loss","mine - loss__MIN","mine - loss__MAX","mine - val/loss"\n' + "".join(rows)


def tensorboard_table(rng: random.Random) -> str:
    return "Wall time,Step,Value\n" + "".join(
        f"{1.7e9 + s},{s},{curve(s, rng)}\n" for s in range(0, 9000, 30)
    )


def notes(rng: random.Random) -> str:
    rows = (
        f"- step `{s}`: `grad_norm={3 - s / 200:.4f}`, `loss={curve(9 * s, rng):.4f}`,"
        f" `param_norm={1803.77 + s * 1e-5:.4f}`\n"
        for s in range(100, 400, 25)
    )
    return "".join(rows)


SEEDS: dict[str, Callable[[random.Random], str]] = {
    "openpi": openpi,
    "openpi twice": lambda rng: openpi(rng, 3000) + openpi(rng),
    "openpi bars": openpi_bars,
    "openpi nan": openpi_nan,
    "pytorch": lambda rng: pytorch(rng, bars=False),
    "pytorch tee": pytorch,
    "lerobot": lerobot,
    "lerobot tail": lambda rng: "".join(
        line + "\n" for line in lerobot(rng).splitlines() if "K smpl" in line
    ),
    "lerobot eval": lambda rng: lerobot(rng, every=20, batch=8, steps=900, evaluates=True),
    "lerobot nan": lambda rng: lerobot(rng, steps=1000, nan=True),
    "lerobot millions": lambda rng: lerobot(rng, every=20_000, steps=2_000_000),
    "transformers": transformers,
    "transformers quoted": lambda rng: transformers(rng, quoted=True, bars=False),
    "transformers totals": lambda rng: transformers(rng, quoted=True, bars=False, totals=True),
    "accelerate bars": accelerate,
    "accelerate lines": accelerate_lines,
    "metrics": metrics,
    "wandb table": wandb_table,
    "tensorboard table": tensorboard_table,
    "notes": notes,
}
