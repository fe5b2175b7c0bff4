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
from typing import Any

import numpy as np

from harness.artifacts import Dataset, DimensionStats, NormStats
from harness.data.lerobot import LeRobotDataset, open_data
from harness.data.pace import Pace, workers_from_environment
from harness.data.pictures import Pictures
from harness.data.prompts import Prompts
from harness.data.space import Space
from harness.data.space_check import check_has_state
from harness.data.transforms import normalize, normalized, pad_last
from harness.errors import HarnessError
from harness.recipe.schema import Data, Recipe

Batch = dict[str, Any]

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

    Raises: HarnessError "dataset-smaller-than-batch", "batch-not-divisible", "dataset-changed",
    "stats-shape", "state-needed" or "loader-workers-invalid".
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
        data = open_data(recipe.data, dataset.path)
        _check(data, dataset, batch_size, shard, shards)
        check_has_state(recipe, stats.norm_stats)
        share = batch_size // shards
        order = _Order(data.frames, seed, batch_size, range(shard * share, (shard + 1) * share))
        self._workers = workers_from_environment() if workers is None else workers
        self._threads = min(_MOST_THREADS, _THREADS_A_CORE * len(os.sched_getaffinity(0)))
        self._pace = Pace(dataset, share, self._workers or self._threads, recipe.model.image_size)
        data.share_memory_with(self._workers)
        pictures = Pictures(data, recipe.model.image_size, KEPT_BYTES // max(1, self._workers))
        self._batches = _Batches(
            recipe, pictures, stats.norm_stats, Prompts(recipe, data.tasks, dataset.prompt_tokens), order
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
        and padded in the same way. Upstream's batch has the state; this model reads it in the prompt, or not.
        """
        return self._batches(step)

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

    Every epoch is its own permutation. A batch may begin in one epoch and end in the next.
    """

    def __init__(self, frames: int, seed: int, batch_size: int, places: range) -> None:
        self._frames, self._seed, self._batch_size, self._places = frames, seed, batch_size, places
        self._endless: Any = None

    def __call__(self, step: int) -> list[int]:
        if self._endless is None:
            import grain

            self._endless = grain.MapDataset.range(self._frames).seed(self._seed).shuffle().repeat()
        return [int(self._endless[step * self._batch_size + place]) for place in self._places]

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
        return _batch(
            self._recipe, self._pictures, self._stats, self._prompts, self._order(step), resized=resized
        )


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
        Prompts(recipe, data.tasks, recipe.model.prompt_tokens),
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
    space = Space.of(config)
    states = space.states(np.stack([data.state(i) for i in index]))
    chunks = np.stack([data.action_chunk(i, recipe.model.action_horizon)[0] for i in index])
    chunks = space.actions(chunks, states)
    seen = _normalized_states(config, stats, states)
    told = seen if seen is not None else [None] * len(index)
    tasks = [prompts(data.task_index(i), state) for i, state in zip(index, told, strict=True)]
    batch = {
        "images": {
            camera: pictures.get(index, name, resized=resized)
            for camera, name in config.cameras.items()
            if name is not None
        },
        "tokens": np.stack([tokens for tokens, _ in tasks]),
        "token_mask": np.stack([mask for _, mask in tasks]),
        "actions": pad_last(normalize(chunks, stats["actions"], config.normalization), width),
        "index": np.asarray(index, np.int64),
    }
    if seen is not None:
        batch["state"] = pad_last(seen.astype(np.float32), max(width, seen.shape[-1]))
    return batch


def _normalized_states(
    config: Data, stats: Mapping[Any, DimensionStats], states: np.ndarray
) -> np.ndarray | None:
    """The normalized states in float64; None if the dataset or the statistics have none."""
    if config.state is None or "state" not in stats:
        return None
    return normalized(states, stats["state"], config.normalization)


def _check(data: LeRobotDataset, dataset: Dataset, batch_size: int, shard: int, shards: int) -> None:
    if data.frames != dataset.frames:
        raise HarnessError(
            "dataset-changed",
            f"{data.path} is not the dataset that dataset.json describes",
            got=f"{data.frames} frames",
            need=f"{dataset.frames} frames",
            fix="harness data and harness stats again, into a new run",
        )
    if data.frames < batch_size:
        raise HarnessError(
            "dataset-smaller-than-batch",
            f"{data.path} has fewer frames than a global batch",
            got=data.frames,
            need=f"at least {batch_size}",
            fix=f"--set train.global_batch={data.frames}, or a larger dataset",
        )
    if batch_size % shards or not 0 <= shard < shards:
        raise HarnessError(
            "batch-not-divisible",
            "the global batch cannot be shared evenly by the processes",
            got=f"batch {batch_size}, process {shard} of {shards}",
            need=f"a multiple of {shards}",
            fix=f"--set train.global_batch={max(1, batch_size // shards) * shards}",
        )
