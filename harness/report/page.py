"""The report of a run: one HTML page that needs no network.

It reads the run's files and names those that are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from harness.artifacts import (
    Checkpoint,
    Choice,
    Curve,
    Dataset,
    Diagnosis,
    Machine,
    Manifest,
    Memory,
    NormStats,
    Plan,
    Prediction,
    Status,
    Verdict,
)
from harness.errors import HarnessError
from harness.recipe.differences import PUBLISHED, Difference, differences, differences_from_published
from harness.recipe.schema import Recipe
from harness.report import curves, drawings, evaluation, held_out, sections, verdicts
from harness.report.template import template
from harness.run.directory import CAMERA_VIEWS, RunDir
from harness.run.status import Read, read_or_tell, read_status, why
from harness.run.tail import Tail
from harness.units import format_bytes, format_count

# Each run has its own colour in report.css.
MOST_RUNS = 8
# With so many points, all curves together stay under half of the page's 2 MB.
POINTS_OF_ALL = 6000


class _Run(NamedTuple):
    """The content of one run's files. `problems` names those that could not be read."""

    directory: RunDir
    manifest: Manifest | None
    plan: Plan | None
    recipe: Recipe | None
    training: curves.Curves | None
    status: Status | None
    problems: list[str]

    @property
    def name(self) -> str:
        return self.directory.path.absolute().name

    @property
    def rows(self) -> list[Any]:
        return self.training.rows if self.training else []


def render(run: RunDir, others: list[RunDir] | None = None) -> str:
    """The report of `run` as HTML, with the curves of `others` laid over its own.

    Scripts, styles, data and pictures are inline; the page is under 2 MB. If a file is missing or damaged,
    the page names it where its content would stand.

    Raises: HarnessError "run-missing" when a directory is not there or holds no file of a run;
    "too-many-runs".
    """
    if len(others or []) >= MOST_RUNS:
        raise HarnessError(
            "too-many-runs",
            "so many curves cannot be told apart",
            got=1 + len(others or []),
            need=f"at most {MOST_RUNS}",
            fix="give fewer runs",
        )
    this, beside = _read_run(run), [_read_run(other) for other in others or []]
    problems = [
        *this.problems,
        *(f"{other.name}: {problem}" for other in beside for problem in other.problems),
    ]
    kinds = (Machine, Dataset, NormStats, Checkpoint, Prediction, Memory, Curve, Diagnosis, Verdict, Choice)
    found: dict[str, Any] = {kind.__name__: read_or_tell(run, kind, problems) for kind in kinds}
    points = max(curves.MAX_POINTS // 10, min(curves.MAX_POINTS, POINTS_OF_ALL // (1 + len(beside))))
    evaluated = evaluation.section(run, others[0] if others else None, problems)
    page = template("report.html.j2", count=format_count, number=_number, plain=_plain, **held_out.FILTERS)
    return page.render(
        name=this.name,
        machine=found["Machine"],
        dataset=found["Dataset"],
        stats=found["NormStats"],
        memory=found["Memory"],
        verdict=found["Verdict"],
        signed=_signed(run, found["Verdict"]),
        curve=found["Curve"],
        claims=_claims(this, found),
        views=_picture(run.path / CAMERA_VIEWS, sections.MAX_IMAGE_BYTES, problems),
        views_file=CAMERA_VIEWS,
        commands=sections.commands(
            run.path, this.manifest, this.recipe, [other.directory.path for other in beside]
        ),
        problems=problems,
        evaluated=evaluated,
        marks=_marks(found["Curve"]),
        **_recipe_and_plan(this),
        **_drawn(found["Checkpoint"], found["Prediction"]),
        **_held_out(found["Choice"]),
        **_training(this, points),
        **_beside(this, beside, points),
    )


def _read_run(run: RunDir) -> _Run:
    problems: list[str] = []
    kinds = (Machine, Plan, Dataset, NormStats, Manifest, Checkpoint, Prediction, Curve)
    try:
        training = curves.read_curves(run.metrics) if run.path.is_dir() else None
    except (OSError, HarnessError) as error:
        training = None
        problems.append(f"{run.metrics.name} cannot be read: {why(error)}")
    if training is None and not any((run.path / kind.FILE).exists() for kind in kinds) and not problems:
        raise HarnessError(
            "run-missing",
            f"{run.path} holds no file of a run",
            need="a run directory, such as runs/smoke-001",
            fix=(
                "harness train --recipe smoke, then harness report runs/NAME with the directory that it names"
            ),
        )
    manifest, plan = read_or_tell(run, Manifest, problems), read_or_tell(run, Plan, problems)
    recipe = sections.recipe_of(manifest)
    if manifest and not recipe:
        problems.append(
            "the manifest's recipe is of another version of the harness: who is trained and the differences"
            " are not shown"
        )
    try:
        status = read_status(run, read=Read(manifest, plan, _tail(training)))
    except HarnessError:
        status = None
    return _Run(run, manifest, plan, recipe, training, status, problems)


def _tail(training: curves.Curves | None) -> Tail | None:
    """The end of the curves. None if there are none, or if more lines were in the file than were read."""
    if training is None or training.cut:
        return None
    return Tail(training.rows, True, training.unreadable_lines)


def _claims(this: _Run, found: dict[str, Any]) -> list[verdicts.Claim]:
    claims = [
        verdicts.of_run(this.status),
        verdicts.of_curve(found["Curve"]),
        verdicts.of_losses(this.rows),
        verdicts.of_trained(this.manifest, found["Checkpoint"]),
        verdicts.of_checkpoint(found["Checkpoint"]),
        verdicts.of_memory(found["Memory"]),
        verdicts.of_doctor(found["Diagnosis"]),
        verdicts.of_verdict(found["Verdict"], this.directory.manifest_sha256()),
    ]
    return [claim for claim in claims if claim]


def _signed(run: RunDir, verdict: Verdict | None) -> str:
    """The verdict's own time and device, and whether it is about this manifest."""
    return (
        f"{verdicts.signature(verdict)}; {verdicts.binding(verdict, run.manifest_sha256())}"
        if verdict
        else ""
    )


def _run_beside(run: _Run) -> sections.Beside:
    return sections.Beside(
        run.name,
        run.status.state if run.status else "unknown",
        run.rows[-1].step + 1 if run.rows else 0,
        run.rows[-1].loss if run.rows else None,
        curves.median_of(run.rows, "step_s"),
        run.manifest.parameters_trained if run.manifest else None,
        run.manifest.device if run.manifest else None,
        run.manifest.plan.deviations if run.manifest else [],
    )


def _between(one: Recipe | None, other: Recipe | None) -> list[Difference] | None:
    return differences(one, other) if one and other else None


def _marks(curve: Curve | None) -> list[dict[str, Any]]:
    """Steps that the analysis points at, to be drawn in the curves."""
    if curve is None:
        return []
    found = [
        {"step": seam.step, "kind": seam.kind, "text": f"{seam.kind}, {seam.replayed} steps replayed"}
        for seam in curve.seams
    ]
    found += [
        {"step": spike.first_step, "kind": "spike", "text": f"spike to {spike.top:.3g}"}
        for spike in curve.spikes
    ]
    found += [
        {"step": jump.step, "kind": "jump", "text": f"level from {jump.before:.3g} to {jump.after:.3g}"}
        for jump in curve.jumps
    ]
    return found[:100]


def _picture(path: Path, limit_bytes: int, problems: list[str]) -> str | None:
    try:
        return sections.picture(path, limit_bytes)
    except HarnessError as error:
        problems.append(error.what)
        return None


def _recipe_and_plan(run: _Run) -> dict[str, Any]:
    manifest, plan, recipe = run.manifest, run.plan, run.recipe
    chosen = manifest.plan if manifest else plan.chosen if plan else None
    compiled = manifest.compiled_bytes if manifest else {}
    return {
        "manifest": manifest,
        "plan": plan,
        "chosen": chosen,
        "shares": sections.memory_shares(chosen.breakdown) if chosen else [],
        "compiled": ", ".join(f"{part} {format_bytes(n)}" for part, n in compiled.items()),
        "recipe": recipe,
        "groups": sections.parameter_shares(recipe) if recipe else [],
        "differences": differences_from_published(recipe) if recipe else [],
        "published": PUBLISHED,
    }


def _drawn(checkpoint: Checkpoint | None, prediction: Prediction | None) -> dict[str, Any]:
    """A checkpoint and its prediction, with their drawings."""
    return {
        "checkpoint": checkpoint,
        "moved": drawings.moved_rows(checkpoint.moved) if checkpoint and checkpoint.moved else None,
        "shades": drawings.SHADES,
        "prediction": prediction,
        "panels": drawings.prediction_panels(prediction) if prediction else [],
        "panel": (drawings.WIDTH, drawings.HEIGHT),
    }


def _held_out(choice: Choice | None) -> dict[str, Any]:
    """The choice among the saves, with its curves."""
    return {
        "choice": choice,
        "held_out_charts": held_out.charts(choice) if choice else [],
        "held_out_dimensions": held_out.dimension_charts(choice) if choice else [],
        "held_out_size": (held_out.WIDTH, held_out.HEIGHT),
    }


def _beside(run: _Run, others: list[_Run], points: int) -> dict[str, Any]:
    """The other runs, whose curves are laid over those of `run`."""
    return {
        "runs": [_run_beside(each) for each in (run, *others)] if others else [],
        "recipe_differences": [(other.name, _between(run.recipe, other.recipe)) for other in others],
        "others": [{"name": other.name, "series": curves.series(other.rows, points)} for other in others],
    }


def _training(run: _Run, points: int) -> dict[str, Any]:
    rows = run.rows
    data = curves.series(rows, points)
    return {
        "training": run.training,
        "rows": rows,
        "data": data,
        "smoothing": _smoothing(len(data["loss"][0])),
        "titles": curves.SERIES,
        "tenths": curves.loss_tenths(rows),
        "of_datasets": {one.name: one for one in curves.dataset_losses(rows)},
        "non_finite": curves.non_finite_losses(rows),
        "median_step_s": curves.median_of(rows, "step_s"),
        "median_data_s": curves.median_of(rows, "data_s"),
    }


def _smoothing(points: int) -> float:
    """The slider's first position: 0 for a few points, higher for more points."""
    return 0.0 if points < 30 else min(0.96, round((1 - 20 / points) / 0.02) * 0.02)


def _number(value: float | None) -> str:
    """The value with four digits, or "unknown"."""
    return "unknown" if value is None else f"{value:.4g}"


def _plain(value: object) -> str:
    """A value of a recipe as a person would write it there."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return (
        f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
