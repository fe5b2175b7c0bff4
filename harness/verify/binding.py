"""A verdict's binding: the hash of the manifest it is about, and who gave it, when, and on which machine."""

from __future__ import annotations

import datetime

from harness.artifacts import Machine, Verdict, Verifier
from harness.run.directory import RunDir
from harness.run.surroundings import machine_facts, version_of

# The machine facts that a verdict states. The host's name is not among them.
_TOLD = ("driver", "cuda", "gpus", "processor", "kernel", "container")


def bound(verdict: Verdict, run: RunDir, machine: Machine, source_sha256: str | None) -> Verdict:
    """`verdict` with its verifier (this harness, its source, time, machine) and the manifest's hash."""
    facts = machine_facts(machine)
    by = Verifier(
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        harness=version_of("harness"),
        source_sha256=source_sha256,
        device=verdict.replay.device if verdict.replay is not None and verdict.replay.steps else None,
        machine={name: facts.get(name) for name in _TOLD},
    )
    return verdict.model_copy(update={"by": by, "manifest_sha256": run.manifest_sha256()})
