"""The reason why a trainer ended unasked: evidence, message, and whether another attempt makes sense."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import NamedTuple

from harness.artifacts import Machine, Plan
from harness.errors import HarnessError
from harness.run.peers import peer_lost
from harness.supervise.process import Attempt
from harness.units import format_seconds

# What JAX says before it ends a process because another one of its run is gone.
_PEERS_ERROR = "JAX distributed service detected fatal errors"
# XLA's word for CUDA graphs. Source: its message, in the plugin of jaxlib 0.10.2.
_GRAPHS = "instantiate command buffer"
# (phase, name of the signal, what was seen) → the cause, where a trainer knows more than that it crashed.
Crashed = Callable[[str, str, str], HarnessError | None]


class Ending(NamedTuple):
    """The error of an ended attempt.

    `again`: another attempt from the last whole checkpoint may get further. `smaller`: it may do so only with
    a plan that needs less device memory.
    """

    error: HarnessError
    again: bool = False
    smaller: bool = False


def explain(
    result: Attempt, plan: Plan, machine: Machine, crashed: Crashed = lambda *_: None
) -> Ending | None:
    """The ending of an attempt. None if the attempt ended as it should or as it was asked to.

    `machine` was probed after the end. `crashed` is the trainer's own explanation of a crash.
    """
    if result.stopped_for is not None:
        return _stopped(result, plan, machine)
    if result.error is not None:
        return Ending(result.error)
    if result.exhausted is not None:
        return _device_memory(result)
    if result.end is not None and result.returncode == 0:
        return None
    return _gone(result, plan, machine, crashed)


def _device_memory(result: Attempt) -> Ending:
    if _GRAPHS in (result.exhausted or ""):
        # The driver takes them beside JAX's pool, so a plan that needs less of the pool is no help.
        error = HarnessError(
            "device-out-of-memory",
            f"the driver had no memory left for CUDA graphs during {result.phase}",
            got=result.exhausted,
            need="kernels that are started one by one, or more of the card beside JAX's pool",
            fix="export XLA_FLAGS=--xla_gpu_enable_command_buffer= and go on with --resume",
        )
        return Ending(error)
    error = HarnessError(
        "device-out-of-memory",
        f"the device ran out of memory during {result.phase}, which the plan should have prevented",
        got=result.exhausted,
        need="a plan that needs less of the device, with the same mathematics",
        fix="harness probe shows who else holds the GPU's memory; harness plan shows smaller plans",
    )
    return Ending(error, again=True, smaller=True)


def _gone(result: Attempt, plan: Plan, machine: Machine, crashed: Crashed) -> Ending:
    """The ending of a process that reported none.

    The cause is our own request, the GPU, a signal, or an unforeseen error.
    """
    if result.asked_to_stop and result.returncode in (-signal.SIGKILL, -signal.SIGTERM):
        stop = (
            "it was ended by a second signal before it had saved"
            if result.asked_to_stop > 1
            else "it was killed while it stopped, before it had saved"
        )
        return Ending(
            HarnessError(
                "stopped",
                stop,
                got=f"phase {result.phase}",
                fix="go on from the last whole checkpoint: --resume",
            )
        )
    lost = _lost_gpu(plan, machine)
    if lost is not None:
        return _gpu_lost(result, lost)
    return _died(result, crashed)


def _gpu_lost(result: Attempt, lost: str) -> Ending:
    fix = "nvidia-smi; reset or reboot the machine, then go on with --resume"
    return Ending(
        HarnessError(
            "gpu-lost",
            f"the GPU was lost during {result.phase}",
            got=lost,
            need="a GPU that NVML answers for",
            fix=fix,
        )
    )


def _died(result: Attempt, crashed: Crashed) -> Ending:
    """The ending of a process that ended by a signal or by an unforeseen error."""
    words = [line for line in result.last_words if line.strip()]
    got = (
        f"during {result.phase}; its last words: {words[-1][:300]}"
        if words
        else f"during {result.phase}, without a word"
    )
    number = -result.returncode
    if result.host_memory is not None or result.oom_killed:
        # The kernel may have killed a child of the trainer (a loader's process); the trainer then failed too.
        what = (
            "the kernel killed the trainer for lack of host memory"
            if number == signal.SIGKILL
            else "the trainer ended for lack of host memory"
        )
        fix = (
            "give the container or the machine more memory (harness doctor says how much a save needs), then"
            " go on with --resume"
        )
        return Ending(HarnessError("host-out-of-memory", what, got=got, fix=fix), again=False)
    if number == signal.SIGKILL:
        fix = (
            "somebody sent SIGKILL (docker kill, a batch system, the kernel of the host: dmesg | grep -i"
            " oom); go on with --resume"
        )
        return Ending(
            HarnessError(
                "killed", "the trainer was killed by a signal that cannot be caught", got=got, fix=fix
            ),
            again=True,
        )
    if number == signal.SIGBUS:
        fix = "docker run --shm-size=8g (compose.yaml has it), or unset HARNESS_LOADER_WORKERS; then --resume"
        return Ending(
            HarnessError(
                "bus-error",
                "the trainer touched memory that is not there: /dev/shm or a disk is full",
                got=got,
                fix=fix,
            )
        )
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        return _crashed(signal.Signals(number).name, result, got, crashed)
    if number > 0:
        name = signal.Signals(number).name
        return Ending(
            HarnessError("killed", f"the trainer was ended by {name}", got=got, fix="go on with --resume"),
            again=False,
        )
    fix = "the lines above are what it wrote; go on with --resume once the cause is mended"
    return Ending(
        HarnessError(
            "trainer-failed", f"the trainer failed with exit code {result.returncode}", got=got, fix=fix
        )
    )


def _peer_lost(result: Attempt) -> HarnessError | None:
    """The error of a trainer that JAX has ended because of another process of the run. None for others.

    JAX lists the processes without a heartbeat, one a line. Without process 0 its service is gone.
    """
    text = "\n".join(result.last_words)
    if _PEERS_ERROR not in text:
        return None
    listed = re.search(r"stopped sending heartbeats\):\n((?:\d+\n)+)", f"{text}\n")
    lost = [int(line) for line in listed[1].split()] if listed else [0] if "leader" in text else []
    return peer_lost(
        lost, result.hosts, f"during {result.phase}; JAX's coordination service ended the trainer"
    )


def _crashed(name: str, result: Attempt, got: str, crashed: Crashed) -> Ending:
    error = _peer_lost(result) or crashed(result.phase, name, got)
    if error is not None:
        return Ending(error)
    fix = (
        "go on with --resume; if it happens again, look at the driver's version (harness doctor) and at"
        " dmesg for Xid errors"
    )
    return Ending(HarnessError("crashed", f"the trainer crashed ({name})", got=got, fix=fix), again=True)


def _stopped(result: Attempt, plan: Plan, machine: Machine) -> Ending:
    lost = _lost_gpu(plan, machine)
    if result.stopped_for == "hung" and lost is not None:
        return _gpu_lost(result, lost)
    if result.stopped_for == "hung":
        error = HarnessError(
            "hung",
            f"the trainer said nothing for too long during {result.phase} and was stopped",
            got=f"no step and no message for {format_seconds(result.silent_s)}",
            need="a step or a message from time to time",
            fix="nvidia-smi and dmesg tell of a hung driver or disk; go on with --resume",
        )
        return Ending(error, again=True)
    expected = plan.chosen.seconds_per_step if plan.chosen else None
    recent = sorted(line.step_s for line in result.steps[-5:])
    error = HarnessError(
        "ten-times-slower",
        "every step takes more than ten times what the plan expects, so it was stopped and saved",
        got=f"{format_seconds(recent[len(recent) // 2])} a step; likely cause: {_why_slow(result, machine)}",
        need=f"about {format_seconds(expected)} a step",
        fix="remove the cause and go on with --resume; to train at this pace all the same: --patient",
    )
    return Ending(error)


def _why_slow(result: Attempt, machine: Machine) -> str:
    """The likeliest cause of a tenfold step time, judged by what the harness can see."""
    recent = result.steps[-5:]
    waiting = sum(line.data_s or 0.0 for line in recent) / max(sum(line.step_s for line in recent), 1e-9)
    if waiting > 0.5:
        return (
            f"the loader: {waiting:.0%} of the time is spent waiting for data (HARNESS_LOADER_WORKERS, a"
            " faster disk)"
        )
    if machine.host.wsl:
        return (
            "GPU memory spilled into system memory (on Windows: CUDA - Sysmem Fallback Policy: Prefer No"
            " Sysmem Fallback)"
        )
    others = [process for gpu in machine.gpus if gpu.visible for process in gpu.foreign_processes or []]
    if others:
        return f"another process computes on the GPU (process {others[0].pid} {others[0].name or ''})"
    return "not visible from here: nvidia-smi -q -d PERFORMANCE tells of heat and power limits"


def _lost_gpu(plan: Plan, machine: Machine) -> str | None:
    """NVML's message about the plan's GPU if that GPU is lost. None if it is well or the plan uses none."""
    if plan.device_uuid is None:
        return None
    found = next((gpu for gpu in machine.gpus if gpu.uuid == plan.device_uuid), None)
    if found is None:
        return machine.gpu_error or "NVML does not list it any more"
    return found.error
