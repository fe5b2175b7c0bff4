"""Tests that a run with simulated delays trains, stops and goes on bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.support.real_runs import STEPS, assert_same, harness, metrics, small, start, wait_for
from tests.support.session import CACHE

DELAY = "--set=train.action_delay.max=4"


def test_a_stopped_run_with_delays_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    harness(CACHE, *small(whole, DELAY))
    process = start(CACHE, *small(stopped, DELAY))
    wait_for(lambda: len(metrics(stopped)) >= 5, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert len(metrics(stopped)) < STEPS
    harness(CACHE, "train", "--resume", "--run", str(stopped))
    assert_same(stopped, whole)
    recorded = json.loads((whole / "manifest.json").read_text())
    assert recorded["recipe"]["train"]["action_delay"] == {"max": 4}
