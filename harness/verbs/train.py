"""The run."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.verbs.answers import inspect_path, print_file
from harness.verbs.options import DeviceOption, JsonOption, RecipeOption, RunOption, SetOption
from harness.verbs.progress import Progress


def train(
    recipe: RecipeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint (of --run, --name, or the recipe's latest run).")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run below $HARNESS_RUNS (default ./runs).")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Train up to this step instead of the recipe's.")] = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train: probe, plan, data, stats, then the run itself, then inspect and report. Ctrl-C or SIGTERM saves and ends it."""
    from harness.chain import Chain, find_run, prepare_jax, recipe_of, refuse_started, write_report

    console = Progress()
    directory = find_run(run, name, recipe, resume=resume)
    overrides = [*(sets or []), *([f"train.steps={steps}"] if steps is not None else [])]
    own = recipe_of(directory, recipe, overrides, own_first=resume)
    if not resume:
        refuse_started(directory)
    chain = Chain(directory, own, trains=True)
    console.say(f"run {directory.path}: recipe {chain.recipe.name}, {chain.recipe.train.steps} steps")
    machine, dataset = chain.machine(), chain.dataset()
    for finding in dataset.findings:
        console.warn(finding)
    norm_stats = chain.stats(dataset)
    for degenerate in norm_stats.findings:
        console.warn(f"{degenerate.key}[{degenerate.dimension}]: {degenerate.problem}; {degenerate.fix}")
    console.say("planning")
    made = chain.plan(machine, dataset, device=device)
    if made.chosen is None:
        console.warn(f"no plan fits {made.device}: {made.candidates[0].reason}")
        raise typer.Exit(1)
    console.say(f"plan: {made.device}, {made.chosen.reason}; {made.parameters_trained:,} of {made.parameters_total:,} parameters trained")
    prepare_jax(made, machine)
    from harness.train import device as jax_device

    jax_device.start()
    from harness.train.job import Job
    from harness.train.loop import train as run_training

    with console:
        outcome = run_training(Job(directory, chain.recipe, made, dataset, norm_stats), console)
    if not outcome.finished:
        console.say(f"stopped and saved at step {outcome.step} of {chain.recipe.train.steps}; go on with: harness train --resume --run {directory.path}")
    checkpoint = inspect_path(directory.path, deep=False)
    directory.write(checkpoint)
    console.say(f"report: {write_report(directory)}")
    if as_json:
        print_file(directory, "manifest.json")
