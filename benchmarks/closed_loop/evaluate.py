"""The stage `evaluate`: held-out initial states, driven by the trained policy and by policies that are blind.

Beside the checkpoint stand two controls of `harness evaluate`, `zero` and `scripted`, and the blind replay:
the actions of the first recorded episode of the same task, carried out in scenes that they were not recorded
in. Where that succeeds as often, success alone does not show that a policy looks. So the checkpoint drives
the same scenes once more with pictures that are turned the other way: what looks at them is lost then.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.closed_loop.dataset import CHUNK, DATA
from benchmarks.closed_loop.generate import ask, read_made, start
from benchmarks.closed_loop.plan import HELD_OUT, TASKS
from benchmarks.closed_loop.train import harness

BLIND = "blind.jsonl"


def evaluate(directory: Path, name: str, step: int | None, wanted: list[str] | None) -> None:
    """Drives the held-out states of the recorded tasks, or of the wanted ones. It goes on where it was."""
    made = [row for row in read_made(directory / "dataset" / "made.jsonl") if row["success"]]
    recorded = {(row["suite"], row["task"]) for row in made}
    tasks = [
        (suite, task)
        for suite, task in TASKS
        if (suite, task) in recorded and (wanted is None or _short(suite, task) in wanted)
    ]
    own, checkpoint = _label(name, step), [str(_checkpoint(directory / name, step))]
    # The cheap ones first: they show that the simulator and the scenes are right.
    _blind(directory, made, tasks)
    for label, policy in (
        ("zero", ["--policy", "zero"]),
        ("scripted", ["--policy", "scripted"]),
        (own, checkpoint),
        (f"{own}-turned", [*checkpoint, "--depart", "turn=0"]),
    ):
        out = directory / "evaluations" / label
        command = harness("evaluate", *policy, "--out", str(out), "--episodes", str(len(HELD_OUT)))
        command += ["--suites", ",".join(dict.fromkeys(suite for suite, _ in tasks))]
        command += ["--tasks", ",".join(_short(*each) for each in tasks)]
        command += ["--videos", "failures" if label == own else "none"]
        if (out / "setting.json").exists():
            command.append("--resume")
        subprocess.run(command, check=True)


def _short(suite: str, task: int) -> str:
    return f"{suite.removeprefix('libero_')}/{task}"


def _label(name: str, step: int | None) -> str:
    return name if step is None else f"{name}-{step}"


def _checkpoint(run: Path, step: int | None) -> Path:
    return run if step is None else run / "checkpoints" / str(step)


def _blind(directory: Path, made: list[dict[str, Any]], tasks: list[tuple[str, int]]) -> None:
    """Replays recorded actions in the held-out scenes; a line of blind.jsonl for each."""
    out = directory / "evaluations" / BLIND
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["suite"], row["task"], row["state"]) for row in read_made(out)}
    todo = [
        (suite, task, state, _first_of(made, suite, task))
        for suite, task in tasks
        for state in HELD_OUT
        if (suite, task, state) not in done
    ]
    if not todo:
        return
    with start() as child:
        for suite, task, state, episode in todo:
            path = DATA.format(episode_chunk=episode // CHUNK, episode_index=episode)
            column = pq.read_table(directory / "dataset" / path, columns=["actions"])["actions"]
            actions = column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
            order = {"do": "replay", "suite": suite, "task": task, "state": state}
            answer, _ = ask(child, order, {"actions": actions})
            row = {"suite": suite, "task": task, "state": state, "episode": episode} | {
                key: answer[key] for key in ("success", "steps")
            }
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"blind {_short(suite, task)} state {state}: {row['success']}", flush=True)


def _first_of(made: list[dict[str, Any]], suite: str, task: int) -> int:
    """The number of the first recorded episode of a task."""
    return next(i for i, row in enumerate(made) if (row["suite"], row["task"]) == (suite, task))
