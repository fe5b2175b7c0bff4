"""Training batches, in an order that depends only on seed and step.

Legend: B frames per batch (of this shard), H action horizon, D action_dim, L prompt tokens, S image size.

Grain provides the order and the threads or processes. Grain imports JAX, so this module imports Grain only
when a loader is made. By then the trainer has imported JAX itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Mapping
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifacts import Dataset, DimensionStats, NormStats
from harness.data.held_out import Kept, left_out_of
from harness.data.lerobot import LeRobotDataset, open_dataset
from harness.data.pace import Pace, workers_from_environment
from harness.data.pictures import Pictures
from harness.data.tokenizer import tokenizer_of
from harness.data.transforms import normalize, pad_last
from harness.errors import HarnessError
from harness.recipe.schema import Data, Recipe

Batch = dict[str, Any]
Prompts = dict[int, tuple[np.ndarray, np.ndarray]]

_LAST_STEP = 2**48
# Batches that each process keeps ready.
_AHEAD = 2
_MOST_THREADS = 8
# While one thread waits for a file or for the interpreter, another can use its core.
_THREADS_A_CORE = 2
_WATCH = "ends with the trainer"
# Bytes of decoded images kept in memory, over all processes: 2,700 frames of two cameras of 256 × 256.
KEPT_BYTES = 1 << 30


class Loader:
    """Shard `shard` of `shards` of every global batch of `batch_size` frames.

    `workers` is 0 for threads in this process, which start at once, or a number of processes, for fast
    accelerators. None takes the value of $HARNESS_LOADER_WORKERS. `workers` changes when a batch is ready,
    never its content.

    Raises: HarnessError "dataset-smaller-than-batch", "batch-not-divisible", "dataset-changed", "stats-shape"
    or "loader-workers-invalid".
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        stats: NormStats,
        *,
        batch_size: int,
        seed: int,
        workers: int | None = None,
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        data = open_dataset(Path(dataset.path), state=recipe.data.state, actions=recipe.data.actions)
        left_out = left_out_of(recipe, data.episodes)
        kept = Kept(data.episodes, left_out) if left_out else None
        _check(data, dataset, len(kept) if kept else data.frames, batch_size, shard, shards)
        share = batch_size // shards
        order = _Order(data.frames, seed, batch_size, range(shard * share, (shard + 1) * share), kept)
        self.data = data
        self._workers = workers_from_environment() if workers is None else workers
        self._threads = min(_MOST_THREADS, _THREADS_A_CORE * len(os.sched_getaffinity(0)))
        self._pace = Pace(dataset, share, self._workers or self._threads, recipe.model.image_size)
        data.share_memory_with(self._workers)
        pictures = Pictures(data, recipe.model.image_size, KEPT_BYTES // max(1, self._workers))
        self._batches = _Batches(
            recipe, pictures, stats.norm_stats, _prompts(recipe, data, dataset.prompt_tokens), order
        )

    def bottleneck(self, step_s: float) -> str | None:
        """A message, given once, if steps of `step_s` seconds wait for this loader; else None.

        The estimate uses the most recent batches.
        """
        return self._pace.bottleneck(step_s)

    def batch(self, step: int) -> Batch:
        """The batch of `step`.

        Shapes: images {camera: uint8 [B, S, S, 3]} of the cameras that the dataset has; actions float32 [B,
        H, D], normalized, then padded with zeros; tokens int32 [B, L], token_mask bool [B, L]; index int64
        [B].

        If both the dataset and the statistics have a state: state float32 [B, max(D, dimensions)], normalized
        and padded in the same way. Upstream's batch has the state; this model does not read it.
        """
        return self._batches(step)

    def frames(self, index: list[int]) -> Batch:
        """The frames of these numbers as a batch, as `iterate` without `resized` makes it."""
        return self._batches.of(index)

    def iterate(self, start_step: int = 0, *, resized: bool = True) -> Generator[Batch, None, None]:
        """An endless iterator of batches from `start_step` on, made ahead outside this thread.

        `close()` ends the threads or processes that make them. Without `resized` an image may come as the
        dataset stores it, uint8 [B, H, W, 3]. The device then resizes it, to the same pixels.
        """
        import grain
        from absl import flags

        steps = grain.MapDataset.range(start_step, _LAST_STEP).map(
            self._batches.timed if resized else self._batches.timed_as_stored
        )
        if self._workers == 0:
            options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._threads + 1)
            batches = iter(steps.to_iter_dataset(options))
        else:
            # Grain's processes read absl flags, which only absl's own `app.run` would have parsed.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            alone = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            batches = iter(
                alone.mp_prefetch(
                    grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=_AHEAD)
                )
            )
        try:
            for batch, seconds in batches:
                self._pace.made(seconds)
                yield batch
        finally:
            # Ends the threads or processes and frees their shared memory.
            batches.close()


class _Order:
    """The frames of each step.

    Every epoch is its own permutation. A batch may begin in one epoch and end in the next. `kept` are the
    frames that are trained on; None means all.
    """

    def __init__(
        self, frames: int, seed: int, batch_size: int, places: range, kept: Kept | None = None
    ) -> None:
        self._frames = frames if kept is None else len(kept)
        self._seed, self._batch_size, self._places, self._kept = seed, batch_size, places, kept
        self._endless: Any = None

    def __call__(self, step: int) -> list[int]:
        if self._endless is None:
            import grain

            self._endless = grain.MapDataset.range(self._frames).seed(self._seed).shuffle().repeat()
        found = [int(self._endless[step * self._batch_size + place]) for place in self._places]
        return found if self._kept is None else [self._kept[n] for n in found]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_endless": None}


class _Batches:
    """The function from step to batch. Picklable, so that it can be sent to processes."""

    def __init__(
        self,
        recipe: Recipe,
        pictures: Pictures,
        stats: Mapping[Any, DimensionStats],
        prompts: Prompts,
        order: _Order,
    ) -> None:
        self._recipe, self._pictures, self._stats, self._prompts, self._order = (
            recipe,
            pictures,
            stats,
            prompts,
            order,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        _end_with_the_trainer()

    def timed(self, step: int) -> tuple[Batch, float]:
        """The batch, and the seconds that it took to make."""
        start = time.perf_counter()
        return self(step), time.perf_counter() - start

    def timed_as_stored(self, step: int) -> tuple[Batch, float]:
        """As `timed`, but square images of moderate size stay unresized, for the device to resize."""
        start = time.perf_counter()
        return self(step, resized=False), time.perf_counter() - start

    def __call__(self, step: int, *, resized: bool = True) -> Batch:
        return self.of(self._order(step), resized=resized)

    def of(self, index: list[int], *, resized: bool = False) -> Batch:
        return _batch(self._recipe, self._pictures, self._stats, self._prompts, index, resized=resized)


def _end_with_the_trainer() -> None:
    """Starts a thread that ends this loader process when its parent has ended, in whatever way.

    Grain's own processes would wait for orders that never come.
    """
    parent = parent_process()
    if parent is None or any(thread.name == _WATCH for thread in threading.enumerate()):
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name=_WATCH).start()


def one_frame(recipe: Recipe, data: LeRobotDataset, stats: Mapping[Any, DimensionStats], i: int) -> Batch:
    """The batch that contains frame `i` alone, equal to what `Loader.batch` would make."""
    return _batch(
        recipe,
        Pictures(data, recipe.model.image_size, 0),
        stats,
        _prompts(recipe, data, recipe.model.prompt_tokens),
        [i],
    )


def _batch(
    recipe: Recipe,
    pictures: Pictures,
    stats: Mapping[Any, DimensionStats],
    prompts: Prompts,
    index: list[int],
    *,
    resized: bool = True,
) -> Batch:
    config, data, width = recipe.data, pictures.data, recipe.model.action_dim
    chunks = np.stack([data.action_chunk(i, recipe.model.action_horizon)[0] for i in index])
    tasks = [prompts[data.task_index(i)] for i in index]
    return {
        "images": {
            camera: pictures.get(index, name, resized=resized)
            for camera, name in config.cameras.items()
            if name is not None
        },
        "tokens": np.stack([tokens for tokens, _ in tasks]),
        "token_mask": np.stack([mask for _, mask in tasks]),
        "actions": pad_last(normalize(chunks, stats["actions"], config.normalization), width),
        "index": np.asarray(index, np.int64),
    } | _states(config, data, stats, width, index)


def _states(
    config: Data, data: LeRobotDataset, stats: Mapping[Any, DimensionStats], width: int, index: list[int]
) -> Batch:
    """The normalized and padded states; empty if the dataset or the statistics have none."""
    if config.state is None or "state" not in stats:
        return {}
    states = normalize(np.stack([data.state(i) for i in index]), stats["state"], config.normalization)
    return {"state": pad_last(states, max(width, states.shape[-1]))}


def _prompts(recipe: Recipe, data: LeRobotDataset, length: int) -> Prompts:
    """Tokens [L] and mask [L] of every task, padded with 0 or cut to L."""
    tokenizer = tokenizer_of(recipe)
    prompts = {}
    for index, task in data.tasks.items():
        found = tokenizer.encode(task)[:length]
        tokens = np.zeros(length, np.int32)
        tokens[: len(found)] = found
        prompts[index] = tokens, np.arange(length) < len(found)
    return prompts


def _check(
    data: LeRobotDataset, dataset: Dataset, frames: int, batch_size: int, shard: int, shards: int
) -> None:
    if data.frames != dataset.frames:
        raise HarnessError(
            "dataset-changed",
            f"{data.path} is not the dataset that dataset.json describes",
            got=f"{data.frames} frames",
            need=f"{dataset.frames} frames",
            fix="harness data and harness stats again, into a new run",
        )
    if frames < batch_size:
        rest = "" if frames == data.frames else ", without the episodes that train.holdout holds out,"
        raise HarnessError(
            "dataset-smaller-than-batch",
            f"{data.path}{rest} has fewer frames than a global batch",
            got=frames,
            need=f"at least {batch_size}",
            fix=f"--set train.global_batch={frames}, or a larger dataset",
        )
    if batch_size % shards or not 0 <= shard < shards:
        raise HarnessError(
            "batch-not-divisible",
            "the global batch cannot be shared evenly by the processes",
            got=f"batch {batch_size}, process {shard} of {shards}",
            need=f"a multiple of {shards}",
            fix=f"--set train.global_batch={max(1, batch_size // shards) * shards}",
        )
