"""What the compiler says a plan needs: the real step, compiled in a process of its own, the answer kept.

The child is `python -m harness.plan.compile`: a request as JSON on stdin, the answer as JSON on stdout. The parent never
imports JAX, so it holds no GPU memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.artifacts import Levers
from harness.errors import HarnessError
from harness.recipe import Recipe
from harness.rundir import cache_root, sha256_json, write_atomic
from harness.strict import Strict

_TIMEOUT_S = 900
# The rooms whose code is part of the step: when a line of them changes, kept answers are void.
_STEP_ROOMS = ("model", "train")
_STEP_MODULES = ("parameters.py", "recipe.py")
# Without the first, XLA times kernels on a GPU that is not here; without the second, targets fail at tiling.
# Source: facts on compiling for an absent GPU, measured with jax 0.10.2.
_ABSENT_GPU_OPTIONS = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": "False"}


class Request(Strict):
    """`target` is a GpuTargetConfigProto in text form for a card that is not here, or None for the device of `levers.platform` here."""

    recipe: Recipe
    levers: Levers
    target: str | None = None


class Answer(Strict):
    bytes: dict[str, int]
    flops: float | None
    fingerprint: str


def compiled(request: Request) -> Answer:
    """XLA's answer to `request`, from the cache when nothing that changes it has changed.

    Raises: HarnessError "compile-failed", "compile-timeout".
    """
    kept = cache_root() / "plans" / f"{_key(request)}.json"
    if kept.is_file():
        try:
            return Answer.model_validate_json(kept.read_text())
        except ValueError:
            kept.unlink(missing_ok=True)
    answer = _in_child(request)
    with contextlib.suppress(HarnessError):  # a cache that cannot be written costs time, not the answer
        write_atomic(kept, answer.model_dump_json() + "\n")
    return answer


def _key(request: Request) -> str:
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return sha256_json({"request": request.model_dump(mode="json"), "versions": versions, "source": source_hash(), "flags": os.environ.get("XLA_FLAGS")})


def source_hash() -> str:
    """Hash of the code that makes the step."""
    package = Path(__file__).parent.parent
    files = [package / name for name in _STEP_MODULES] + [file for room in _STEP_ROOMS for file in sorted((package / room).glob("*.py"))]
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def _in_child(request: Request) -> Answer:
    # The compiler for an absent GPU runs on the CPU; a child on a real GPU must not take the memory that the trainer will need.
    environment = os.environ | {"JAX_PLATFORMS": "cpu" if request.target else request.levers.platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "harness.plan.compile"]
    try:
        child = subprocess.run(command, input=request.model_dump_json(), env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise HarnessError(
            "compile-timeout", f"compiling the step took more than {_TIMEOUT_S} s", need="an idle machine", fix="try again when fewer programs run"
        ) from error
    if child.returncode != 0:
        last = [line for line in child.stderr.strip().splitlines() if line.strip()][-1:] or ["no message"]
        raise HarnessError(
            "compile-failed",
            "XLA did not compile the training step",
            got=f"exit code {child.returncode}: {last[0][:300]}",
            fix="check model and train of the recipe; on a GPU, that `harness probe` shows it and the driver is new enough",
        )
    return Answer.model_validate_json(child.stdout.strip().splitlines()[-1])


def _main() -> None:
    request = Request.model_validate_json(sys.stdin.read())
    from harness.train import device

    device.start()
    from harness.train.compiled import compile_step

    extra: dict[str, Any] = {}
    if request.target:
        from jax.experimental import topologies
        from jax.sharding import NamedSharding, PartitionSpec

        topology = topologies.get_topology_desc(platform="cuda", target_config=request.target, topology="1x1x1")
        mesh = topologies.make_mesh(topology, (1,), ("fsdp",))
        extra = {"sharding": NamedSharding(mesh, PartitionSpec()), "options": _ABSENT_GPU_OPTIONS, "platform": "cuda"}
    step = compile_step(request.recipe, request.levers, **extra)
    print(json.dumps({"bytes": step.bytes, "flops": step.flops, "fingerprint": step.fingerprint}))


if __name__ == "__main__":
    _main()
