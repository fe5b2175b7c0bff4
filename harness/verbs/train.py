"""The run."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from harness.artifacts.plan import Backend
from harness.flow.training import carry_out, look_back, stopped_at_once
from harness.received.consent import hear
from harness.show.progress import Progress
from harness.verbs.answers import print_file, with_dataset
from harness.verbs.options import (
    AllowOption,
    DatasetOption,
    DeviceOption,
    FetchOption,
    JsonOption,
    LastStepOption,
    NameOption,
    NetOption,
    OfflineOption,
    PatientOption,
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
ProfileOption = Annotated[
    int,
    typer.Option(
        "--profile",
        metavar="STEPS",
        min=0,
        max=100,
        help="Trace so many steps from the third on; harness profile then says where their time went.",
    ),
]


def train(
    recipe: RecipeOption = None,
    dataset: DatasetOption = None,
    resume: ResumeOption = False,
    name: NameOption = None,
    steps: LastStepOption = None,
    device: DeviceOption = None,
    allow: AllowOption = None,
    backend: BackendOption = None,
    any_commit: AnyCommitOption = False,
    patient: PatientOption = False,
    profile: ProfileOption = 0,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    net: NetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train: probe, plan, data, stats, doctor, then the run itself, then inspect, analyse and report.

    Ctrl-C or SIGTERM saves and ends it.
    """
    from harness.artifacts import Manifest
    from harness.data.pace import workers_from_environment
    from harness.doctor.examine import check_allowed
    from harness.flow.begin import Asked, get_ready
    from harness.plan.cluster import rate as network_rate
    from harness.run.cuda import check_device

    # What is wrong whatever the plan says is refused before there is a run.
    check_allowed(allow or [])
    check_device(device)
    workers_from_environment()
    console = Progress()
    hear(fetch=fetch, offline=offline)
    asked = Asked(
        recipe,
        resume,
        name,
        steps,
        device,
        allow or [],
        backend,
        any_commit,
        with_dataset(sets, dataset),
        run,
        None if net is None else network_rate(net),
        profile,
    )
    with stopped_at_once(), ExitStack() as held:
        ready = get_ready(asked, console, held)
        job, machine, trainer, lock, number, processes = ready
        left = carry_out(job, machine, trainer, console, lock, patient=patient, alone=processes == 1)
        # What comes after the training, the first process does alone.
        if left and number == 0:
            look_back(job, trainer, console)
    if as_json and number == 0:
        print_file(job.run, Manifest)
