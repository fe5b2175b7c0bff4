"""The run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from harness.verbs.answers import inspect_path, print_file
from harness.verbs.doctor import AllowOption, diagnose
from harness.verbs.options import DeviceOption, JsonOption, RecipeOption, RunOption, SetOption
from harness.verbs.progress import Progress

if TYPE_CHECKING:
    from harness.artifacts import Machine
    from harness.chain import Chain
    from harness.train.job import Job


def train(
    recipe: RecipeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint (of --run, --name, or the recipe's latest run).")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run below $HARNESS_RUNS (default ./runs).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Train up to this step instead of the recipe's.")] = None,
    device: DeviceOption = None,
    allow: AllowOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train: probe, plan, data, stats, doctor, then the run itself, then inspect and report. Ctrl-C or SIGTERM saves and ends it."""
    from harness.chain import Chain, find_run, recipe_of, refuse_started
    from harness.runlock import locked

    console = Progress()
    directory = find_run(run, name, recipe, resume=resume)
    overrides = [*(sets or []), *([f"train.steps={steps}"] if steps is not None else [])]
    own = recipe_of(directory, recipe, overrides, own_first=resume)
    with locked(directory.path):
        if not resume:
            refuse_started(directory)
        chain = Chain(directory, own, trains=True)
        console.say(f"run {directory.path}: recipe {chain.recipe.name}, {chain.recipe.train.steps} steps")
        job, machine = _prepare(chain, console, device, allow or [])
        _run(job, machine, console)
        _look_back(job, console)
    if as_json:
        print_file(directory, "manifest.json")


def _prepare(chain: Chain, console: Progress, device: str | None, allow: list[str]) -> tuple[Job, Machine]:
    """Everything that training is made of, each part a file of the run; ends with exit code 1 when it would not go well."""
    from harness.train.job import Job

    machine, dataset = chain.machine(), chain.dataset()
    norm_stats = chain.stats(dataset)
    console.say("planning")
    made = chain.plan(machine, dataset, device=device)
    if made.chosen is None:
        console.warn(f"no plan fits {made.device}: {made.candidates[0].reason}")
        raise typer.Exit(1)
    console.say(f"plan: {made.device}, {made.chosen.reason}; {made.parameters_trained:,} of {made.parameters_total:,} parameters trained")
    diagnosis = diagnose(chain, machine, made, (dataset, norm_stats), allow=allow)
    for finding in diagnosis.findings:
        console.warn(f"{finding.severity}, {finding.check}: {finding.got}; need: {finding.need}; fix: {finding.fix}")
    if diagnosis.errors:
        console.warn("the doctor found errors, so nothing was trained; --allow 'NAME OF THE CHECK' goes on all the same")
        raise typer.Exit(1)
    assert chain.run is not None
    return Job(chain.run, chain.recipe, made, dataset, norm_stats), machine


def _run(job: Job, machine: Machine, console: Progress) -> None:
    """The training itself. JAX is imported here and not before: what it reads at its import is set first."""
    from harness.chain import prepare_jax

    prepare_jax(job.plan, machine)
    from harness.train import device as jax_device

    jax_device.start()
    from harness.train.loop import train as run_training

    with console:
        outcome = run_training(job, console)
    if not outcome.finished:
        console.say(f"stopped and saved at step {outcome.step} of {job.recipe.train.steps}; go on with: harness train --resume --run {job.run.path}")


def _look_back(job: Job, console: Progress) -> None:
    """What the run left behind: its checkpoint inspected, its report written."""
    from harness.chain import write_report

    job.run.write(inspect_path(job.run.path, deep=False))
    console.say(f"report: {write_report(job.run)}")
