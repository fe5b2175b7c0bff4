"""Lists this machine's devices as CUDA offers them: whole GPUs and MIG instances, with memory and figures."""

from __future__ import annotations

from typing import NamedTuple

from harness.artifacts import Gpu, Machine, MigDevice
from harness.errors import HarnessError
from harness.plan import cards
from harness.plan.cards import Card
from harness.run.cuda import computes_bfloat16

# A card of the same model takes part if its memory, in total and free, is at least this share of the other's.
_ALIKE = 0.9


class Device(NamedTuple):
    """One device as CUDA offers it: a whole GPU or a MIG instance.

    A process can use only one MIG instance.
    """

    gpu: Gpu
    name: str
    uuid: str | None
    free: int | None
    total: int | None
    mig: bool = False

    @property
    def size(self) -> int:
        """The total in bytes; what is free if only that is known."""
        return self.total or self.free or 0


def alike(devices: list[Device]) -> list[Device]:
    """The freest of the devices, and behind it those of its model that are about as large and as free.

    Boards of one name and two memories exist: a larger one that is busy has another share left. A MIG
    instance stands alone.
    """
    best = max(devices, key=lambda each: each.free or 0)
    others = [
        each
        for each in devices
        if each is not best
        and each.name == best.name
        and (each.free or 0) >= _ALIKE * (best.free or 0)
        and min(each.size, best.size) >= _ALIKE * max(each.size, best.size)
        and not (each.mig or best.mig)
    ]
    return [best, *others]


def free_of_each(devices: list[Device], context_bytes: int) -> int:
    """Bytes that are free on each device, for a plan whose every device is as large as the smallest.

    JAX takes one share of each device's own total: what each of them has free beside the context.
    """
    least = min(each.size for each in devices)
    return min(
        context_bytes + ((each.free or 0) - context_bytes) * least // each.size if each.size else 0
        for each in devices
    )


def devices_of(gpu: Gpu, machine: Machine) -> list[Device]:
    """The devices of one GPU: the GPU itself, or its visible MIG instances."""
    name = gpu.name or f"GPU {gpu.index}"
    if gpu.mig_mode and gpu.mig_devices:
        return [
            Device(gpu, mig.name or name, mig.uuid, mig.free_bytes, _offered(mig), mig=True)
            for mig in gpu.mig_devices
            if mig.visible
        ]
    if gpu.integrated:
        # Its memory is the host's. NVML reports nothing about it, or only what the GPU has taken so far.
        return [Device(gpu, name, gpu.uuid, machine.host.ram_available_bytes, machine.host.ram_total_bytes)]
    return [Device(gpu, name, gpu.uuid, gpu.free_bytes, _offered(gpu))]


def offered(machine: Machine) -> tuple[list[Device], list[str]]:
    """The devices that a plan may choose among, and a note on each that is left out.

    A device without bfloat16 is left out. If all are without, all are offered: the plan says why it refuses.
    """
    every = [device for gpu in machine.usable_gpus for device in devices_of(gpu, machine)]
    found = [device for device in every if computes_bfloat16(device.gpu.compute_capability) is not False]
    notes = [
        f"{device.name} (GPU {device.gpu.index}) is left out: it has no bfloat16 arithmetic"
        for device in every
        if device not in found
    ]
    return (found, notes) if found else (every, [])


def figures(device: Device, total: int) -> tuple[Card, bool]:
    """(figures for a card of this machine, with its own memory; whether they are the card's own).

    Raises: HarnessError "gpu-unknown", "gpu-too-old".
    """
    if not device.mig:
        try:
            key = cards.sized(device.name, device.gpu.total_bytes or total)
            return cards.card(key)._replace(cuda_bytes=total), True
        except HarnessError as error:
            # What a name suggests of a card's age or maker is nothing against what NVML tells.
            if error.code != "gpu-unknown" and not computes_bfloat16(device.gpu.compute_capability):
                raise
    if device.gpu.compute_capability is None:
        raise HarnessError(
            "gpu-unknown",
            f"{device.name} is not in the table of cards, and NVML does not tell its compute capability",
            got=device.gpu.unknown.get("compute_capability"),
            need="the card's architecture",
            fix="harness plan --gpu rtx_4090, or the name of the card of the table that is most like it",
        )
    major, _, minor = device.gpu.compute_capability.partition(".")
    return cards.CARDS[cards.like((int(major), int(minor or 0)), total)]._replace(cuda_bytes=total), False


def _offered(card: Gpu | MigDevice) -> int | None:
    """The total that CUDA reports to a program: NVML's total without what the driver keeps."""
    return None if card.total_bytes is None else card.total_bytes - (card.reserved_bytes or 0)
