"""The run."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.artifacts.plan import Backend
from harness.flow.training import carry_out, look_back, prepare, refuse_several, stopped_at_once
from harness.received.consent import hear
from harness.show.progress import Progress
from harness.verbs.answers import print_file
from harness.verbs.options import (
    AllowOption,
    DeviceOption,
    FetchOption,
    JsonOption,
    OfflineOption,
    RecipeOption,
    RunOption,
    SetOption,
)

ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on from the last whole checkpoint (of --run, --name, or the recipe's latest run).",
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the run below $HARNESS_RUNS (default ./runs).")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", help="Train up to this step instead of the recipe's.")
]
BackendOption = Annotated[
    Backend | None,
    typer.Option(
        "--backend",
        help=(
            "ours; or openpi: upstream's own trainer, in the checkout $HARNESS_OPENPI. Default:"
            " $HARNESS_BACKEND, else ours."
        ),
    ),
]
AnyCommitOption = Annotated[
    bool,
    typer.Option(
        "--any-commit", help="Let openpi train at another commit than the one that is known here; recorded."
    ),
]
PatientOption = Annotated[
    bool,
    typer.Option("--patient", help="Go on even when steps take ten times longer than the plan expects."),
]


def train(
    recipe: RecipeOption = None,
    resume: ResumeOption = False,
    name: NameOption = None,
    steps: StepsOption = None,
    device: DeviceOption = None,
    allow: AllowOption = None,
    backend: BackendOption = None,
    any_commit: AnyCommitOption = False,
    patient: PatientOption = False,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train: probe, plan, data, stats, doctor, then the run itself, then inspect, analyse and report.

    Ctrl-C or SIGTERM saves and ends it.
    """
    from harness.artifacts import Manifest
    from harness.flow.chain import Chain
    from harness.flow.find import find_run, recipe_of, refuse_started, trainer_of
    from harness.run.lock import locked

    console = Progress()
    refuse_several()
    hear(fetch=fetch, offline=offline)
    directory = find_run(run, name, recipe, resume=resume)
    directory.check_own()
    trainer, overrides = trainer_of(directory, backend).told(sets or [], any_commit=any_commit)
    last = [] if steps is None else [f"train.steps={steps}"]
    own = recipe_of(directory, recipe, [*overrides, *last], own_first=resume)
    trainer.check(own)
    with stopped_at_once(), locked(directory.path) as lock:
        if not resume:
            refuse_started(directory)
        chain = Chain(directory, own, trains=True, trainer=trainer)
        console.say(f"run {directory.path}: recipe {chain.recipe.name}, {chain.recipe.train.steps} steps")
        job, machine = prepare(chain, console, device, allow or [])
        if carry_out(job, machine, trainer, console, lock, patient=patient):
            look_back(job, trainer, console)
    if as_json:
        print_file(directory, Manifest)
