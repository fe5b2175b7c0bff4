"""Tests that an episode here is openpi's, byte for byte. More tasks: by_hand/test_openpi_loop.py."""

from __future__ import annotations

from tests.simulator.same import compare


def test_a_later_trial_of_a_task_with_moving_fixtures_and_a_growing_list_is_openpis() -> None:
    compare("libero_spatial", 4, [1], steps=10)
