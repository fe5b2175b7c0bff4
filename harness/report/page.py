"""The report of a run: one HTML page that needs no network. It reads the run's files, and says what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import jinja2

from harness.artifacts import Artifact, Checkpoint, Dataset, Machine, Manifest, NormStats, Plan, Prediction
from harness.errors import HarnessError
from harness.report import curves, sections
from harness.rundir import CAMERA_VIEWS, PREDICTED_ACTIONS, RunDir
from harness.units import format_bytes, format_count, format_seconds

A = TypeVar("A", bound=Artifact)


def render(run: RunDir) -> str:
    """The report of `run` as HTML: scripts, styles, data and pictures inline, under 2 MB.

    A file that is missing or damaged is named on the page in the place of what it would have shown.
    Raises: HarnessError "run-missing" when the directory is not there or holds no file of a run.
    """
    problems: list[str] = []
    found = {kind.FILE: _read(run, kind, problems) for kind in (Machine, Plan, Dataset, NormStats, Manifest, Checkpoint, Prediction)}
    training = curves.read_curves(run.metrics) if run.path.is_dir() else None
    if training is None and not any(found.values()) and not problems:
        raise HarnessError(
            "run-missing",
            f"{run.path} holds no file of a run",
            need="a run directory, such as runs/smoke-001",
            fix="harness train --recipe smoke, then harness report --run on the directory that it names",
        )
    manifest = found[Manifest.FILE]
    assert manifest is None or isinstance(manifest, Manifest)
    recipe = sections.recipe_of(manifest)
    if manifest and not recipe:
        problems.append("the manifest's recipe is of another version of the harness: who is trained and the differences are not shown")
    plan = found[Plan.FILE]
    assert plan is None or isinstance(plan, Plan)
    chosen = manifest.plan if manifest else plan.chosen if plan else None
    return _template().render(
        name=run.path.absolute().name,
        manifest=manifest,
        machine=found[Machine.FILE],
        plan=plan,
        chosen=chosen,
        dataset=found[Dataset.FILE],
        stats=found[NormStats.FILE],
        checkpoint=found[Checkpoint.FILE],
        recipe=recipe,
        groups=sections.parameter_shares(recipe) if recipe else [],
        compiled=", ".join(f"{part} {format_bytes(n)}" for part, n in manifest.compiled_bytes.items()) if manifest else "",
        memory=sections.memory_shares(chosen.breakdown) if chosen else [],
        differences=sections.differences_from_published(recipe) if recipe else [],
        published=sections.PUBLISHED,
        views=_picture(run.path / CAMERA_VIEWS, sections.MAX_IMAGE_BYTES, problems),
        prediction=found[Prediction.FILE],
        predicted=_picture(run.path / PREDICTED_ACTIONS, sections.MAX_PLOT_BYTES, problems),
        views_file=CAMERA_VIEWS,
        commands=sections.commands(run.path, manifest),
        problems=problems,
        **_training(training),
    )


def _read(run: RunDir, kind: type[A], problems: list[str]) -> A | None:
    try:
        return run.read(kind)
    except (HarnessError, OSError) as error:
        problems.append(f"{kind.FILE} cannot be used: {error.what if isinstance(error, HarnessError) else error}")
        return None


def _picture(path: Path, limit_bytes: int, problems: list[str]) -> str | None:
    try:
        return sections.picture(path, limit_bytes)
    except HarnessError as error:
        problems.append(error.what)
        return None


def _training(training: curves.Curves | None) -> dict[str, Any]:
    rows = training.rows if training else []
    return {
        "training": training,
        "rows": rows,
        "data": curves.series(rows),
        "titles": curves.SERIES,
        "tenths": curves.loss_tenths(rows),
        "non_finite": curves.non_finite_losses(rows),
        "median_step_s": curves.median_of(rows, "step_s"),
        "median_data_s": curves.median_of(rows, "data_s"),
    }


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"bytes": format_bytes, "count": format_count, "seconds": format_seconds, "number": _number}
    return environment.get_template("report.html.j2")


def _number(value: float | None) -> str:
    """Four digits, as a person reads them."""
    return "unknown" if value is None else f"{value:.4g}"
