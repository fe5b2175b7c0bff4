"""The device that a verb computes on, with JAX started there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.predict.predict import Device


def started(device: str | None, say: Callable[[Device], None], *, with_host: bool = False) -> Device:
    """The device of `harness.predict.predict.device_for`, told to `say` before JAX starts there.

    `with_host` starts JAX on the host's processor as well.
    Raises: HarnessError "device-unknown", "no-gpu".
    """
    import os

    from harness.flow.device import start_on
    from harness.predict.predict import device_for
    from harness.probe.machine import probe
    from harness.run.directory import cache_root

    machine = probe([cache_root()])
    on = device_for(machine, device)
    say(on)
    start_on(machine, on.platform, on.uuid, on.usable_bytes)
    if with_host and on.platform != "cpu":
        os.environ["JAX_PLATFORMS"] = f"{on.platform},cpu"
    from harness.train import device as jax_device

    jax_device.start()
    return on
