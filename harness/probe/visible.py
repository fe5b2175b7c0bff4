"""Marks the GPUs that CUDA_VISIBLE_DEVICES leaves visible.

The variable names GPUs by index, by uuid or its beginning, or by MIG id.
"""

from __future__ import annotations

from harness.artifacts import Gpu


def mark_visible(gpus: list[Gpu], setting: str | None) -> list[Gpu]:
    """The same GPUs with `visible` set, also on their MIG instances.

    None shows all. Otherwise CUDA reads the list up to the first entry that names no device, so "" and "-1"
    hide all devices.
    Source: CUDA programming guide, "CUDA environment variables".
    """
    if setting is None:
        return gpus
    whole: set[int] = set()
    instances: set[tuple[int, int]] = set()
    for entry in setting.split(","):
        found = _named(gpus, entry.strip())
        if found is None:
            break
        gpu, mig = found
        if mig is None:
            whole.add(gpu)
        else:
            instances.add((gpu, mig))
    return [_marked(gpu, index, whole, instances) for index, gpu in enumerate(gpus)]


def _marked(gpu: Gpu, index: int, whole: set[int], instances: set[tuple[int, int]]) -> Gpu:
    migs = [
        mig.model_copy(update={"visible": index in whole or (index, slot) in instances})
        for slot, mig in enumerate(gpu.mig_devices)
    ]
    return gpu.model_copy(
        update={"visible": index in whole or any(mig.visible for mig in migs), "mig_devices": migs}
    )


def _named(gpus: list[Gpu], entry: str) -> tuple[int, int | None] | None:
    """Position of the GPU, and of its MIG instance or None.

    The result is None if the entry names no device, or more than one.
    """
    if entry.isdigit():
        return next(((position, None) for position, gpu in enumerate(gpus) if gpu.index == int(entry)), None)
    if not entry.upper().startswith(("GPU-", "MIG-")):
        return None
    matches: list[tuple[int, int | None]] = [
        (position, None) for position, gpu in enumerate(gpus) if _begins(gpu.uuid, entry)
    ]
    matches += [
        (position, slot)
        for position, gpu in enumerate(gpus)
        for slot, mig in enumerate(gpu.mig_devices)
        if _begins(mig.uuid, entry)
    ]
    return matches[0] if len(matches) == 1 else None


def _begins(uuid: str | None, entry: str) -> bool:
    return uuid is not None and uuid.lower().startswith(entry.lower())


def index_order_is_uncertain(gpus: list[Gpu], setting: str | None, order: str | None) -> str | None:
    """The reason why an index in CUDA_VISIBLE_DEVICES may mean another card than in NVML; None if it cannot.

    Unless CUDA_DEVICE_ORDER=PCI_BUS_ID, CUDA counts the fastest card first, while NVML counts by PCI bus.
    """
    by_index = setting is not None and any(entry.strip().isdigit() for entry in setting.split(","))
    if not by_index or order == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) < 2:
        return None
    return (
        "CUDA_VISIBLE_DEVICES is by index and the cards differ: CUDA counts the fastest first, here they are"
        " counted by PCI bus; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the card by its uuid"
    )
