"""What a run leaves behind: inspect, predict, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.download.consent import grant, hear
from harness.errors import HarnessError
from harness.show.progress import Progress
from harness.verbs.answers import answer, busy, dataset_overrides, inspect_path
from harness.verbs.options import DatasetOption, DeviceOption, FetchOption, JsonOption, OfflineOption, OwnRecipeOption, RunOption, SetOption


def inspect(
    path: Annotated[Path | None, typer.Argument(help="A run, a checkpoint directory or one step of it, ours or openpi's. Default: --run.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read the arrays too: values that are not finite, norms, a sha256 of each, adapters' rank.")] = False,
    against: Annotated[
        str | None, typer.Option("--against", help="Which parts moved since: a step's number, 'base' (the weights trained from), or a path. Writes moved.png.")
    ] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Delete the interrupted saves that are safe to delete.")] = False,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a checkpoint holds: steps whole and interrupted, parameters by group, adapters. Exit code 1 when none is whole and sound."""
    from harness.run.directory import RunDir
    from harness.show.checkpoint import checkpoint_table

    hear(fetch=fetch, offline=offline)
    target = path or run
    if target is None:
        raise HarnessError("path-missing", "nothing to inspect", need="a run or a checkpoint directory", fix="harness inspect PATH")
    if clean:
        from harness.checkpoint.scan import delete_interrupted

        for save in delete_interrupted(inspect_path(target, deep=False)):
            print(f"deleted {save.path}", file=sys.stderr)
    found = inspect_path(target, deep=deep, against=against)
    if run is not None:
        RunDir(run).write(found)
    answer(found, as_json, checkpoint_table)
    if found.moved is not None:
        from harness.show.moved_picture import write

        print(f"picture: {write(found, target, run)}", file=sys.stderr)
    sound = any(step.complete for step in found.steps) and not found.non_finite
    raise typer.Exit(0 if sound else 1)


def predict(
    path: Annotated[str, typer.Argument(help="A run, a checkpoint directory or one step of it, ours or openpi's; local, gs:// or https://.")],
    episode: Annotated[int, typer.Option("--episode", help="Episode of the dataset.")] = 0,
    frame: Annotated[int, typer.Option("--frame", help="Frame of that episode, from 0.")] = 0,
    steps: Annotated[int, typer.Option("--steps", help="Euler steps from noise to actions.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise that sampling starts from.")] = 0,
    dataset: DatasetOption = None,
    recipe: OwnRecipeOption = None,
    base: Annotated[str | None, typer.Option("--base", help="Where the weights are now that a step of only trained parameters lies upon.")] = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a checkpoint would do at one frame of a dataset, printed and plotted beside what was recorded there."""
    from harness.checkpoint.locate import locate, recipe_of
    from harness.flow.chain import start_on
    from harness.predict import predict as prediction
    from harness.probe.machine import probe as read
    from harness.run.directory import PREDICTED_ACTIONS, RunDir, cache_root, write_atomic
    from harness.show.prediction import prediction_table

    console = Progress()
    hear(fetch=fetch, offline=offline)
    grant(base)
    located = locate(path)
    own = recipe_of(located, recipe, [*(sets or []), *dataset_overrides(dataset)])
    machine = read([cache_root()])
    place = prediction.place(machine, device)
    console.say(f"checkpoint {located.path}: recipe {own.name}, on {place.name}")
    start_on(machine, place.platform, place.uuid, place.usable_bytes)
    from harness.train import device as jax_device

    jax_device.start()
    predicted = prediction.predict(located, own, prediction.Question(episode, frame, steps, seed), place, console.say, base=base)
    directory = RunDir(prediction.output_directory(located, run))
    picture = directory.path / PREDICTED_ACTIONS
    write_atomic(picture, prediction.plot(predicted))
    directory.write(predicted)
    answer(predicted, as_json, prediction_table)
    console.say(f"plot: {picture}")


def export(
    step: Annotated[str, typer.Argument(help="A step of a LoRA run (or the run: its newest whole step).")],
    destination: Annotated[Path, typer.Argument(help="New directory for the full openpi checkpoint.")],
    base: Annotated[str | None, typer.Option("--base", help="Where the weights are now that a step of only trained parameters lies upon.")] = None,
    recipe: OwnRecipeOption = None,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge LoRA adapters into a full openpi checkpoint, which gives the same actions without them."""
    import json

    from harness.checkpoint.export import export_openpi
    from harness.checkpoint.locate import locate, recipe_of
    from harness.units import format_bytes

    hear(fetch=fetch, offline=offline)
    grant(base)
    located = locate(step)
    own = recipe_of(located, recipe, sets)
    with busy("merging"):
        merged = export_openpi(located.path, destination, model=own.model, base=base, recipe=own.model_dump(mode="json"))
    size = sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
    if as_json:
        print(json.dumps({"path": str(destination), "source": str(located.path), "merged": merged, "bytes": size}, indent=2))
    else:
        print(f"{destination}: {located.path} with {len(merged)} weights merged, {format_bytes(size)}")
