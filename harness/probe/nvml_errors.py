"""Table of NVML's errors: the usual cause of each, and its fix. docs/nvml.md is made from it.

Source: names and numbers: nvidia-ml-py (pynvml.py, `NVML_ERROR_*`); causes: NVIDIA, NVML API Reference,
"nvmlReturn_t".
Of 18: nvidia-docker issue 1730, jax discussion 17777. Of 999: NVIDIA Container Toolkit, "Troubleshooting",
section "Containers losing access to GPUs with error: Failed to initialize NVML: Unknown Error".
"""

from __future__ import annotations

from typing import Any, NamedTuple

from harness.run.cuda import oldest_driver


class Words(NamedTuple):
    """One error. `name` is the constant without `NVML_ERROR_`; `cause` is its usual cause; `fix` its fix.

    `elsewhere`: there may be no card in this machine, so a plan for another card is worth offering.
    """

    name: str
    cause: str
    fix: str
    elsewhere: bool = False


_UPDATE = f"install driver {oldest_driver(12)} or newer on the host (not in the container)"
_OURS = "nothing on your side: send the output of harness probe --json to the harness's makers"
_RESET = "nvidia-smi --gpu-reset on the host when nothing runs there, else restart the machine"
_ASK = "nvidia-smi; where that does not answer either, restart the machine"
_AGAIN = (
    "start the container again; so that it does not come back: run it with --device nvidia.com/gpu=all (CDI),"
    ' or set "exec-opts": ["native.cgroupdriver=cgroupfs"] in the host\'s /etc/docker/daemon.json'
)

ERRORS: dict[int, Words] = {
    1: Words(
        "UNINITIALIZED",
        "NVML was asked before it was started",
        _OURS,
    ),
    2: Words(
        "INVALID_ARGUMENT",
        "the driver does not take this question: it is of another version than nvidia-ml-py, or the card is"
        " gone",
        "nvidia-smi -L shows the cards that are there",
    ),
    3: Words(
        "NOT_SUPPORTED",
        "this card or its driver does not tell it: integrated GPUs have no memory of their own, WSL2 hides"
        " processes",
        "nothing: what is not told is left unknown; --vram-gib X says the memory",
    ),
    4: Words(
        "NO_PERMISSION",
        "this user may not talk to the NVIDIA driver",
        "check the permissions of /dev/nvidia*: ls -l /dev/nvidia*; in a container, that it was started with"
        " --gpus all",
    ),
    5: Words(
        "ALREADY_INITIALIZED",
        "NVML was started twice",
        _OURS,
    ),
    6: Words(
        "NOT_FOUND",
        "there is no such device, MIG instance or process any more",
        "nvidia-smi -L shows what is there; correct CUDA_VISIBLE_DEVICES",
    ),
    7: Words(
        "INSUFFICIENT_SIZE",
        "the list grew while it was read",
        "try again",
    ),
    8: Words(
        "INSUFFICIENT_POWER",
        "a power cable of the card is not connected",
        "turn the machine off and connect all power cables of the card",
    ),
    9: Words(
        "DRIVER_NOT_LOADED",
        "the NVIDIA driver is not loaded",
        "install it on the host, or load it: sudo modprobe nvidia; then nvidia-smi there shows the card",
        elsewhere=True,
    ),
    10: Words(
        "TIMEOUT",
        "the driver did not answer in its time: the card hangs, or the machine is overloaded",
        f"try again; then dmesg | grep -i xid, and {_RESET}",
    ),
    11: Words(
        "IRQ_ISSUE",
        "the kernel found a problem with the card's interrupts",
        f"dmesg | grep -i nvrm shows it; {_RESET}",
    ),
    12: Words(
        "LIBRARY_NOT_FOUND",
        "libnvidia-ml.so.1 cannot be loaded: there is no NVIDIA driver, or the container was started without"
        " a GPU",
        "install the NVIDIA driver; docker needs the NVIDIA container toolkit and --gpus all (in compose:"
        " service train, not smoke)",
        elsewhere=True,
    ),
    13: Words(
        "FUNCTION_NOT_FOUND",
        "the NVIDIA driver is too old: its libnvidia-ml lacks a function that is asked",
        _UPDATE,
    ),
    14: Words(
        "CORRUPTED_INFOROM",
        "the card's infoROM is damaged; it may compute all the same",
        "nvidia-smi -q -d PAGE_RETIREMENT shows the card's state; ask the card's vendor",
    ),
    15: Words(
        "GPU_IS_LOST",
        "the card has fallen off the bus: heat, power, or a hardware fault",
        f"dmesg | grep -i xid shows why (Xid 79); {_RESET}",
    ),
    16: Words(
        "RESET_REQUIRED",
        "the card has stopped after an error and needs a reset",
        _RESET,
    ),
    17: Words(
        "OPERATING_SYSTEM",
        "the operating system or its cgroups blocked the request",
        "start the container with --gpus all (or the pod with nvidia.com/gpu: 1), so that it may open"
        " /dev/nvidia*",
    ),
    18: Words(
        "LIB_RM_VERSION_MISMATCH",
        "the NVIDIA driver in the kernel and its libraries have different versions: an update replaced the"
        " libraries only",
        "restart the machine; or without a restart, when nothing uses the card: sudo rmmod nvidia_uvm "
        "nvidia_drm nvidia_modeset nvidia, then sudo modprobe nvidia; then start the container again",
    ),
    19: Words(
        "IN_USE",
        "another program holds the card for itself",
        "nvidia-smi shows who; wait, or stop it",
    ),
    20: Words(
        "MEMORY",
        "the host has no memory left for the question",
        "free -h; close other programs, or give the container more memory",
    ),
    21: Words(
        "NO_DATA",
        "the driver has no figure for this yet",
        "try again in a few seconds",
    ),
    22: Words(
        "VGPU_ECC_NOT_SUPPORTED",
        "a virtual GPU cannot start while the card's ECC is on",
        "on the host of the virtual machine: nvidia-smi -e 0, then restart it",
    ),
    23: Words(
        "INSUFFICIENT_RESOURCES",
        "the driver has run out of resources other than memory",
        "close other programs that use the card (nvidia-smi shows them)",
    ),
    24: Words(
        "FREQ_NOT_SUPPORTED",
        "the card does not have this clock",
        "nvidia-smi --reset-gpu-clocks",
    ),
    25: Words(
        "ARGUMENT_VERSION_MISMATCH",
        "the driver is older than the question, which it knows in another form",
        _UPDATE,
    ),
    26: Words(
        "DEPRECATED",
        "the driver no longer answers this question",
        _OURS,
    ),
    27: Words(
        "NOT_READY",
        "the card is not ready: it starts, or is being reset",
        "try again in a minute",
    ),
    28: Words(
        "GPU_NOT_FOUND",
        "the NVIDIA driver finds no GPU",
        "lspci | grep -i nvidia on the host: a card that is not there is not plugged in, or is given to a"
        " virtual machine",
        elsewhere=True,
    ),
    29: Words(
        "INVALID_STATE",
        "the card is in a state in which this cannot be asked, such as while MIG is changed",
        "try again when the change has ended; nvidia-smi -L shows the instances",
    ),
    30: Words(
        "RESET_TYPE_NOT_SUPPORTED",
        "the card cannot be reset in this way",
        "restart the machine",
    ),
    999: Words(
        "UNKNOWN",
        "the container has lost its card: the host reloaded its services (systemctl daemon-reload, an "
        "update) or its driver, and the container's cgroup may not open it any more; outside of a "
        "container the driver is in disorder",
        f"{_AGAIN}; outside of a container: {_RESET}",
    ),
}


class Refusal(NamedTuple):
    """An error with its usual cause, its fix, and whether this machine may have no GPU."""

    got: str
    fix: str
    missing: bool


def explained(error: Any) -> Refusal:
    """The explanation of an NVMLError. It is NVML's own text if the table lacks the error's number."""
    words, text = ERRORS.get(error.value), str(error).rstrip(".")
    if words is None:
        return Refusal(
            f"NVML: {text} (error {error.value})",
            _ASK,
            missing=False,
        )
    return Refusal(f"NVML: {text}: {words.cause}", words.fix, words.elsewhere)


def page() -> str:
    """docs/nvml.md: one line an error."""
    lines = [
        f"| {number} | `{words.name}` | {words.cause} | {words.fix} |" for number, words in ERRORS.items()
    ]
    return "\n".join([_HEAD, *lines, ""])


_HEAD = """\
# What NVML's errors mean

NVML is the NVIDIA driver's library behind `nvidia-smi`.
`harness probe`, `plan` and `doctor` ask it which cards there are.
Each error that it can answer with, its usual cause, and what to do; the harness prints the same words.
`harness/probe/nvml_errors.py` is this table, and a test keeps them equal.

| error | name | usual cause | what to do |
| --- | --- | --- | --- |"""
