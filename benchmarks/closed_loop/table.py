"""The stage `table`: success on held-out initial states, with Wilson's intervals, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.closed_loop.evaluate import BLIND
from benchmarks.closed_loop.generate import read_made
from harness.evaluate.intervals import wilson


def table(directory: Path) -> str:
    """A row for each policy and task that was evaluated.

    Repeats of a scene are no further scenes: the blind replays of one count as their mean.
    """
    lines = ["| policy | task | success | 95 % interval |", "| --- | --- | --- | --- |"]
    evaluations = directory / "evaluations"
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for file in sorted(evaluations.glob("*/evaluation.json")):
        for rate in json.loads(file.read_text())["rates"]:
            if rate["task"] is not None and rate["measured"]:
                task = f"{rate['suite'].removeprefix('libero_')}/{rate['task']}"
                found[file.parent.name, task] = (rate["successes"], rate["measured"])
    scenes: dict[tuple[str, str], dict[int, list[bool]]] = {}
    for row in read_made(evaluations / BLIND):
        key = ("blind replay", f"{row['suite'].removeprefix('libero_')}/{row['task']}")
        scenes.setdefault(key, {}).setdefault(row["state"], []).append(row["success"])
    for key, states in scenes.items():
        found[key] = (sum(sum(each) / len(each) for each in states.values()), len(states))
    for (policy, task), (successes, episodes) in sorted(found.items()):
        low, high = wilson(successes, episodes)
        lines.append(
            f"| {policy} | {task} | {successes:g} of {episodes} | {100 * low:.1f} to {100 * high:.1f} % |"
        )
    return "\n".join(lines)
