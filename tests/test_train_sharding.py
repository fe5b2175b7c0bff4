"""Tests training over several devices: the laws of tests/support/sharded_laws.py, and the choice of cards.

The laws run in one process that has four devices. The choice of cards is that of a real run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.artifacts import Candidate, Levers, Plan
from harness.flow.device import prepare_jax
from tests.support.sharded_laws import LAWS


@pytest.fixture(scope="module")
def verdicts() -> dict[str, str]:
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
        " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
    # A collective of XLA's CPU backend blocks a thread of a pool that has one a core: on two cores four
    # devices would wait for each other.
    environment = os.environ | {"XLA_FLAGS": flags, "NPROC": "32"}
    command = [sys.executable, "-m", "tests.support.sharded_laws"]
    child = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize("law", LAWS)
def test_law(law: str, verdicts: dict[str, str]) -> None:
    assert verdicts[law] == "ok", verdicts[law]


def test_a_plan_over_several_cards_starts_jax_on_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.setenv(name, "")
    levers = Levers(
        platform="cuda", devices=2, fsdp=2, microbatch=1, prompt_tokens=16, cameras=["base_0_rgb"]
    )
    chosen = Candidate(levers=levers, verdict="fits", reason="", source="atlas")
    uuids = ["GPU-b", "GPU-a"]
    plan = Plan(recipe="x", recipe_sha256="", device="x", device_uuid="GPU-b", device_uuids=uuids,
                memory_fraction=0.9, parameters_total=1, parameters_trained=1,
                chosen=chosen, candidates=[chosen])  # fmt: skip
    prepare_jax(plan, SimpleNamespace(gpus=[]))  # type: ignore[arg-type]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
    assert (os.environ["JAX_PLATFORMS"], os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == ("cuda", "0.900")
