"""Replays recorded frames through the client's path, and compares with `harness predict` on the same frames.

First the model's inputs, which must be equal: pictures and tokens. Then the actions that a client receives
over a socket, beside those that predict's own program gives for the same seed.

Axes: F frames, H action horizon, A real dimensions of an action.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts import ServeCheck
from harness.checkpoint.locate import Located
from harness.data.batch import one_frame
from harness.data.lerobot import LeRobotDataset
from harness.data.space import Space
from harness.errors import HarnessError
from harness.predict.agree import TOLERANCES
from harness.predict.predict import Device, Say, Stats, checkpoint_stats, in_units, sampler
from harness.recipe.schema import Recipe
from harness.serve.access import Key
from harness.serve.client import Client
from harness.serve.names import PROMPT, SEED
from harness.serve.open import Opened, OpenEngine, Wish, open_served, with_default_prompt
from harness.serve.server import Server, Settings
from harness.serve.tally import Tally


class Frame(NamedTuple):
    """A recorded frame: its number, what a client sends, predict's batch, and predict's actions [H, A]."""

    number: int
    observation: dict[str, Any]
    batch: dict[str, Any]
    actions: np.ndarray


def check(
    located: Located,
    recipe: Recipe,
    data: LeRobotDataset,
    count: int,
    wish: Wish,
    on: Device,
    say: Say,
    open_engine: OpenEngine,
) -> ServeCheck:
    """The comparison on `count` frames, evenly over the dataset.

    predict's program is opened first and let go, so that two models are never on the device together.
    Raises: HarnessError "frames-invalid", and those of `open_served` and of the dataset.
    """
    one = with_default_prompt(recipe.parts()[0], wish.default_prompt)
    numbers = _numbers(data, count)
    stats = checkpoint_stats(located, one, data)
    say(f"predicting {len(numbers)} frames of {data.path}")
    frames = _predicted(located, one, data, stats, numbers, wish, on, say)
    opened = open_served(located, recipe, wish, on, say, open_engine, data=data)
    found = next((difference for frame in frames if (difference := _of_inputs(opened, frame))), None)
    tolerance = TOLERANCES[one.model.compute_dtype]
    largest: float | None = None
    if found is None:
        say(f"replaying {len(frames)} frames over a socket")
        allowed = _allowed(one, stats, tolerance)
        largest, found = _of_actions(frames, _answers(opened, frames), allowed)
    opened.desk.batcher.close()
    return ServeCheck(
        checkpoint=str(located.path),
        step=located.step,
        dataset=str(data.path),
        device=on.name,
        sampling_steps=wish.steps,
        frames=numbers,
        largest=largest,
        tolerance=tolerance,
        first_difference=found,
        verdict="equal" if found is None else "differs",
    )


def _numbers(data: LeRobotDataset, count: int) -> list[int]:
    if count < 1:
        raise HarnessError(
            "frames-invalid",
            "a check takes at least one frame",
            got=count,
            need="1 or more",
            fix="--frames 8",
        )
    total = sum(episode.length for episode in data.episodes)
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total))})


def _predicted(
    located: Located,
    recipe: Recipe,
    data: LeRobotDataset,
    stats: Stats,
    numbers: list[int],
    wish: Wish,
    on: Device,
    say: Say,
) -> list[Frame]:
    batches = [one_frame(recipe, data, stats, number) for number in numbers]
    sample = sampler(located, recipe, wish.steps, batches[0], on, say, wish.base)
    return [
        Frame(
            number,
            observation_of(recipe, data, number),
            batch,
            in_units(recipe, stats, sample(batch, number), data.state(number)),
        )
        for number, batch in zip(numbers, batches, strict=True)
    ]


def observation_of(recipe: Recipe, data: LeRobotDataset, number: int) -> dict[str, Any]:
    """What a client would send of a recorded frame, under the dataset's own names; its number is the seed."""
    names = [feature for feature in recipe.data.cameras.values() if feature is not None]
    found: dict[str, Any] = {name: data.image(number, name) for name in names}
    state, start = data.state(number), 0
    for name in recipe.data.state_features:
        width = data.features[name].shape[0]
        found[name] = state[start : start + width]
        start += width
    return found | {PROMPT: data.task(number), SEED: number}


def _of_inputs(opened: Opened, frame: Frame) -> str | None:
    """The first difference of the model's inputs; None if all are equal."""
    asked = opened.reader.read(frame.observation)
    for camera, image in frame.batch["images"].items():
        served = asked.images.get(camera)
        if served is None or not np.array_equal(served, image[0]):
            where = "is missing" if served is None else _first_of(served, image[0])
            return f"frame {frame.number}: the picture of {camera} {where}"
    served_tokens = asked.tokens[asked.token_mask].tolist()
    predicted = frame.batch["tokens"][0][frame.batch["token_mask"][0]].tolist()
    if served_tokens != predicted:
        return f"frame {frame.number}: the prompt has tokens {served_tokens[:12]}, not {predicted[:12]}"
    return None


def _first_of(served: np.ndarray, predicted: np.ndarray) -> str:
    if served.shape != predicted.shape:
        return f"has shape {served.shape}, not {predicted.shape}"
    row, column, colour = np.argwhere(served != predicted)[0]
    values = f"{served[row, column, colour]}, not {predicted[row, column, colour]}"
    return f"is {values} at row {row}, column {column}, colour {colour}"


def _answers(opened: Opened, frames: list[Frame]) -> list[np.ndarray]:
    """The actions [H, A] that a client receives for each frame, over a socket of this machine."""
    tally, key = Tally(), "key-of-harness-serve-check"
    # Port 0: any that is free.
    server = Server(opened.desk, Settings(port=0, key=Key(key)), tally)
    ports: list[int] = []
    listening = threading.Event()
    loop = asyncio.new_event_loop()

    def ready(port: int) -> None:
        ports.append(port)
        listening.set()

    def serve() -> None:
        try:
            loop.run_until_complete(server.run(ready))
        finally:
            listening.set()

    thread = threading.Thread(target=serve, name="server")
    thread.start()
    try:
        listening.wait()
        client = Client(f"ws://127.0.0.1:{ports[0]}", key)
        found = [np.asarray(client.infer(frame.observation)["actions"]) for frame in frames]
        client.close()
        return found
    finally:
        loop.call_soon_threadsafe(server.stop)
        thread.join()
        loop.close()


def _allowed(recipe: Recipe, stats: Stats, tolerance: float) -> np.ndarray:
    """The difference that rounding may make in each dimension [A], in the dataset's units."""
    actions = stats["actions"]
    quantile = recipe.data.normalization == "quantile"
    spread = (np.asarray(actions.q99) - np.asarray(actions.q01)) / 2 if quantile else np.asarray(actions.std)
    # A dimension without spread is normalized by 1e-6, and so is its tolerance.
    widths = Space.of(recipe.data).widths_recorded([float(one) for one in np.maximum(spread, 1e-6)])
    return tolerance * np.asarray(widths)


def _of_actions(
    frames: list[Frame], answers: list[np.ndarray], allowed: np.ndarray
) -> tuple[float, str | None]:
    """(the largest difference as a share of what is allowed, the first one beyond it)."""
    largest, found = 0.0, None
    for frame, served in zip(frames, answers, strict=True):
        if served.shape != frame.actions.shape:
            return float("inf"), f"frame {frame.number}: {served.shape} actions, not {frame.actions.shape}"
        share = np.abs(served.astype(np.float64) - frame.actions) / allowed
        largest = max(largest, float(share.max()))
        if found is None and not (share <= 1).all():
            step, dimension = np.argwhere(~(share <= 1))[0]
            got, want = served[step, dimension], frame.actions[step, dimension]
            found = (
                f"frame {frame.number}, step {step} of the chunk, dimension {dimension}: {got:.9g}, not"
                f" {want:.9g}"
            )
    return largest, found
