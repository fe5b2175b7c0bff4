"""What a run is, collected before its first step: recipe, plan, data, weights, software, device, compiled program."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from typing import Any

import jax

from harness.artifacts import Manifest
from harness.parameters import counts
from harness.rundir import sha256_json
from harness.train.compiled import CompiledStep
from harness.train.job import Job

# What can change a number of a run. The image holds more; the lock's hash stands for all of it.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "pyarrow", "pillow", "av", "sentencepiece", "wandb", "harness")


def describe_run(job: Job, compiled: CompiledStep, weights: dict[str, Any]) -> Manifest:
    """The manifest of a run that is about to start. Values of the environment are taken by name, so no secret comes along."""
    total, trained = counts(job.recipe.model, job.recipe.train.trained)
    assert job.plan.chosen is not None
    return Manifest(
        run=job.run.path.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        recipe=job.recipe.model_dump(mode="json"),
        recipe_sha256=job.recipe.sha256(),
        plan=job.plan.chosen,
        dataset_sha256=job.dataset.sha256,
        dataset_revision=job.dataset.revision,
        norm_stats_sha256=sha256_json(job.stats.norm_stats),
        parameters_total=total,
        parameters_trained=trained,
        weights=weights,
        source_revision=os.environ.get("HARNESS_REVISION"),
        lock_sha256=os.environ.get("HARNESS_LOCK_SHA256"),
        image=os.environ.get("HARNESS_IMAGE"),
        packages={name: _version(name) for name in _PACKAGES},
        python=platform.python_version(),
        xla_flags=os.environ.get("XLA_FLAGS", ""),
        device=jax.devices()[0].device_kind,
        step_fingerprint=compiled.fingerprint,
        compiled_bytes=compiled.bytes,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
