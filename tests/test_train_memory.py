"""Tests memory.json: the fullest device's peak beside the predicted one.

Unknown values are marked as unknown.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.artifacts import Candidate, Levers
from harness.recipe.load import load_recipe
from harness.run.directory import RunDir
from harness.run.job import Job
from harness.train.compiled import CompiledStep
from harness.train.memory import measure
from tests.support.planned import plan_of


def job(platform: str, **known: Any) -> Job:
    levers = Levers(
        platform=platform, devices=2, fsdp=2, microbatch=2, prompt_tokens=16, cameras=["base_0_rgb"]
    )  # type: ignore[arg-type]
    chosen = Candidate(
        levers=levers, verdict="fits", reason="", source="atlas", breakdown={"state": 7}, **known
    )
    return Job(RunDir("run"), load_recipe("smoke"), plan_of(chosen, "x"), None, None)  # type: ignore[arg-type]


def compiled(*stats: dict[str, int] | None) -> CompiledStep:
    devices = np.array(
        [SimpleNamespace(device_kind="NVIDIA A40", memory_stats=lambda one=one: one) for one in stats]
    )
    layout = SimpleNamespace(mesh=SimpleNamespace(devices=devices), devices=len(stats))
    return CompiledStep(None, {"device": 11}, "", SimpleNamespace(layout=layout))  # type: ignore[arg-type]


def test_the_peak_is_that_of_the_fullest_device() -> None:
    stats = [{"peak_bytes_in_use": peak, "bytes_limit": 100} for peak in (12, 15)]
    memory = measure(job("cuda", device_bytes=13), compiled(*stats), 4)
    assert (memory.predicted_bytes, memory.compiled["device"], memory.peak_bytes, memory.limit_bytes) == (
        13,
        11,
        15,
        100,
    )
    assert (memory.step, memory.devices, memory.breakdown, memory.source) == (4, 2, {"state": 7}, "atlas")
    assert memory.unknown == {}


@pytest.mark.parametrize("stats", [None, {}])
def test_a_platform_without_figures_says_so(stats: dict[str, int] | None) -> None:
    memory = measure(job("cpu", host_bytes=13), compiled(stats, stats), 1)
    assert memory.predicted_bytes == 13
    assert memory.peak_bytes is None
    assert set(memory.unknown) == {"peak_bytes", "limit_bytes"}
    assert memory.host_peak_bytes > 50_000_000  # this process has imported JAX
