"""The manifest of a run that openpi's own trainer carries out."""

from __future__ import annotations

import datetime
from typing import Any

from harness.artifacts import Dataset, Machine, Manifest, NormStats, Plan, Upstream
from harness.artifacts.training import Distance, used
from harness.openpi.job import sizes_of
from harness.openpi.table import COMMIT
from harness.recipe.differences import differences_from_published
from harness.recipe.parameters import counts
from harness.recipe.schema import Recipe
from harness.run.directory import RunDir, sha256_json
from harness.run.surroundings import environment, machine_facts, software_here

_NOT_OURS = "openpi compiles its step itself"


def describe_run(
    run: RunDir,
    recipe: Recipe,
    plan: Plan,
    data: tuple[Dataset, NormStats],
    told: dict[str, Any],
    weights: dict[str, Any],
) -> Manifest:
    """The manifest of a run that is about to start. `told` is the first line of `openpi_entry`."""
    dataset, stats = data
    total, trained = counts(recipe.model, recipe.train.trained)
    assert plan.chosen is not None
    software = software_here()
    return Manifest(
        run=run.path.absolute().name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256(),
        plan=plan.chosen,
        dataset_sha256=dataset.sha256,
        dataset_revision=dataset.revision,
        norm_stats_sha256=sha256_json(stats.norm_stats),
        parameters_total=total,
        parameters_trained=trained,
        weights=weights,
        source_revision=software.source_revision,
        source_sha256=software.source_sha256,
        source_dirty=software.source_dirty,
        lock_sha256=told["lock_sha256"],
        image=software.image,
        image_id=software.image_id,
        image_digest=software.image_digest,
        base_digest=software.base_digest,
        image_content=software.image_content,
        image_parts=software.image_parts,
        image_environment=software.image_environment,
        packages=told["packages"] | {"harness": software.packages["harness"]},
        python=told["python"],
        environment=environment(),
        machine=machine_facts(run.read(Machine)),
        device=told["device"],
        step_fingerprint=None,
        compiled_bytes={},
        published=[Distance(**difference._asdict()) for difference in differences_from_published(recipe)],
        upstream=Upstream(
            commit=told["commit"], pinned=COMMIT, unlike_lock=told["unlike_lock"], notes=_notes(recipe, told)
        ),
        datasets=used(dataset),
        norm_stats_given=stats.given,
        unknown=software.unknown
        | dict.fromkeys(
            ("step_fingerprint", "executable_fingerprint", "kernels_sha256", "compiled_bytes"), _NOT_OURS
        )
        | {"packages_sha256": "openpi's environment is told by its packages and its lock"},
    )


def resumed(manifest: Manifest, step: int, batch: int) -> tuple[Manifest, str]:
    """(the manifest with a note, the note) of a run that resumes from `step`."""
    assert manifest.upstream is not None
    note = (
        f"resumed at step {step}: openpi's loader begins anew, so the batches of the steps from 0 on ({batch}"
        " frames each, in the order of the same seed) are seen again, and the result is not that of an"
        " uninterrupted run"
    )
    upstream = manifest.upstream.model_copy(update={"notes": [*manifest.upstream.notes, note]})
    return manifest.model_copy(update={"upstream": upstream}), note


def _notes(recipe: Recipe, told: dict[str, Any]) -> list[str]:
    notes = []
    if not told["commit"].startswith(COMMIT) or told["commit"].endswith("+modified"):
        notes.append(f"openpi is at {told['commit']} instead of {COMMIT}, which was allowed (--any-commit)")
    sizes = sizes_of(recipe.model)
    if sizes:
        notes.append(
            "openpi's model was given other sizes in memory:"
            f" {', '.join(f'{name} {value}' for name, value in sizes.items())}"
        )
    return notes
