"""Kills a run with SIGKILL at random times, resumes it every time, and compares it with one that was never killed.

    python -m benchmarks.kills [--kills 100] [--seed 0] [--scratch DIR]

A small model on the packaged sample, a checkpoint every step, so that many kills fall into a save. After every kill: no line of metrics
differs from the uninterrupted run's, and the newest checkpoint loads. At the end: every array of the last checkpoint, bit for bit.
Exit code 1 when anything differs or is lost. Progress goes to stderr, the table to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

SMALL = [f"--set={key}" for key in ("model.image_size=56", "data.augment=false", "train.save_every_steps=1", "train.keep_every_steps=100000")]
# How far ahead of a kill a run is let go, at most; with a checkpoint a step that is a handful of steps and saves.
_LONGEST_S = 2.5


class Kill(NamedTuple):
    during_save: bool
    steps_kept: int
    steps_done: int
    exact: bool
    lost: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=None, help="steps of the run (default: five a kill, so that it does not end early)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, default=None)
    arguments = parser.parse_args()
    steps, chance = arguments.steps or 5 * arguments.kills, random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        root = Path(scratch)
        whole, killed = root / "whole", root / "killed"
        print(f"the uninterrupted run of {steps} steps", file=sys.stderr)
        finish(root, whole, steps, resume=False)
        reference = metrics(whole)
        kills: list[Kill] = []
        resume = False
        while len(kills) < arguments.kills:
            kill = kill_once(root, killed, steps, resume, chance, reference)
            resume = True
            if kill is None:
                print(f"the run ended after {len(kills)} kills: give it more --steps", file=sys.stderr)
                break
            kills.append(kill)
            print(f"kill {len(kills)} of {arguments.kills}: {kill}", file=sys.stderr)
        finish(root, killed, steps, resume=resume)
        same_lines = metrics(killed) == reference
        same_arrays, arrays = compare_arrays(whole, killed, steps)
    exact, lost, during = sum(kill.exact for kill in kills), sum(kill.lost for kill in kills), sum(kill.during_save for kill in kills)
    print("| kills | during a save | exact resumes | lost checkpoints | metrics lines equal | arrays of the last checkpoint equal |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| {len(kills)} | {during} | {exact} | {lost} | {'all' if same_lines else 'no'} {len(reference)} | {same_arrays} of {arrays} |")
    return 0 if exact == len(kills) and not lost and same_lines and same_arrays == arrays else 1


def start(root: Path, run: Path, steps: int, *, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harness.cli", "train", f"--run={run}", f"--steps={steps}", *(["--resume"] if resume else SMALL)]
    environment = os.environ | {"HARNESS_CACHE": str(root / "cache"), "WANDB_MODE": "disabled"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(root: Path, run: Path, steps: int, *, resume: bool) -> None:
    process = start(root, run, steps, resume=resume)
    if process.wait() != 0:
        raise SystemExit(f"the run in {run} ended with exit code {process.returncode}")


def kill_once(root: Path, run: Path, steps: int, resume: bool, chance: random.Random, reference: list[dict[str, Any]]) -> Kill | None:
    """One attempt, killed at a random time after its first new line of metrics; None when it ended before."""
    before, process = len(metrics(run)), start(root, run, steps, resume=resume)
    while len(metrics(run)) <= before:
        if process.poll() is not None:
            return None
        time.sleep(0.02)
    time.sleep(chance.random() * _LONGEST_S)
    if process.poll() is not None:
        return None
    saving = any(path.name.count("orbax-checkpoint-tmp") for path in (run / "checkpoints").iterdir()) if (run / "checkpoints").is_dir() else False
    newest = whole_steps(run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The trainer dies with its supervisor; until the kernel has ended it the run is still held.
    while held(run):
        time.sleep(0.02)
    lines, kept = metrics(run), whole_steps(run)
    exact = lines == reference[: len(lines)]
    return Kill(saving, max(kept, default=0), len(lines), exact, bool(newest) and max(kept, default=0) < max(newest))


def held(run: Path) -> bool:
    from harness.runlock import holder

    return holder(run) is not None


def whole_steps(run: Path) -> list[int]:
    directory = run / "checkpoints"
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines without their times; a last line that was cut by the kill is no line."""
    file = run / "metrics.jsonl"
    found = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            body = json.loads(line)
        except ValueError:
            continue
        found.append({name: value for name, value in body.items() if name not in ("step_s", "data_s", "time")})
    return found


def compare_arrays(a: Path, b: Path, step: int) -> tuple[int, int]:
    """(equal, all) by the digests that each save took of its own arrays, after both were read back and checked."""
    one, other = ((path / "checkpoints" / str(step) / "harness" / "digests.json") for path in (a, b))
    first, second = json.loads(one.read_text())["leaves"], json.loads(other.read_text())["leaves"]
    return sum(second.get(name) == digest for name, digest in first.items()), len(first)


if __name__ == "__main__":
    sys.exit(main())
