"""Describes a run before its first step: recipe, plan, data, weights, software, device, compiled program."""

from __future__ import annotations

import datetime
from typing import Any

import jax

from harness.artifacts import Hosts, Machine, Manifest
from harness.artifacts.training import Distance, used
from harness.recipe.differences import differences_from_published
from harness.recipe.parameters import counts
from harness.run.directory import sha256_json
from harness.run.job import Job
from harness.run.surroundings import environment, machine_facts, software_here
from harness.train.compiled import CompiledStep
from harness.train.executable import executable_sha256
from harness.train.kernels import Kernels


def describe_run(job: Job, compiled: CompiledStep, weights: dict[str, Any], kernels: Kernels) -> Manifest:
    """The manifest of a run that is about to start.

    Environment variables are read by name from a fixed list, so no secret is recorded.
    """
    total, trained = counts(job.recipe.model, job.recipe.train.trained)
    assert job.plan.chosen is not None
    software = software_here()
    unknown = dict(software.unknown)
    if kernels.sha256 is None:
        unknown["kernels_sha256"] = kernels.note
    return Manifest(
        run=job.run.path.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        recipe=job.recipe.model_dump(mode="json"),
        recipe_sha256=job.recipe.sha256(),
        plan=job.plan.chosen,
        dataset_sha256=job.dataset.sha256,
        dataset_revision=job.dataset.revision,
        norm_stats_sha256=sha256_json(job.stats.norm_stats),
        held_out=job.dataset.held_out or None,
        parameters_total=total,
        parameters_trained=trained,
        weights=weights,
        source_revision=software.source_revision,
        source_sha256=software.source_sha256,
        source_dirty=software.source_dirty,
        lock_sha256=software.lock_sha256,
        image=software.image,
        image_id=software.image_id,
        image_digest=software.image_digest,
        base_digest=software.base_digest,
        image_content=software.image_content,
        image_parts=software.image_parts,
        image_environment=software.image_environment,
        packages=software.packages,
        packages_sha256=software.packages_sha256,
        python=software.python,
        environment=environment(),
        machine=machine_facts(job.run.read(Machine)),
        device=jax.devices()[0].device_kind,
        step_fingerprint=compiled.program_sha256,
        executable_fingerprint=executable_sha256(compiled.run.as_text()),
        kernels_sha256=kernels.sha256,
        compiled_bytes=compiled.bytes,
        published=[Distance(**difference._asdict()) for difference in differences_from_published(job.recipe)],
        datasets=used(job.dataset),
        norm_stats_given=job.stats.given,
        hosts=_hosts(job),
        unknown=unknown,
    )


def _hosts(job: Job) -> dict[str, dict[str, Any]]:
    """The facts of each process's machine, by its number. Empty for a run of one process."""
    found = job.run.read(Hosts) if job.levers.hosts > 1 else None
    return {} if found is None else {str(host.process): machine_facts(host.machine) for host in found.hosts}
