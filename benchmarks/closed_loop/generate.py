"""The stage `generate`: successful episodes of the scripted policy, until there are enough of them.

Killed at any time, it goes on with the attempt that was under way.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.closed_loop.dataset import write_episode, write_meta
from benchmarks.closed_loop.plan import FPS, Take, takes
from harness.simulate.boot import command, environment
from harness.simulate.frames import receive, send

def generate(root: Path, wanted: int) -> None:
    """Adds episodes to the dataset in `root`, until it has `wanted`.

    Raises: HarnessError "simulator-missing", and what the simulator's process tells.
    """
    log = root / "made.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    made = _read(log)
    kept = [row for row in made if row["success"]]
    order = takes()
    for _ in made:
        next(order)
    child = _start()
    begun, done = time.monotonic(), 0
    try:
        while len(kept) < wanted:
            take = next(order)
            row = _one(child, root, take, kept)
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


def _one(child: Any, root: Path, take: Take, kept: list[dict[str, Any]]) -> dict[str, Any]:
    send(child.stdin, {"do": "record", **take._asdict()})
    received = receive(child.stdout)
    if received is None:
        raise RuntimeError(f"the simulator's process ended with code {child.wait()}")
    answer, arrays = received
    if answer["is"] == "error":
        raise RuntimeError(answer["what"])
    row = {**take._asdict(), **{key: answer[key] for key in ("success", "steps", "prompt")}}
    if answer["success"]:
        tasks = list(dict.fromkeys([*(one["prompt"] for one in kept), row["prompt"]]))
        lengths = [one["steps"] for one in kept]
        write_episode(root, len(kept), sum(lengths), tasks.index(row["prompt"]), arrays, FPS)
        prompts = [one["prompt"] for one in kept]
        write_meta(root, [*lengths, row["steps"]], [*prompts, row["prompt"]], tasks, FPS)
    return row


def _read(log: Path) -> list[dict[str, Any]]:
    """The attempts so far. A last line that a kill has cut is taken away."""
    if not log.exists():
        return []
    text = log.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(log, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _start() -> Any:
    return subprocess.Popen(
        command("harness.simulate.record"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        cwd="/",
        start_new_session=True,
    )
