"""The command line: one function a verb. The only module that prints.

stdout carries what was asked for (with --json the artifact and nothing else); logs, progress and errors go to stderr.
Exit codes: 0 done and good; 1 done and the answer is no; 2 could not do it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.artifacts import Metrics

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune pi0.5 on the GPU you have, reproducibly: probe, plan, data, stats, train, inspect, report.",
)

RunOption = Annotated[Path | None, typer.Option("--run", help="Run directory; the verb's artifact is written there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the artifact as JSON on stdout, and nothing else there.")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="A shipped recipe or a YAML file. Default: $HARNESS_RECIPE, else smoke.")]
OwnRecipeOption = Annotated[str | None, typer.Option("--recipe", help="A shipped recipe or a YAML file. Default: the one that the checkpoint records.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change one key of the recipe: train.seed=7 (may be given again).")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Directory, hub id[@revision], or 'sample'; instead of the recipe's.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu or cuda; default: the GPU when there is one.")]


@app.command()
def probe(run: RunOption = None, as_json: JsonOption = False) -> None:
    """What this machine has: GPUs (through NVML, without JAX), memory, disk, cores, container."""
    from harness.probe.machine import probe as read
    from harness.rundir import RunDir, cache_root, runs_root
    from harness.show import machine_table

    machine = read([run or runs_root(), cache_root()])
    if run is not None:
        RunDir(run).write(machine)
    _answer(machine, as_json, machine_table)


@app.command()
def plan(
    recipe: RecipeOption = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Plan for this card, which need not be here (for example rtx_a6000).")] = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """How this machine would carry out a recipe, in bytes that the compiler says; exit code 1 when it does not fit."""
    from harness.show import plan_table

    chain = _chain(run, recipe, sets, None)
    machine = chain.machine()
    dataset = chain.dataset() if chain.recipe.data.dataset == "sample" else None
    with _busy("compiling the training step"):
        made = chain.plan(machine, dataset, gpu=gpu, device=device)
    _answer(made, as_json, plan_table)
    raise typer.Exit(0 if made.chosen else 1)


@app.command()
def data(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    html: Annotated[bool, typer.Option("--html", help="Also write dataset.html, a look at the data: into --run, else into this directory.")] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a dataset is: format, episodes, frames, tasks, features, content hash. Every row is checked."""
    from harness.chain import write_dataset_page
    from harness.show import dataset_table

    chain = _chain(run, recipe, sets, dataset)
    with _busy("reading the dataset"):
        found = chain.dataset()
        page = write_dataset_page(chain, found) if html else None
    _answer(found, as_json, dataset_table)
    if page is not None:
        print(page, file=sys.stderr if as_json else sys.stdout)


@app.command()
def stats(
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    compare: Annotated[Path | None, typer.Option("--compare", help="Another norm_stats.json, or its directory: how far it is from ours.")] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Normalization statistics of state and actions, exact, on the CPU; no image is decoded."""
    from harness.show import comparison_table, stats_table

    chain = _chain(run, recipe, sets, dataset)
    with _busy("reading the dataset"):
        found = chain.stats(chain.dataset())
    if compare is None:
        _answer(found, as_json, stats_table)
        return
    from harness.data.compare import compare as compare_with

    comparison = compare_with(found, compare)
    if run is not None:
        _rundir(run).write(comparison)
    _answer(comparison, as_json, comparison_table)


@app.command()
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

    console = _Progress()
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
    checkpoint = _inspect(directory.path, deep=False)
    directory.write(checkpoint)
    console.say(f"report: {write_report(directory)}")
    if as_json:
        _print_file(directory, "manifest.json")


@app.command()
def inspect(
    path: Annotated[Path | None, typer.Argument(help="A run, a checkpoint directory or one step of it, ours or openpi's. Default: --run.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read the arrays too: values that are not finite, norms.")] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Delete the interrupted saves that are safe to delete.")] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a checkpoint holds: steps whole and interrupted, parameters by group, adapters. Exit code 1 when none is whole and sound."""
    from harness.rundir import RunDir
    from harness.show import checkpoint_table

    target = path or run
    if target is None:
        raise HarnessError("path-missing", "nothing to inspect", need="a run or a checkpoint directory", fix="harness inspect PATH")
    found = _inspect(target, deep=deep)
    if clean:
        from harness.checkpoint.scan import delete_interrupted

        for save in delete_interrupted(found):
            print(f"deleted {save.path}", file=sys.stderr)
        found = _inspect(target, deep=deep)
    if run is not None:
        RunDir(run).write(found)
    _answer(found, as_json, checkpoint_table)
    sound = any(step.complete for step in found.steps) and not found.non_finite
    raise typer.Exit(0 if sound else 1)


@app.command()
def predict(
    path: Annotated[str, typer.Argument(help="A run, a checkpoint directory or one step of it, ours or openpi's; local, gs:// or https://.")],
    episode: Annotated[int, typer.Option("--episode", help="Episode of the dataset.")] = 0,
    frame: Annotated[int, typer.Option("--frame", help="Frame of that episode, from 0.")] = 0,
    steps: Annotated[int, typer.Option("--steps", help="Euler steps from noise to actions.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise that sampling starts from.")] = 0,
    dataset: DatasetOption = None,
    recipe: OwnRecipeOption = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a checkpoint would do at one frame of a dataset, printed and plotted beside what was recorded there."""
    from harness import predict as prediction
    from harness.chain import start_on
    from harness.checkpoint.locate import locate, recipe_of
    from harness.probe.machine import probe as read
    from harness.rundir import PREDICTED_ACTIONS, RunDir, cache_root, write_atomic
    from harness.show import prediction_table

    console = _Progress()
    located = locate(path)
    own = recipe_of(located, recipe, [*(sets or []), *_dataset_overrides(dataset)])
    machine = read([cache_root()])
    place = prediction.place(machine, device)
    console.say(f"checkpoint {located.path}: recipe {own.name}, on {place.name}")
    start_on(machine, place.platform, place.uuid, place.usable_bytes)
    from harness.train import device as jax_device

    jax_device.start()
    answer = prediction.predict(located, own, prediction.Question(episode, frame, steps, seed), place, console.say)
    directory = RunDir(prediction.output_directory(located, run))
    picture = directory.path / PREDICTED_ACTIONS
    write_atomic(picture, prediction.plot(answer))
    directory.write(answer)
    _answer(answer, as_json, prediction_table)
    console.say(f"plot: {picture}")


@app.command()
def export(
    step: Annotated[str, typer.Argument(help="A step of a LoRA run (or the run: its newest whole step).")],
    destination: Annotated[Path, typer.Argument(help="New directory for the full openpi checkpoint.")],
    base: Annotated[str | None, typer.Option("--base", help="Where the weights are now that a step of only trained parameters lies upon.")] = None,
    recipe: OwnRecipeOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge LoRA adapters into a full openpi checkpoint, which gives the same actions without them."""
    import json

    from harness.checkpoint.export import export_openpi
    from harness.checkpoint.locate import locate, recipe_of
    from harness.units import format_bytes

    located = locate(step)
    own = recipe_of(located, recipe, sets)
    with _busy("merging"):
        merged = export_openpi(located.path, destination, model=own.model, base=base, recipe=own.model_dump(mode="json"))
    size = sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
    if as_json:
        print(json.dumps({"path": str(destination), "source": str(located.path), "merged": merged, "bytes": size}, indent=2))
    else:
        print(f"{destination}: {located.path} with {len(merged)} weights merged, {format_bytes(size)}")


@app.command()
def report(
    run: Annotated[Path, typer.Option("--run", help="Run directory; report.html is written there.")],
    as_json: JsonOption = False,
) -> None:
    """One self-contained report.html of a run: what was trained, the curves, the camera views, the checkpoint."""
    import json

    from harness.chain import write_report

    if not run.is_dir():
        raise HarnessError("run-missing", f"there is no run {run}", need="a run directory", fix="harness report --run runs/NAME")
    path = write_report(_rundir(run))
    print(json.dumps({"path": str(path), "bytes": path.stat().st_size}) if as_json else path)


def _chain(run: Path | None, recipe: str | None, sets: list[str] | None, dataset: str | None) -> Any:
    """The chain for a verb of its own: the named recipe (a run's own, when none is), with --dataset put in its place."""
    from harness.chain import Chain, default_recipe, recipe_of
    from harness.recipe import load_recipe

    overrides = [*(sets or []), *_dataset_overrides(dataset)]
    if run is None:
        return Chain(None, load_recipe(recipe or default_recipe(), overrides))
    return Chain(_rundir(run), recipe_of(_rundir(run), recipe, overrides, own_first=True))


def _dataset_overrides(dataset: str | None) -> list[str]:
    """What --dataset changes of a recipe; the revision is the new dataset's own, or none."""
    if dataset is None:
        return []
    name, _, revision = dataset.partition("@") if not Path(dataset).exists() else (dataset, "", "")
    return [f"data.dataset={name}", f"data.revision={revision or 'null'}"]


def _rundir(path: Path) -> Any:
    from harness.rundir import RunDir

    return RunDir(path)


def _inspect(path: Path, *, deep: bool) -> Any:
    from harness.checkpoint.inspect import inspect as read

    return read(path, deep=deep)


def _print_file(run: Any, name: str) -> None:
    print((run.path / name).read_text(), end="")


def _answer(artifact: Any, as_json: bool, table: Callable[[Any], Any]) -> None:
    if as_json:
        print(artifact.model_dump_json(indent=2))
    else:
        from rich.console import Console

        Console().print(table(artifact))


@contextmanager
def _busy(text: str) -> Iterator[None]:
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


class _Progress:
    """How a run goes, on stderr: a bar on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Any = None
        self._task: Any = None
        self._recent: deque[float] = deque(maxlen=20)

    def __enter__(self) -> _Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        if self._console.is_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        self._console.print(text)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", style="yellow", markup=False)

    def step(self, line: Metrics, steps: int) -> None:
        from harness.units import format_seconds

        self._recent.append(line.step_s)
        pace = sorted(self._recent)[len(self._recent) // 2]
        left = format_seconds(pace * (steps - line.step - 1))
        text = f"loss {line.loss:.4f}  grad_norm {line.grad_norm:.3f}  {format_seconds(pace)} a step  {left} left"
        if self._bar is None:
            self._console.print(f"step {line.step + 1}/{steps}  {text}", markup=False)
            return
        if self._task is None:
            self._task = self._bar.add_task(text, total=steps)
        self._bar.update(self._task, completed=line.step + 1, description=text)


def main() -> None:
    """Runs the command line; a refusal is one screen on stderr and exit code 2."""
    try:
        app()
    except HarnessError as error:
        parts = [("got", error.got), ("need", error.need), ("fix", error.fix)]
        lines = [f"error [{error.code}] {error.what}", *(f"  {name + ':':5} {text}" for name, text in parts if text)]
        print("\n".join(lines), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
