"""A training run in order: prepare, train in a supervised child process, look back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.errors import HarnessError
from harness.flow.diagnose import diagnose
from harness.received.text import word
from harness.show.progress import Progress, busy

if TYPE_CHECKING:
    import signal

    from harness.artifacts import Curve, Machine
    from harness.flow.chain import Chain
    from harness.flow.together import Lead
    from harness.flow.trainer import Trainer
    from harness.run.job import Job

# A run of at least this length can spare the minutes of a prediction at its end. It is the prediction's time
# limit too.
LONG_RUN_S = 600.0


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Lets SIGTERM and Ctrl-C end the run at once while no trainer runs: nothing is lost.

    Without a handler, the first process of a container ignores SIGTERM.

    Raises: HarnessError "stopped".
    """

    from harness.supervise.signals import stop_requests

    def stop(heard: signal.Signals) -> None:
        what = f"stopped by {heard.name} while no step was being trained; nothing was lost"
        raise HarnessError("stopped", what, fix="harness train --resume --run RUN")

    with stop_requests(stop):
        yield


def prepare(
    chain: Chain, console: Progress, device: str | None, allow: list[str], lead: Lead | None = None
) -> tuple[Job, Machine]:
    """The job to train and the machine. Each part of the job is a file of the run.

    `lead` speaks to the other processes of the run, if there are any.
    Ends with exit code 1 if no plan fits or the doctor finds an error.
    """
    from harness.recipe.parameters import counts
    from harness.run.job import Job

    assert chain.run is not None
    _check_weights(chain, allow)
    machine = chain.machine()
    if lead is not None:
        lead.begin(chain.run, machine, device)
    dataset = chain.dataset()
    norm_stats = chain.stats(dataset)
    if lead is not None:
        lead.look_at(chain.run, dataset)
    console.say("planning")
    # A run that goes on keeps the mathematics it was started with.
    asked = {} if lead is None else lead.asked()
    made = chain.plan(machine, dataset, device=device, exact=chain.run.started, say=console.say, **asked)
    for note in made.notes:
        console.warn(note)
    if made.chosen is None:
        console.warn(f"no plan fits {made.device}: {made.candidates[-1].reason}")
        raise typer.Exit(1)
    for deviation in chain.carry_out(made):
        console.warn(f"deviation from recipe {made.recipe}: {deviation}")
    total, trained = counts(chain.recipe.model, chain.recipe.train.trained)
    console.say(f"plan: {made.device}, {made.chosen.reason}; {trained:,} of {total:,} parameters trained")
    # The doctor may go online here: what is missing is fetched next, and only its own server is asked.
    hosts = [] if lead is None else lead.hosts
    diagnosis = diagnose(chain, machine, made, (dataset, norm_stats), allow=allow, online=True, hosts=hosts)
    for finding in diagnosis.findings:
        console.finding(finding)
    if errors := diagnosis.errors:
        named = " ".join(f"--allow {word(check)}" for check in dict.fromkeys(each.check for each in errors))
        console.warn(f"the doctor found errors, so nothing was trained; {named} goes on all the same")
        raise typer.Exit(1)
    return Job(chain.run, chain.recipe, made, dataset, norm_stats), machine


def _check_weights(chain: Chain, allow: list[str]) -> None:
    """Refuses weights that may not be fetched or cannot start the recipe, before anything is planned.

    Raises: HarnessError "fetch-not-asked", "offline", "download-address", "download-scheme", and those of
    `why_not`.
    """
    from harness.checkpoint.source import why_not
    from harness.download.cache import WEIGHTS, check_may_fetch, is_remote
    from harness.run.steps import newest_step

    assert chain.run is not None
    source = chain.recipe.weights.source
    # A resumed run has all weights in its checkpoint, unless the checkpoint holds only the trained ones.
    goes_on = newest_step(chain.run.checkpoints, chain.trainer.name) is not None
    if not goes_on or chain.recipe.train.save == "trained":
        check_may_fetch(source, WEIGHTS)
    # The name of the same check in the doctor, which --allow can let pass.
    if chain.run.started or source is None or is_remote(source) or "weights directory" in allow:
        return
    refusal = why_not(Path(source), chain.recipe)
    if refusal is not None:
        raise refusal


def carry_out(
    job: Job,
    machine: Machine,
    trainer: Trainer,
    console: Progress,
    lock: int | None,
    *,
    patient: bool,
    alone: bool = True,
) -> bool:
    """Runs the training in a supervised child process. True if it left something to report on.

    One of several processes (not `alone`) is not started again: whoever started them all does that.
    Never imports JAX.
    """
    from harness.flow.device import prepare_jax
    from harness.probe.machine import probe
    from harness.received.text import word
    from harness.supervise.process import Limits
    from harness.supervise.run import supervise

    prepare_jax(job.plan, machine)
    expected = (
        job.plan.chosen.seconds_per_step
        if job.plan.chosen and job.levers.platform == "cuda" and not patient
        else None
    )
    # Metrics come every log_every_steps. Silence of twenty times that long means a hung process.
    limits = Limits(
        silent_s=max(3600.0, 20 * job.recipe.train.log_every_steps * (expected or 10.0)),
        expected_step_s=expected,
    )
    with console:
        outcome = supervise(
            job.run,
            job.plan,
            trainer,
            console,
            look=lambda: probe([job.run.path]),
            limits=limits,
            inherit=() if lock is None else (lock,),
            **({} if alone else {"restarts": 0}),
        )
    if not outcome.finished:
        where = (
            f"stopped and saved at step {outcome.step} of {job.recipe.train.steps}"
            if outcome.step
            else "stopped before its first step was saved"
        )
        console.say(f"{where}; go on with: harness train --resume --run {word(job.run.path)}")
    return outcome.step > 0


def look_back(job: Job, trainer: Trainer, console: Progress) -> None:
    """Inspects the run's checkpoint, analyses its curve and writes its report."""
    from harness.flow.pages import write_report

    job.run.write(inspect_path(job.run.path, deep=False))
    curve = analyse_run(job.run.path)
    if curve is not None:
        console.say(f"loss: {curve.verdict}, {curve.reasons[0]}")
    _choose(job, console)
    _predict(job, trainer, console)
    console.say(f"report: {write_report(job.run)}")


def _choose(job: Job, console: Progress) -> None:
    """Compares the saves on the held-out episodes, for the report. Nothing if the run measured none."""
    from harness.choose.choose import choose

    if job.recipe.train.holdout is None:
        return
    try:
        found = choose(job.run)
    except HarnessError as error:
        if error.code != "held-out-unmeasured":
            raise
        return
    job.run.write(found)
    console.say(f"held-out: {found.answer}")


def _predict(job: Job, trainer: Trainer, console: Progress) -> None:
    """Predicts one frame with the last checkpoint, in a child process, for the report.

    Skipped after a short run, where the prediction would take a large part of the time.
    """
    from harness.run.status import read_status

    status = read_status(job.run)
    if status.step < job.recipe.train.steps or (status.step_s or 0.0) * status.step < LONG_RUN_S:
        return
    console.say("predicting one frame with the last checkpoint")
    command = [sys.executable, "-m", "harness.cli", "predict", str(job.run.path), "--run", str(job.run.path)]
    command += trainer.predict_options
    try:
        subprocess.run(
            command,
            check=True,
            timeout=LONG_RUN_S,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        console.warn(
            "no prediction for the report:"
            f" {next((text for text in said if text.startswith('error')), said[-1])}"
        )


def analyse_run(run: Path) -> Curve | None:
    """The loss curve of a run that has just been trained, written into it. None if the run logged no step."""
    from harness.analyse.curve import analyse as read
    from harness.run.directory import RunDir

    try:
        found = read(str(run))
    except HarnessError as error:
        if error.code not in ("run-without-metrics", "log-empty", "log-without-loss"):
            raise
        return None
    RunDir(run).write(found)
    return found


def inspect_path(path: Path, *, deep: bool, against: str | None = None) -> Any:
    from harness.checkpoint.inspect import inspect as read

    if not deep and against is None:
        return read(path)
    with busy("reading the arrays"):
        return read(path, deep=deep, against=against)
