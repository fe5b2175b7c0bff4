"""Tests the way from NVML to a plan.

The C stand-in for libnvidia-ml, the real nvidia-ml-py and the real rule are used; only the compiler is
simulated.
"""

from __future__ import annotations

from typing import Any

import pytest

from harness.units import GIB
from tests.test_probe_nvml import build, run

__all__ = ["build"]  # the fixture that compiles the stand-in

PLAN = """
import json, sys
from pathlib import Path
from harness.errors import HarnessError
from harness.plan.asked import Ask, Tools
from harness.plan.choose import choose
from harness.probe.machine import probe
from harness.recipe.load import load_recipe
from tests.support.planned import Formula
try:
    # The host of the cards, not of the tests, whose own memory may be short.
    ask = Ask(host_ram_bytes=256 * 2**30)
    plan = choose(load_recipe(sys.argv[1]), probe([Path(".")]), None, ask, tools=Tools(None, Formula()))
    print(plan.model_dump_json())
except HarnessError as error:
    print(json.dumps({"code": error.code, "got": error.got}))
"""


def planned(build: Any, scenario: str, recipe: str = "pi05_libero_lora", **environment: str) -> Any:
    return run(PLAN, build(), scenario, recipe, **environment)


def test_an_idle_card_is_used_but_for_context_and_margin(build: Any) -> None:
    plan = planned(build, "idle_48gb")
    assert plan["chosen"]["verdict"] == "fits"
    assert plan["chosen"]["deviations"] == []
    assert plan["usable_bytes"] == plan["free_bytes"] - plan["context_bytes"] - plan["margin_bytes"]
    assert 0.9 < plan["memory_fraction"] < 1


def test_the_idle_of_two_is_taken_and_who_holds_the_other_is_said(build: Any) -> None:
    plan = planned(build, "two_one_busy")
    assert plan["device_uuids"] == ["GPU-c4fe2290-7d13-8f5a-b2a9-06fc4b3e9d78"]
    assert any("pid 4711" in note and "20.0 GiB" in note for note in plan["notes"])


def test_where_only_the_busy_one_is_visible_less_is_planned_than_what_is_free(build: Any) -> None:
    plan = planned(build, "two_one_busy", CUDA_VISIBLE_DEVICES="GPU-1b7d5e02")
    assert plan["chosen"] is None
    assert plan["free_bytes"] == 1_179_648_000
    assert any("--wait" in note for note in plan["notes"])


def test_a_desktop_on_the_card_is_left_its_memory(build: Any) -> None:
    plan = planned(build, "desktop_24gb")
    assert plan["usable_bytes"] < plan["free_bytes"] < 24 * GIB


def test_a_mig_instance_is_not_taken_for_the_whole_card(build: Any) -> None:
    plan = planned(build, "mig", CUDA_VISIBLE_DEVICES="MIG-c7384736-a75d-5afc-978f-d2f1294409fd")
    assert plan["device_uuids"] == ["MIG-c7384736-a75d-5afc-978f-d2f1294409fd"]
    assert plan["free_bytes"] == 42_362_470_400


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("lying", "gpu-memory-unknown"),
        ("not_supported", "gpu-memory-unknown"),
        ("no_driver", "no-gpu"),
        ("no_gpu", "no-gpu"),
    ],
)
def test_where_nothing_is_known_nothing_is_invented(build: Any, scenario: str, code: str) -> None:
    refused = planned(build, scenario)
    assert refused["code"] == code
    assert refused["got"]


def test_a_lost_card_does_not_hide_the_healthy_one(build: Any) -> None:
    plan = planned(build, "lost_beside_healthy")
    assert plan["chosen"]["verdict"] == "fits"
    assert len(plan["device_uuids"]) == 1
