"""The run."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from harness.verbs.analyse import analyse_run
from harness.verbs.answers import inspect_path, print_file
from harness.verbs.doctor import AllowOption, diagnose
from harness.verbs.options import DeviceOption, JsonOption, RecipeOption, RunOption, SetOption
from harness.verbs.progress import Progress

if TYPE_CHECKING:
    from harness.artifacts import Machine
    from harness.chain import Chain
    from harness.train.job import Job

# A run of this length can spare the minutes that a prediction takes at its end, and no prediction may take longer.
LONG_RUN_S = 600.0


def train(
    recipe: RecipeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint (of --run, --name, or the recipe's latest run).")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run below $HARNESS_RUNS (default ./runs).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Train up to this step instead of the recipe's.")] = None,
    device: DeviceOption = None,
    allow: AllowOption = None,
    patient: Annotated[bool, typer.Option("--patient", help="Go on even when steps take ten times longer than the plan expects.")] = False,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train: probe, plan, data, stats, doctor, then the run itself, then inspect, analyse and report. Ctrl-C or SIGTERM saves and ends it."""
    from harness.chain import Chain, find_run, recipe_of, refuse_started
    from harness.runlock import locked

    console = Progress()
    directory = find_run(run, name, recipe, resume=resume)
    overrides = [*(sets or []), *([f"train.steps={steps}"] if steps is not None else [])]
    own = recipe_of(directory, recipe, overrides, own_first=resume)
    with locked(directory.path) as lock:
        if not resume:
            refuse_started(directory)
        chain = Chain(directory, own, trains=True)
        console.say(f"run {directory.path}: recipe {chain.recipe.name}, {chain.recipe.train.steps} steps")
        job, machine = _prepare(chain, console, device, allow or [])
        _run(job, machine, console, lock, patient=patient)
        _look_back(job, console)
    if as_json:
        print_file(directory, "manifest.json")


def _prepare(chain: Chain, console: Progress, device: str | None, allow: list[str]) -> tuple[Job, Machine]:
    """Everything that training is made of, each part a file of the run; ends with exit code 1 when it would not go well."""
    from harness.parameters import counts
    from harness.train.job import Job

    machine, dataset = chain.machine(), chain.dataset()
    norm_stats = chain.stats(dataset)
    console.say("planning")
    assert chain.run is not None
    # A run that goes on keeps the mathematics it was started with.
    made = chain.plan(machine, dataset, device=device, exact=chain.run.started, say=console.say)
    for note in made.notes:
        console.warn(note)
    if made.chosen is None:
        console.warn(f"no plan fits {made.device}: {made.candidates[-1].reason}")
        raise typer.Exit(1)
    for deviation in chain.carry_out(made):
        console.warn(f"deviation from recipe {made.recipe}: {deviation}")
    total, trained = counts(chain.recipe.model, chain.recipe.train.trained)
    console.say(f"plan: {made.device}, {made.chosen.reason}; {trained:,} of {total:,} parameters trained")
    diagnosis = diagnose(chain, machine, made, (dataset, norm_stats), allow=allow)
    for finding in diagnosis.findings:
        console.warn(f"{finding.severity}, {finding.check}: {finding.got}; need: {finding.need}; fix: {finding.fix}")
    if diagnosis.errors:
        console.warn("the doctor found errors, so nothing was trained; --allow 'NAME OF THE CHECK' goes on all the same")
        raise typer.Exit(1)
    return Job(chain.run, chain.recipe, made, dataset, norm_stats), machine


def _run(job: Job, machine: Machine, console: Progress, lock: int, *, patient: bool) -> None:
    """The training itself, in a process of its own that this one watches; JAX is never imported here."""
    from harness.chain import prepare_jax
    from harness.probe.machine import probe
    from harness.supervise.process import Limits
    from harness.supervise.run import supervise

    prepare_jax(job.plan, machine)
    expected = job.plan.chosen.seconds_per_step if job.plan.chosen and job.levers.platform == "cuda" and not patient else None
    # Metrics come every log_every_steps; nothing at all for twenty times that long is a hung process.
    limits = Limits(silent_s=max(3600.0, 20 * job.recipe.train.log_every_steps * (expected or 10.0)), expected_step_s=expected)
    with console:
        outcome = supervise(job.run, job.plan, console, look=lambda: probe([job.run.path]), limits=limits, inherit=(lock,))
    if not outcome.finished:
        console.say(f"stopped and saved at step {outcome.step} of {job.recipe.train.steps}; go on with: harness train --resume --run {job.run.path}")


def _look_back(job: Job, console: Progress) -> None:
    """What the run left behind: its checkpoint inspected, its curve analysed, its report written."""
    from harness.chain import write_report

    job.run.write(inspect_path(job.run.path, deep=False))
    curve = analyse_run(job.run.path)
    if curve is not None:
        console.say(f"loss: {curve.verdict}, {curve.reasons[0]}")
    _predict(job, console)
    console.say(f"report: {write_report(job.run)}")


def _predict(job: Job, console: Progress) -> None:
    """Lets a process of its own try the last checkpoint on a frame, for the report; not after a short run, of which that would be a large part."""
    from harness.report.status import read_status

    status = read_status(job.run)
    if status.step < job.recipe.train.steps or (status.step_s or 0.0) * status.step < LONG_RUN_S:
        return
    console.say("predicting one frame with the last checkpoint")
    command = [sys.executable, "-m", "harness.cli", "predict", str(job.run.path), "--run", str(job.run.path)]
    try:
        subprocess.run(command, check=True, timeout=LONG_RUN_S, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        console.warn(f"no prediction for the report: {next((text for text in said if text.startswith('error')), said[-1])}")
