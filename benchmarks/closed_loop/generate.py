"""The stage `generate`: successful episodes of the scripted policy, until there are enough of them.

Killed at any time, it goes on with the attempt that was under way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.closed_loop.dataset import write_episode, write_meta
from benchmarks.closed_loop.plan import FPS, Take, takes
from harness.simulate.frames import receive, send

# Both cameras must be rendered here, so the simulator's Python draws without a screen.
ENVIRONMENT = {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def generate(root: Path, wanted: int, python: Path, scenes: Path) -> None:
    """Adds episodes to the dataset in `root`, until it has `wanted`.

    `python` is that of the simulator's environment. `scenes` has the poses of the fixtures.
    """
    log = root / "made.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    made = _read(log)
    kept = [row for row in made if row["success"]]
    order = takes()
    for _ in made:
        next(order)
    child = _start(python)
    begun, done = time.monotonic(), 0
    try:
        while len(kept) < wanted:
            take = next(order)
            row = _one(child, root, take, kept, scenes)
            made.append(row)
            if row["success"]:
                kept.append(row)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
            done += 1
            pace = (time.monotonic() - begun) / done
            left = pace * (wanted - len(kept)) * len(made) / max(1, len(kept)) / 60
            name = f"{take.suite} {take.task} state {take.state} seed {take.seed}"
            print(
                f"{len(kept)}/{wanted} of {len(made)} attempts: {name},"
                f" {'success' if row['success'] else 'failure'} in {row['steps']} steps;"
                f" {pace:.1f} s an attempt, {left:.0f} minutes left",
                flush=True,
            )
    finally:
        child.stdin.close()
        child.wait(30)


def _one(child: Any, root: Path, take: Take, kept: list[dict[str, Any]], scenes: Path) -> dict[str, Any]:
    send(child.stdin, {"do": "record", **take._asdict(), "fixtures": _fixtures(scenes, take)})
    received = receive(child.stdout)
    if received is None:
        raise RuntimeError(f"the simulator's process ended with code {child.wait()}")
    answer, arrays = received
    row = {**take._asdict(), **{key: answer[key] for key in ("success", "steps", "prompt")}}
    if answer["success"]:
        tasks = list(dict.fromkeys([*(one["prompt"] for one in kept), row["prompt"]]))
        lengths = [one["steps"] for one in kept]
        write_episode(root, len(kept), sum(lengths), tasks.index(row["prompt"]), arrays, FPS)
        prompts = [one["prompt"] for one in kept]
        write_meta(root, [*lengths, row["steps"]], [*prompts, row["prompt"]], tasks, FPS)
    return row


def _fixtures(scenes: Path, take: Take) -> dict[str, list[float]]:
    path = scenes / f"{take.suite}_{take.task}.json"
    poses: dict[str, list[float]] = json.loads(path.read_text())[take.poses]
    return poses


def _read(log: Path) -> list[dict[str, Any]]:
    """The attempts so far. A last line that a kill has cut is taken away."""
    if not log.exists():
        return []
    text = log.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(log, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _start(python: Path) -> Any:
    return subprocess.Popen(
        [str(python), "-m", "benchmarks.closed_loop.record"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )


if __name__ == "__main__":
    generate(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
