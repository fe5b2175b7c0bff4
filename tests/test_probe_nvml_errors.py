"""Tests that every error of NVML has a cause and a fix.

Checked are the table, its page, and the C stand-in through the real nvidia-ml-py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pynvml
import pytest

from harness.probe.nvml_errors import ERRORS, explained, page
from tests.test_probe_nvml import HERE, ROOT, build, read

__all__ = ["build"]  # the fixture that compiles the stand-in

NUMBERS = {name: getattr(pynvml, name) for name in dir(pynvml) if name.startswith("NVML_ERROR_")}


def test_the_table_has_every_error_that_nvidia_ml_py_knows() -> None:
    assert {number: words.name for number, words in ERRORS.items()} == {
        number: name.removeprefix("NVML_ERROR_") for name, number in NUMBERS.items()
    }


def test_the_page_is_the_table() -> None:
    """After a change: python -c "from harness.probe.nvml_errors import page; print(page(), end='')" >
    docs/nvml.md
    """
    assert (ROOT / "docs/nvml.md").read_text() == page()


@pytest.mark.parametrize("number", sorted(set(ERRORS)))
def test_an_nvml_that_does_not_start_is_told_with_its_cause_and_what_to_do(
    build: Any, number: int, tmp_path: Path
) -> None:
    scenario = tmp_path / "refuses.txt"
    scenario.write_text(f"init !{number}\n")
    if number in (
        3,
        5,
    ):  # "not supported" is how the stand-in says that nothing is wrong; 5 is a success to nvidia-ml-py
        scenario.write_text(f"driver 550.1\ncount !{number}\n")
    got = read(build(), scenario)
    assert got["gpus"] == []
    assert ERRORS[number].cause in got["gpu_error"]
    assert got["gpu_fix"] == ERRORS[number].fix
    assert got["gpu_missing"] == ERRORS[number].elsewhere


@pytest.mark.parametrize("number", [2, 4, 10, 15, 16, 17, 999])
def test_a_card_that_cannot_be_opened_is_told_with_its_cause_and_what_to_do(
    build: Any, number: int, tmp_path: Path
) -> None:
    scenario = tmp_path / "one.txt"
    scenario.write_text((HERE / "idle_48gb.txt").read_text() + f"gpu 0 handle !{number}\n")
    got = read(build(), scenario)
    assert ERRORS[number].cause in got["gpus"][0]["error"]
    assert got["gpus"][0]["fix"] == ERRORS[number].fix
    assert (got["gpu_error"], got["gpu_fix"]) == (got["gpus"][0]["error"], ERRORS[number].fix)


@pytest.mark.parametrize(
    ("line", "what", "fix"),
    [
        (
            "gpu 0 mig_mode 1",
            "MIG is on and its instances cannot be listed (NVML: Not Supported)",
            "on the host: nvidia-smi mig -i 0",
        ),
        ("driver 470.1", "the NVIDIA driver 470.1 is too old for CUDA 12", "install 525.60.13 or newer"),
    ],
)
def test_every_other_error_of_a_card_has_its_own_fix_too(
    build: Any, line: str, what: str, fix: str, tmp_path: Path
) -> None:
    scenario = tmp_path / "one.txt"
    lines = (HERE / "idle_48gb.txt").read_text().splitlines()
    kept = [each for each in lines if each.rpartition(" ")[0] != line.rpartition(" ")[0]]
    scenario.write_text("\n".join([line, *kept]) + "\n")
    got = read(build(), scenario)
    assert got["gpus"][0]["error"] == got["gpu_error"] == what
    assert got["gpus"][0]["fix"] == got["gpu_fix"]
    assert got["gpu_fix"].startswith(fix)


def test_an_error_of_a_newer_nvml_keeps_its_number() -> None:
    assert "77" in explained(pynvml.NVMLError(77)).got
