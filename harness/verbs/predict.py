"""A checkpoint on a frame: predict."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.received.consent import grant, hear
from harness.recipe.sampling import STEPS
from harness.show.progress import Progress
from harness.verbs.answers import answer, with_dataset
from harness.verbs.options import (
    BaseOption,
    CheckpointArgument,
    DatasetOption,
    DeviceOption,
    FetchOption,
    JsonOption,
    OfflineOption,
    OwnRecipeOption,
    RunOption,
    SetOption,
    StepsOption,
)
from harness.verbs.started import started


def predict(
    path: CheckpointArgument,
    episode: Annotated[int, typer.Option("--episode", help="Episode of the dataset.")] = 0,
    frame: Annotated[int, typer.Option("--frame", help="Frame of that episode, from 0.")] = 0,
    steps: StepsOption = STEPS,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise that sampling starts from.")] = 0,
    dataset: DatasetOption = None,
    recipe: OwnRecipeOption = None,
    base: BaseOption = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a checkpoint would do at one frame of a dataset, printed and plotted beside what was recorded
    there.
    """
    from harness.checkpoint.locate import locate, recipe_of
    from harness.predict import predict as prediction
    from harness.run.directory import PREDICTED_ACTIONS, RunDir, write_atomic
    from harness.show.prediction import prediction_table
    from harness.show.prediction_picture import plot

    console = Progress()
    hear(fetch=fetch, offline=offline)
    grant(base)
    located = locate(path)
    own = recipe_of(located, recipe, with_dataset(sets, dataset))
    on = started(
        device, lambda on: console.say(f"checkpoint {located.path}: recipe {own.name}, on {on.name}")
    )
    predicted = prediction.predict(
        located, own, prediction.Question(episode, frame, steps, seed), on, console.say, base=base
    )
    directory = RunDir(prediction.output_directory(located, run))
    picture = directory.path / PREDICTED_ACTIONS
    write_atomic(picture, plot(predicted))
    directory.write(predicted)
    answer(predicted, as_json, prediction_table)
    console.say(f"plot: {picture}")
