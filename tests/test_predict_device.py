"""Tests which device predict and serve take, and what JAX is told of it."""

from __future__ import annotations

import os

import pytest

from harness.artifacts import Gpu, Host, Machine, MigDevice
from harness.flow import device as flow_device
from harness.predict.predict import device_for


def test_a_card_without_bfloat16_is_taken_only_where_there_is_no_other() -> None:
    old, new = (
        Gpu(index=i, name=f"card {i}", uuid=f"GPU-{i}", free_bytes=2**35 >> i, compute_capability=capability)
        for i, capability in enumerate(("7.5", "8.6"))
    )
    host = Host(ram_available_bytes=2**33)
    assert device_for(Machine(gpus=[old, new], host=host), None).uuid == "GPU-1"
    assert device_for(Machine(gpus=[old], host=host), None).uuid == "GPU-0"


def test_of_a_card_in_mig_mode_the_freest_visible_instance_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")
    migs = [
        MigDevice(uuid=f"MIG-{i}", name=f"slice {i}", total_bytes=2**34, free_bytes=2**33 + i, visible=i != 2)
        for i in range(3)
    ]
    card = Gpu(index=0, name="card", uuid="GPU-0", free_bytes=2**36, mig_mode=True, mig_devices=migs)
    split = Machine(gpus=[card], host=Host(ram_available_bytes=2**33))
    on = device_for(split, None)
    assert on[:3] == ("cuda", "slice 1", "MIG-1")
    monkeypatch.setattr(flow_device, "jax_variables", lambda _: {})
    flow_device.start_on(split, on.platform, on.uuid, on.usable_bytes)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-1"
    assert float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]) < 0.5
