"""The state of a run and of this machine, read for comparison with the run's manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from harness.artifacts import Artifact, Dataset, Machine, Manifest, NormStats, Plan
from harness.errors import HarnessError
from harness.image.here import examined
from harness.recipe.load import load_recipe, recipe_from
from harness.run.directory import RECIPE, RunDir, sha256_json
from harness.run.surroundings import (
    Software,
    deterministic,
    environment,
    image_here,
    machine_facts,
    software_here,
)
from harness.verify.fields import Found

A = TypeVar("A", bound=Artifact)
_ALONE = {"hosts": "steps are computed again by one process, on this machine alone"}


def found_here(
    run: RunDir,
    manifest: Manifest,
    known: tuple[Dataset, NormStats] | None,
    remade: Manifest | None,
    machine: Machine,
    why: Mapping[str, str],
    *,
    dataset_sha256: str | None,
    weights: Mapping[str, str] | None,
) -> Found:
    """The present state of `run` and this machine.

    `known` are data and statistics, if the data can be read as a dataset; its bytes may be hashed all the
    same. `remade` is the manifest of the recomputed steps. `why` gives, by field, the reason why a field
    cannot be told.
    """
    recipe, why_not_recipe = _recipe(run)
    levers, why_not_plan = _levers(run)
    on_cuda = manifest.plan.levers.platform == "cuda"
    here = environment(os.environ | {"XLA_FLAGS": deterministic()} if on_cuda else os.environ)
    return Found(
        recipe=recipe,
        recipe_sha256=None if recipe is None else recipe_from(dict(recipe), where="recipe").sha256(),
        dataset_sha256=dataset_sha256,
        norm_stats_sha256=sha256_json(known[1].norm_stats) if known else None,
        weights=weights,
        dataset_revision=known[0].revision if known else None,
        leaves=remade.weights.get("leaves") if remade is not None else None,
        files=files_of(run),
        plan=levers,
        **_software(manifest, remade),
        upstream=remade.upstream.commit if remade and remade.upstream else None,
        environment=here if remade is None else _environment(manifest, remade, here),
        machine=machine_facts(machine),
        device=remade.device if remade is not None else None,
        kernels_sha256=remade.kernels_sha256 if remade is not None else None,
        step_fingerprint=remade.step_fingerprint if remade is not None else None,
        executable_fingerprint=remade.executable_fingerprint if remade is not None else None,
        why=dict(why) | _why_not(manifest, remade) | why_not_recipe | why_not_plan | _ALONE,
    )


def _levers(run: RunDir) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """(the levers of the run's own plan, {}), or (None, why they cannot be read)."""
    try:
        plan = run.read(Plan)
    except HarnessError as error:
        return None, {"plan": error.what}
    if plan is None or plan.chosen is None:
        return None, {"plan": f"there is no {Plan.FILE}" if plan is None else f"{Plan.FILE} chose no plan"}
    return plan.chosen.levers.model_dump(mode="json"), {}


def _recipe(run: RunDir) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """(the run's own recipe, {}), or (None, why it cannot be read)."""
    try:
        return load_recipe(str(run.path / RECIPE), root=run.path).model_dump(mode="json"), {}
    except HarnessError as error:
        return None, {"recipe": error.what}


def _environment(manifest: Manifest, remade: Manifest, here: dict[str, str]) -> dict[str, str]:
    """The variables of the recomputed steps. The flag by which one process computes as several did on CPUs
    (`harness.verify.again`) is no setting of this machine.
    """
    levers = manifest.plan.levers
    if levers.platform != "cpu" or levers.hosts == 1:
        return remade.environment
    flags = {name: value for name, value in here.items() if name == "XLA_FLAGS"}
    return {name: value for name, value in remade.environment.items() if name != "XLA_FLAGS"} | flags


def _software(manifest: Manifest, remade: Manifest | None) -> dict[str, Any]:
    """The fields of `Found` that identify the software."""
    software, notes = _read_here()
    # openpi's packages are those of its own environment. Only openpi itself can report them.
    theirs = remade if manifest.upstream is not None else software
    return {
        "packages": theirs.packages if theirs is not None else None,
        "packages_sha256": theirs.packages_sha256 if theirs is not None else None,
        "python": theirs.python if theirs is not None else None,
        "lock_sha256": theirs.lock_sha256 if theirs is not None else None,
        "source_sha256": software.source_sha256,
        "source_revision": software.source_revision,
        "base_digest": software.base_digest,
        "image_digest": software.image_digest,
        "image_id": software.image_id,
        "image": software.image,
        "image_content": software.image_content,
        "image_parts": software.image_parts,
        "image_environment": software.image_environment,
        "image_notes": notes,
    }


def _read_here() -> tuple[Software, dict[str, str]]:
    """(the software of this process with its image read to the last byte; what is not as the list says)."""
    if image_here() is None:
        return software_here(), {}
    here, notes = examined()
    return software_here(here), notes


def _why_not(manifest: Manifest, remade: Manifest | None) -> dict[str, str]:
    """Field → the reason why it cannot be told, for fields that only a computation tells."""
    if remade is not None:
        begun = "it began at a checkpoint, whose arrays were compared with their own digests"
        return {} if "leaves" in remade.weights else {"leaves": begun}
    computed = ("device", "kernels", "leaves", "step_fingerprint", "executable_fingerprint")
    theirs = ("packages", "python", "lock", "upstream") if manifest.upstream is not None else ()
    return dict.fromkeys(theirs, "openpi was not started here") | dict.fromkeys(
        computed, "nothing was computed again"
    )


def files_of(run: RunDir) -> dict[str, str]:
    """File → hash of its content, computed as the manifest did.

    A missing or damaged file has a text instead, which differs from any hash.
    """

    def read(kind: type[A], sha256: Callable[[A], str]) -> str:
        try:
            artifact = run.read(kind)
        except HarnessError as error:
            return error.what
        return "missing" if artifact is None else sha256(artifact)

    return {
        Dataset.FILE: read(Dataset, lambda each: each.sha256),
        NormStats.FILE: read(NormStats, lambda each: sha256_json(each.norm_stats)),
    }
