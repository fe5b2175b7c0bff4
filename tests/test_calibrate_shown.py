"""Tests what NVML says of a card at work, the progress of a calibration, and the command itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.artifacts import CardState, Load
from harness.probe.readings import load_of, slowed
from harness.show.calibrating import Calibrating
from tests.support.calibrating import measured, stage_of, way
from tests.test_probe_nvml import build, run  # noqa: F401 - `build` is a fixture

AT_WORK = """driver 580.10
count 1
gpu 0 name NVIDIA H200
gpu 0 memory 1000000 1000 400000
gpu 0 compute 7:3000,8:9000
gpu 0 graphics none
gpu 0 sm_clock 1980
gpu 0 memory_clock 3201
gpu 0 power 412500
gpu 0 power_limit 700000
gpu 0 temperature 61
gpu 0 utilization 97
gpu 0 reasons 68
"""
READ = """
from harness.probe.readings import read_state
print(read_state(0).model_dump_json())
"""


def state_of(scenario: str, tmp_path: Path, library: Path) -> CardState:
    path = tmp_path / "scenario.txt"
    path.write_text(scenario)
    return CardState.model_validate(run(READ, library, path))


@pytest.mark.parametrize("defines", [(), ("OLD",)])
def test_a_card_at_work_is_read_by_any_driver(tmp_path: Path, build: Any, defines: tuple[str, ...]) -> None:  # noqa: F811
    found = state_of(AT_WORK, tmp_path, build(*defines))
    assert (found.sm_clock_mhz, found.memory_clock_mhz) == (1980, 3201)
    assert (found.power_w, found.power_limit_w, found.temperature_c) == (412.5, 700, 61)
    assert found.utilization_percent == 97
    assert found.throttle == ["power limit", "temperature (hardware)"]
    assert found.largest_compute_bytes == 9000
    assert found.used_bytes == (600000 if defines else 599000)


def test_what_nvml_does_not_tell_is_unknown_with_the_reason(tmp_path: Path, build: Any) -> None:  # noqa: F811
    found = state_of("driver 580.10\ncount 1\ngpu 0 name x\ngpu 0 reasons 4096\n", tmp_path, build())
    assert found.throttle == ["reason 0x1000 of the driver"]
    for name in ("sm_clock_mhz", "power_w", "temperature_c", "used_bytes", "largest_compute_bytes"):
        assert getattr(found, name) is None
        assert found.unknown[name]
    gone = state_of("driver 580.10\ncount 1\ngpu 0 handle !15\n", tmp_path, build())
    assert gone.unknown


def test_the_load_is_that_of_the_moments_at_work() -> None:
    states = [
        CardState(throttle=["idle"], sm_clock_mhz=200, power_w=80),
        CardState(throttle=["power limit"], sm_clock_mhz=1700, power_w=690, temperature_c=60),
        CardState(throttle=[], sm_clock_mhz=1900, power_w=600, temperature_c=70),
        CardState(unknown={"card": "gone"}),
    ]
    assert load_of(states) == Load(
        samples=4,
        least_sm_clock_mhz=1700,
        most_power_w=690,
        most_temperature_c=70,
        throttle=["power limit"],
    )
    assert slowed(load_of(states)) == []
    assert load_of([]) == Load()


def test_the_progress_says_what_is_done_and_how_much_time_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    stage = way("plan 5.2").stages[0]
    with Calibrating(5) as ears:
        ears.begin(stage, 1, 8, 300.0)
        ears.doing("compiling the step of 32 x 8", 290.0)
        ears.done(stage_of("full", measured(5.2), wall_s=45.0, marks=["throttled: power brake"]))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "1/8 plan 5.2 (5 min 00 s left)"
    assert said[1] == "  compiling the step of 32 x 8"
    assert said[2] == "full: measured in 45.0 s: throttled: power brake"


def test_on_a_terminal_it_is_a_bar() -> None:
    out = io.StringIO()
    ears = Calibrating(5)
    ears._console = Console(file=out, force_terminal=True, width=100)
    stage = way("plan 5.2").stages[0]
    with ears:
        ears.begin(stage, 2, 8, 120.0)
        ears.doing("step 1 of 4\x1b[2J", 100.0)
        ears._bar.refresh()
    said = out.getvalue()
    assert "2/8 plan 5.2" in said
    assert "1 min 40 s left" in said
    assert "step 1 of 4\x1b[2J" not in said


def harness(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "calibrate", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_without_a_gpu_the_command_refuses_and_writes_nothing(tmp_path: Path) -> None:
    done = harness("--json", "--output", str(tmp_path / "out"), HARNESS_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert "[no-gpu]" in done.stderr
    assert "fix:" in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "1e9"])
def test_minutes_are_a_time(minutes: str) -> None:
    done = harness("--minutes", minutes)
    assert done.returncode == 2
    assert "minutes" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_card_on_which_jax_does_not_start_is_no_calibration(tmp_path: Path, build: Any) -> None:  # noqa: F811
    """The whole command, with a card that only NVML sees: nothing else is measured in its place."""
    scenario = tmp_path / "scenario.txt"
    quiet = AT_WORK.replace("utilization 97", "utilization 0").replace(
        "compute 7:3000,8:9000", "compute none"
    )
    quiet += "gpu 0 uuid GPU-1\ngpu 0 architecture 9\ngpu 0 capability 9.0\n"
    scenario.write_text(
        quiet.replace("memory 1000000 1000 400000", "memory 150754820096 500000000 150254820096")
    )
    done = harness(
        "--json",
        "--minutes",
        "2",
        HARNESS_CACHE=str(tmp_path / "cache"),
        LD_LIBRARY_PATH=str(build()),
        NVML_SCENARIO=str(scenario),
    )
    assert done.returncode == 1, done.stderr
    written = json.loads(done.stdout)
    (stage,) = written["stages"]
    assert (stage["name"], stage["state"]) == ("full", "failed")
    assert stage["reason"].startswith("[device-unavailable] JAX cannot start on cuda")
    assert stage["before"]["sm_clock_mhz"] == 1980
    assert "no other can do better" in written["unknown"]["ceilings"]
    assert "goes on with what is left" in done.stderr
    (path,) = (tmp_path / "cache/calibration").glob("nvidia-h200-*/calibration.json")
    assert json.loads(path.read_text()) == written
