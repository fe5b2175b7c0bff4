"""Runs through the real command line, and what they learned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

SMALL = [f"--set={key}" for key in ("model.image_size=56", "data.augment=false", "train.save_every_steps=4")]
STEPS = 12


def small(run: Path, *more: str) -> list[str]:
    """The arguments that train the small recipe in `run`."""
    return ["train", "--recipe=smoke", f"--steps={STEPS}", *SMALL, *more, "--run", str(run)]


def start(cache: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness.cli", *arguments]
    env = os.environ | {"HARNESS_CACHE": str(cache), "WANDB_MODE": "disabled"} | environment
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def harness(cache: Path, *arguments: str, code: int = 0, **environment: str) -> tuple[str, str]:
    process = start(cache, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    return out, err


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 240) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()[-3000:] if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)


def metrics(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def learned(run: Path) -> list[tuple]:
    """With the digest of the frames that each step saw."""
    return [
        tuple(line[key] for key in ("step", "frames", "loss", "grad_norm", "param_norm", "learning_rate"))
        for line in metrics(run)
    ]


def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read by Orbax alone."""
    found = {}
    for item in ("params", "train_state"):
        tree = ocp.PyTreeCheckpointer().restore(run / "checkpoints" / str(step) / item)
        stack = [(item, tree)]
        while stack:
            path, node = stack.pop()
            if isinstance(node, dict | list | tuple):
                stack += [
                    (f"{path}/{key}", child)
                    for key, child in (node.items() if isinstance(node, dict) else enumerate(node))
                ]
            elif node is not None:
                found[path] = np.asarray(node)
    return found


def assert_same(one: Path, other: Path) -> None:
    assert learned(one) == learned(other)
    assert [line["step"] for line in metrics(one)] == list(range(STEPS))
    a, b = arrays(one, STEPS), arrays(other, STEPS)
    assert a.keys() == b.keys()
    assert len(a) > 150
    for path, value in a.items():
        np.testing.assert_array_equal(value, b[path], err_msg=path)
