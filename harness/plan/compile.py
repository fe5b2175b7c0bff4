"""Asks the compiler what a plan needs, and caches the answer; the real step is compiled in a child process.

The child is `python -m harness.plan.compile`: a request as JSON on stdin, the answer as JSON on stdout. The
parent never imports JAX, so it holds no GPU memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from harness.artifacts import Levers
from harness.errors import HarnessError
from harness.plan.source import source_hash
from harness.recipe.schema import Recipe
from harness.run.cuda import cuda_plugins
from harness.run.directory import cache_root, sha256_json, write_atomic
from harness.run.ending import end_quickly
from harness.run.surroundings import jax_variables
from harness.run.xla_flags import refused_flags
from harness.strict import Strict

_TIMEOUT_S = 900
# Without the first option, XLA times kernels on a GPU that is not here. Without the second, targets fail at
# tiling.
# Source: facts on compiling for an absent GPU, measured with jax 0.10.2.
ABSENT_GPU_OPTIONS = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": "False"}


class Request(Strict):
    """A question to the compiler.

    `target` is a GpuTargetConfigProto in text form for a card that is not here. None means the device of
    `levers.platform` on this machine. `phase` is the step, or another phase of a run
    (`harness.train.phases`). `only_lower` asks only for the hash of the lowered program of a step for a
    `target`, without bytes.
    """

    recipe: Recipe
    levers: Levers
    target: str | None = None
    phase: Literal["step", "init", "load", "save"] = "step"
    only_lower: bool = False


class Answer(Strict):
    """The compiler's answer. `bytes` are those of one device.

    `host_bytes` and `disk_bytes` are the machine's; they are known for phases other than the step.
    """

    bytes: dict[str, int]
    program_sha256: str = ""
    host_bytes: int | None = None
    disk_bytes: int | None = None


def compiled(request: Request, *, uuids: tuple[str, ...] = ()) -> Answer:
    """XLA's answer to `request`, from the cache if nothing that affects it has changed.

    `uuids` are the cards of this machine that it is for.

    Raises: HarnessError "compile-failed", "compile-timeout", "no-target-compiler", "xla-flags-refused".
    """
    known = answered(request)
    if known is not None:
        return known
    answer = _in_child(request, uuids)
    with contextlib.suppress(HarnessError):  # a cache that cannot be written costs time, not the answer
        write_atomic(_kept(request), answer.model_dump_json() + "\n")
    return answer


def answered(request: Request) -> Answer | None:
    """The cached answer to `request`, or None."""
    # One that cannot be read, for another user wrote it, costs time, and not the answer.
    with contextlib.suppress(OSError):
        try:
            return Answer.model_validate_json(_kept(request).read_text())
        except ValueError:
            _kept(request).unlink()
    return None


def _kept(request: Request) -> Path:
    return cache_root() / "plans" / f"{_key(request)}.json"


def _key(request: Request) -> str:
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return sha256_json(
        {
            "request": request.model_dump(mode="json"),
            "versions": versions,
            "source": source_hash(),
            "flags": _variables(request).get("XLA_FLAGS"),
        }
    )


def _variables(request: Request) -> Mapping[str, str]:
    """The variables of the child that answers `request`.

    For a device of this machine they are the trainer's, which then finds the step in JAX's cache. A step for
    several devices of a CPU is not kept there: several processes train it, and read no compiled program.
    """
    levers = request.levers
    if request.target is not None or (levers.platform == "cpu" and levers.devices > 1):
        return os.environ
    return os.environ | jax_variables(levers.platform)


def _in_child(request: Request, uuids: tuple[str, ...] = ()) -> Answer:
    cuda = request.levers.platform == "cuda"
    said = in_child(
        "harness.plan.compile",
        request.model_dump_json(),
        # The compiler for an absent GPU runs on the CPU.
        platform="cpu" if request.target else request.levers.platform,
        cuda=cuda,
        what="the training step",
        uuids=uuids,
        cpu_devices=1 if cuda else request.levers.devices,
        variables=_variables(request),
    )
    return Answer.model_validate_json(said)


def in_child(
    module: str,
    body: str,
    *,
    platform: str,
    cuda: bool,
    what: str,
    uuids: tuple[str, ...] = (),
    cpu_devices: int = 1,
    variables: Mapping[str, str] | None = None,
) -> str:
    """The last line that `module` prints as a process of its own, `body` being its stdin.

    JAX starts there on `platform`. `cuda` says that it compiles for NVIDIA cards; `what` names what is
    compiled, for messages. `cpu_devices`: of how many processes' devices the CPU stands in. `variables`: its
    environment, if it is not this process's.
    Raises: HarnessError "compile-failed", "compile-timeout", "no-target-compiler", "xla-flags-refused".
    """
    if cuda and not cuda_plugins():
        # For Arm it comes with CUDA 13 alone.
        version = 13 if os.uname().machine == "aarch64" else 12
        raise HarnessError(
            "no-target-compiler",
            "the compiler for NVIDIA GPUs is not installed here, and the atlas does not know this plan",
            got="no CUDA plugin of JAX",
            need="a CUDA plugin of JAX, of the version of jax",
            fix=(
                f"pip install jax-cuda{version}-plugin=={metadata.version('jax')}"
                f" jax-cuda{version}-pjrt=={metadata.version('jax')}; the images and ci/local have them"
            ),
        )
    # A child on a real GPU must not take the memory that the trainer will need.
    environment = {**(variables or os.environ), "JAX_PLATFORMS": platform, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment |= {"CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}
    if cpu_devices > 1:
        # The last of two equal flags counts.
        environment["XLA_FLAGS"] = (
            f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={cpu_devices}".strip()
        )
    command = [sys.executable, "-m", module]
    # Both sides speak UTF-8, whatever the locale is: a recipe's description may hold any character.
    pipes: dict[str, Any] = {
        "input": body,
        "capture_output": True,
        "encoding": "utf-8",
        "errors": "replace",
    }
    try:
        child = subprocess.run(command, env=environment, timeout=_TIMEOUT_S, check=False, **pipes)
    except subprocess.TimeoutExpired as error:
        raise HarnessError(
            "compile-timeout",
            f"compiling {what} took more than {_TIMEOUT_S} s",
            need="an idle machine",
            fix="try again when fewer programs run",
        ) from error
    if child.returncode != 0:
        raise _failure(child.returncode, child.stderr, environment, what)
    return child.stdout.strip().splitlines()[-1]


# Lines that a dying process prints after its reason, and lines that its libraries print before it.
_NO_REASON = re.compile(
    r"\s|\*\*\*|Fatal Python error: Aborted|Current thread|Thread 0x|Extension modules:|WARNING: All"
    r" log|[IW]\d{4} |usage: |$"
)
_REASON = re.compile(r"(?<![\w.])[\w.]++(?:(?<=Error)|(?<=Exception))\b|F\d{4} |error \[", re.IGNORECASE)
_MEMORY = ("out of memory", "oom", "resource_exhausted")


def telling(stderr: str) -> str | None:
    """The line of `stderr` that says why a process ended, or None."""
    lines = [line for line in stderr.splitlines() if not _NO_REASON.match(line)]
    reasons = [line for line in lines if _REASON.match(line) or tells_of_memory(line)] or lines
    return reasons[-1].strip()[:300] if reasons else None


def tells_of_memory(line: str) -> bool:
    """Whether a line of a process's last words says that memory was short."""
    return any(word in line.lower() for word in _MEMORY)


def _failure(code: int, stderr: str, environment: Mapping[str, str], what: str) -> HarnessError:
    """The error that says why the child gave no answer."""
    refused = refused_flags(environment)
    if refused is not None:
        return HarnessError(
            "xla-flags-refused",
            "XLA does not start with the flags of this environment",
            got=refused.got,
            need="flags that this XLA has",
            fix=refused.fix,
        )
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    fix = (
        "check model and train of the recipe; on a GPU, that `harness probe` shows it and the driver is new"
        " enough"
    )
    if code == -signal.SIGKILL:
        fix = (
            "give the container or the machine more memory (the kernel ends what takes too much: dmesg |"
            " tail), then try again"
        )
    elif resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        # It stops a process in many ways: a library is not loaded, a thread not started, memory not had.
        fix = f"ulimit -v unlimited, since this shell limits the address space of a process; else {fix}"
    why = (
        telling(stderr)
        or "it wrote no reason; `python -c 'import jax; jax.devices()'` shows whether JAX starts at all"
    )
    return HarnessError("compile-failed", f"XLA did not compile {what}", got=f"{ended}: {why}", fix=fix)


def _main() -> None:
    request = Request.model_validate_json(sys.stdin.buffer.read())
    from harness.train import device

    device.start()
    from harness.train.compiled import compile_step, lower_step
    from harness.train.phases import compile_phase
    from harness.train.programs import step_here
    from harness.train.setup import setup_of
    from harness.train.sharding import local_layout

    levers = request.levers
    layout = _absent(request.target, levers) if request.target else local_layout(levers)
    setup = setup_of(request.recipe, layout)
    options, platform = (ABSENT_GPU_OPTIONS, "cuda") if request.target else (None, None)
    if request.only_lower:
        _, program_sha256 = lower_step(setup, levers, platform)
        answer = Answer(bytes={}, program_sha256=program_sha256)
    elif request.phase == "step":
        step = (
            compile_step(setup, levers, options=options, platform=platform)
            if options
            else step_here(setup, levers)
        )
        answer = Answer(bytes=step.bytes, program_sha256=step.program_sha256)
    else:
        phase = compile_phase(setup, request.phase, options=options, platform=platform)
        answer = Answer(bytes=phase.bytes, host_bytes=phase.host_bytes, disk_bytes=phase.disk_bytes)
    print(answer.model_dump_json(ensure_ascii=True))


def _absent(target: str, levers: Levers) -> Any:
    """The layout over cards that are not on this machine."""
    from jax.experimental import topologies

    from harness.train.sharding import Layout

    # Partitions x hosts x devices of a host, which stand together, as harness/train/devices.py lays them out.
    shape = f"1x{levers.hosts}x{levers.devices // levers.hosts}"
    topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape)
    return Layout(topology.devices, levers.fsdp, levers.host)


if __name__ == "__main__":
    end_quickly()
    _main()
