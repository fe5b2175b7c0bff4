"""Tests that episodes here are openpi's, byte for byte, in any order, drawn on demand or always."""

from __future__ import annotations

import pytest

from tests.simulator import inside
from tests.simulator.same import compare


@pytest.mark.parametrize(
    ("suite", "task"),
    [("libero_goal", 5), ("libero_spatial", 4), ("libero_10", 9), ("libero_10", 3), ("libero_object", 2)],
    ids=["moving fixtures", "both", "a growing list", "another", "neither"],
)
def test_all_observations_of_all_queries_are_openpis(suite: str, task: int) -> None:
    compare(suite, task, [2, 0, 1], steps=30)


def test_drawing_on_demand_gives_what_drawing_always_gives() -> None:
    asked = {"suite": "libero_10", "task": 4, "steps": 30, "order": [0, 7]}
    demand, always = (inside.run("ours", {**asked, "rendering": how}) for how in ("demand", "always"))
    drawn = demand.pop("drawn"), always.pop("drawn")
    assert demand == always
    assert drawn[0] * 5 < drawn[1]


def test_the_order_of_episodes_and_what_a_process_drove_before_change_nothing() -> None:
    asked = {"suite": "libero_goal", "task": 2, "steps": 10, "rendering": "demand"}
    one, two = (inside.run("ours", {**asked, "order": order}) for order in ([0, 31, 49], [49, 0]))
    assert {key: one[key] for key in ("0", "49")} == {key: two[key] for key in ("0", "49")}
