"""The stage `table`: success on held-out initial states, with Wilson's intervals, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.closed_loop.evaluate import BLIND
from benchmarks.closed_loop.generate import read_made
from harness.evaluate.intervals import wilson


def table(directory: Path) -> str:
    """A row for each policy and task that was evaluated."""
    lines = ["| policy | task | success | 95 % interval |", "| --- | --- | --- | --- |"]
    evaluations = directory / "evaluations"
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for file in sorted(evaluations.glob("*/evaluation.json")):
        for rate in json.loads(file.read_text())["tasks"]:
            if rate["measured"]:
                task = f"{rate['suite'].removeprefix('libero_')}/{rate['task']}"
                found[file.parent.name, task] = (rate["successes"], rate["measured"])
    for row in read_made(evaluations / BLIND):
        key = ("blind replay", f"{row['suite'].removeprefix('libero_')}/{row['task']}")
        successes, episodes = found.get(key, (0, 0))
        found[key] = (successes + row["success"], episodes + 1)
    for (policy, task), (successes, episodes) in sorted(found.items()):
        low, high = wilson(successes, episodes)
        lines.append(
            f"| {policy} | {task} | {successes} of {episodes} | {100 * low:.1f} to {100 * high:.1f} % |"
        )
    return "\n".join(lines)
