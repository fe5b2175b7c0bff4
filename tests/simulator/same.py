"""Compares openpi's loop with the harness on the same episodes."""

from __future__ import annotations

from typing import Any

from tests.simulator import inside


def compare(suite: str, task: int, order: list[int], steps: int) -> None:
    """Assert that all observations and the last state are equal, byte for byte."""
    asked: dict[str, Any] = {"suite": suite, "task": task, "steps": steps}
    theirs = inside.run("openpi_loop", {**asked, "trials": max(order) + 1}, environ={"MUJOCO_GL": "egl"})
    ours = inside.run("ours", {**asked, "order": order, "rendering": "demand"})
    for trial in order:
        mine = ours[str(trial)]
        assert len(mine["queries"]) == -(-steps // 5)
        assert mine["queries"] == theirs[trial]["queries"]
        assert mine["done"] == theirs[trial]["done"]
        assert mine["end"] == theirs[trial]["end"]
    # Two cameras, once a query: openpi draws ten times as many.
    assert ours["drawn"] == 2 * sum(len(ours[str(trial)]["queries"]) for trial in order)
