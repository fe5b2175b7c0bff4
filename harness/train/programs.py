"""The step as it is compiled for the devices of this machine: by a plan, and then by the trainer.

Both ask XLA with the same options, so that the second finds the first one's program in JAX's cache. On a GPU
one option is the file to which XLA writes the kernels that it has chosen. It lies in the cache, under a name
that only this program has on this kind of card.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from harness.artifacts import Levers
from harness.run.directory import cache_root, sha256_json
from harness.train.compiled import CompiledStep, device_bytes, lower_step
from harness.train.kernels import written_to
from harness.train.setup import Setup


class LoweredStep(NamedTuple):
    """A step as XLA receives it, and the sha256 of it."""

    setup: Setup
    lowered: Any
    program_sha256: str

    @property
    def choice(self) -> Path:
        """The file in the cache for the kernels that XLA chooses for this program."""
        device = self.setup.layout.mesh.devices.flat[0]
        name = {
            "program": self.program_sha256,
            "device": [device.device_kind, device.client.platform_version],
            "versions": {name: metadata.version(name) for name in ("jax", "jaxlib")},
            "flags": os.environ.get("XLA_FLAGS"),
        }
        return cache_root() / "kernels" / f"{sha256_json(name)}.pbtxt"

    def compile(self, options: dict[str, str]) -> CompiledStep:
        """The step, compiled with these options of XLA; see `compile_step`."""
        compiled = self.lowered.compile(compiler_options=options or None)
        sizes = device_bytes(compiled.memory_analysis())
        return CompiledStep(compiled, sizes, self.program_sha256, self.setup)


def lowered_step(setup: Setup, levers: Levers) -> LoweredStep:
    """The lowered step of `setup` for the devices of its layout."""
    return LoweredStep(setup, *lower_step(setup, levers))


def step_here(setup: Setup, levers: Levers) -> CompiledStep:
    """The compiled step for devices of this machine, as the trainer will ask for it."""
    step = lowered_step(setup, levers)
    return step.compile(written_to(step.choice) if levers.platform == "cuda" else {})
