"""Tests what the doctor says of cards: which CUDA offers, which the plan takes, whose memory is short."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Machine, MigDevice
from harness.doctor import examine, gpu
from harness.units import GIB
from tests.support.situations import CARD, FITS, HOST, QUIET, found, plan, situation


@pytest.mark.parametrize(
    ("instances", "cards", "warns"), [(3, 1, False), (1, 2, False), (0, 2, True), (0, 1, False)]
)
def test_jax_is_expected_to_see_what_cuda_offers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instances: int, cards: int, warns: bool
) -> None:
    """Of MIG instances that is one, however many the card has, and no whole card beside it."""
    migs = [MigDevice(uuid=f"MIG-{number}") for number in range(instances)]
    split = CARD.model_copy(update={"mig_mode": bool(migs), "mig_devices": migs})
    several = [split, *[CARD.model_copy(update={"index": 1, "uuid": "GPU-2"})] * (cards - 1)]
    answer = subprocess.CompletedProcess([], 0, stdout='[["a card", "gpu"]]\n', stderr="")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: answer)
    machine = Machine(gpus=several, driver_version="570.1", host=HOST)
    case = situation(tmp_path, machine=machine)
    assert [finding.severity for finding in gpu.visible(case)] == ["warning"] * warns


def test_host_memory_is_blamed_where_the_card_has_room(tmp_path: Path) -> None:
    """No plan fits: the check whose memory is short says so, and the other one names it."""
    refused = FITS.model_copy(update={"verdict": "rejected", "host_bytes": 90 * GIB})
    larger = refused.model_copy(update={"device_bytes": 60 * GIB, "host_bytes": 9 * GIB})
    changes = {"candidates": [larger, refused], "host_usable_bytes": 59 * GIB}
    case = situation(tmp_path, plan=plan(None).model_copy(update=changes))
    findings = examine.examine(case, checks=QUIET).findings
    told = {finding.check: finding for finding in findings}
    assert told["host memory"].severity == "error"
    assert "at least 90.0 GiB" in told["host memory"].need
    assert told["device memory"].severity == "unknown"
    assert "host memory" in told["device memory"].fix
    full = plan(None).model_copy(update=changes | {"candidates": [larger]})
    findings = examine.examine(case._replace(plan=full), checks=QUIET).findings
    told = {finding.check: finding for finding in findings}
    assert (told["device memory"].severity, told["host memory"].severity) == ("error", "unknown")
    assert "the smallest plan needs 60.0 GiB" in told["device memory"].got


def test_a_card_without_bfloat16_that_the_plan_leaves_out_stops_nothing(tmp_path: Path) -> None:
    old = CARD.model_copy(update={"index": 1, "uuid": "GPU-2", "compute_capability": "7.5"})
    machine = Machine(gpus=[CARD, old], driver_version="570.1", host=HOST)
    case = situation(tmp_path, machine=machine)
    assert "compute capability" in found(case)
    taken = plan(FITS).model_copy(update={"device_uuids": ["GPU-1"]})
    assert "compute capability" not in found(case._replace(plan=taken))


def test_jax_is_shown_the_usable_cards_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts on all that it is shown, and a card that refuses it would hide the others."""
    shown: list[str | None] = []

    def run(*_: object, **options: Any) -> subprocess.CompletedProcess[str]:
        shown.append(options["env"].get("CUDA_VISIBLE_DEVICES"))
        return subprocess.CompletedProcess([], 0, stdout='[["a card", "gpu"]]\n', stderr="")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    barred = CARD.model_copy(update={"index": 1, "uuid": "GPU-2", "error": "PROHIBITED", "fix": "open it"})
    for gpus in ([CARD], [CARD, barred]):
        case = situation(tmp_path, machine=Machine(gpus=gpus, driver_version="570.1", host=HOST))
        assert not [one for one in gpu.visible(case) if one.got.startswith(("JAX", "1 devices"))]
    assert shown == [None, "GPU-1"]


def test_a_card_that_another_process_has_for_itself_is_no_broken_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "RuntimeError: CUDA_ERROR_DEVICE_UNAVAILABLE: CUDA-capable device(s) is/are busy or unavailable"
    done = subprocess.CompletedProcess([], 1, "", f"{said}\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: done)
    [finding] = gpu.visible(situation(tmp_path))
    assert "nvidia-smi -c 0" in finding.fix
