"""Batches from frames: of one dataset, or of the datasets of a mixture.

Legend: B frames per batch (of this shard), H action horizon, D action_dim, L prompt tokens, S image size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts import DimensionStats, Feature
from harness.data.lerobot import LeRobotDataset
from harness.data.mapping import widths_of
from harness.data.order import Frame
from harness.data.pictures import Pictures
from harness.data.prompts import Prompts
from harness.data.space import Space
from harness.data.transforms import normalize, normalized, pad_last, resize_with_pad
from harness.recipe.schema import Data, Recipe

Batch = dict[str, Any]
Stats = Mapping[Any, DimensionStats]


class Source(NamedTuple):
    """A dataset that batches are made from. `recipe` is that of the dataset alone."""

    recipe: Recipe
    pictures: Pictures
    stats: Stats
    prompts: Prompts


def own_stats(stats: Stats, data: Data, features: Mapping[str, Feature]) -> Stats:
    """The statistics of a mixture as far as a dataset of these features has dimensions."""
    widths = widths_of(data, features)
    return {
        key: DimensionStats(
            **{name: vector[: widths[key]] for name, vector in one.model_dump().items() if vector is not None}
        )
        for key, one in stats.items()
        if widths[key]
    }


def one_frame(recipe: Recipe, data: LeRobotDataset, stats: Stats, i: int) -> Batch:
    """The batch that contains frame `i` alone, equal to what `Loader.batch` would make."""
    pictures = Pictures(data, recipe.model.image_size, 0)
    return batch_of(
        Source(recipe, pictures, stats, Prompts(recipe, data.tasks, recipe.model.prompt_tokens)), [i]
    )


def batch_of(source: Source, index: list[int], *, resized: bool = True) -> Batch:
    """The batch of these frames of one dataset, as `Loader.batch` describes it."""
    images = {
        camera: source.pictures.get(index, name, resized=resized)
        for camera, name in source.recipe.data.cameras.items()
        if name is not None
    }
    return {"images": images} | _without_images(source, index)


def _without_images(source: Source, index: list[int]) -> Batch:
    recipe, pictures, stats, prompts = source
    config, data, width = recipe.data, pictures.data, recipe.model.action_dim
    space = Space.of(config)
    states = space.states(np.stack([data.state(i) for i in index]))
    chunks = np.stack([data.action_chunk(i, recipe.model.action_horizon)[0] for i in index])
    chunks = space.actions(chunks, states)
    seen = _normalized_states(config, stats, states)
    told = seen if seen is not None else [None] * len(index)
    tasks = [prompts(data.task_index(i), state) for i, state in zip(index, told, strict=True)]
    batch = {
        "tokens": np.stack([tokens for tokens, _ in tasks]),
        "token_mask": np.stack([mask for _, mask in tasks]),
        "actions": pad_last(normalize(chunks, stats["actions"], config.normalization), width),
        "index": np.asarray(index, np.int64),
    }
    if seen is not None:
        batch["state"] = pad_last(seen.astype(np.float32), max(width, seen.shape[-1]))
    return batch


def mixed_batch(
    recipe: Recipe, sources: Sequence[Source], frames: list[Frame], *, resized: bool = True
) -> Batch:
    """The batch of these frames of a mixture, in their order.

    Beside what a batch of one dataset has: dataset int32 [B], the position of each frame's dataset in
    data.datasets; and, if some datasets lack a camera, image_masks {camera: bool [B]}. Their images are
    black there. `index` counts through the datasets, one after the other.
    """
    parts = np.array([frame.part for frame in frames], np.int32)
    offsets = np.cumsum([0, *(source.pictures.data.frames for source in sources)])
    made: list[tuple[np.ndarray, Batch]] = []
    for part in np.unique(parts):
        rows = np.flatnonzero(parts == part)
        one = _without_images(sources[part], [frames[row].number for row in rows])
        made.append((rows, one | {"index": one["index"] + offsets[part]}))
    names = [name for name in ("tokens", "token_mask", "actions", "index") if name in made[0][1]]
    batch: Batch = {
        name: _scattered(len(frames), [(rows, one[name]) for rows, one in made]) for name in names
    }
    size, cameras = recipe.model.image_size, [name for name, one in recipe.data.cameras.items() if one]
    batch["images"] = {
        camera: _pictures(sources, frames, camera, size, resized=resized) for camera in cameras
    }
    if recipe.data.some_lack_a_camera:
        has = {
            camera: [source.recipe.data.cameras[camera] is not None for source in sources]
            for camera in cameras
        }
        batch["image_masks"] = {camera: np.array(each)[parts] for camera, each in has.items()}
    if recipe.data.state is not None:
        states = [(rows, one["state"]) for rows, one in made if "state" in one]
        width = max((values.shape[-1] for _, values in states), default=recipe.model.action_dim)
        padded = [(rows, pad_last(values, width)) for rows, values in states]
        batch["state"] = _scattered(len(frames), padded or [(np.arange(0), np.zeros((0, width), np.float32))])
    return batch | {"dataset": parts}


def _scattered(count: int, pieces: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """An array of `count` rows with each piece at its rows, and zeros elsewhere."""
    first_piece = pieces[0][1]
    whole = np.zeros((count, *first_piece.shape[1:]), first_piece.dtype)
    for rows, values in pieces:
        whole[rows] = values
    return whole


def _pictures(
    sources: Sequence[Source], frames: list[Frame], camera: str, size: int, *, resized: bool
) -> np.ndarray:
    """A camera's images of all rows in one size; black where the row's dataset has no such camera.

    They are put together once: the images of a batch are most of its bytes.
    """
    found: list[np.ndarray | None] = []
    for part, number in frames:
        name = sources[part].recipe.data.cameras[camera]  # type: ignore[index]
        one = None if name is None else sources[part].pictures.listed([number], name, resized=resized)
        found.append(one[0] if one is not None else None)
    shapes = {image.shape for image in found if image is not None}
    if len(shapes) > 1:
        found = [image if image is None else resize_with_pad(image, size) for image in found]
    shape = shapes.pop() if len(shapes) == 1 else (size, size, 3)
    black = np.zeros(shape, np.uint8)
    return np.stack([black if image is None else image for image in found])


def _normalized_states(config: Data, stats: Stats, states: np.ndarray) -> np.ndarray | None:
    """The normalized states in float64; None if the dataset or the statistics have none."""
    if config.state is None or "state" not in stats:
        return None
    return normalized(states, stats["state"], config.normalization)
