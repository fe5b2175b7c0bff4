"""Training batches, in an order that depends only on seed and step.

Legend: B frames per batch (of this shard), H action horizon, D action_dim, L prompt tokens, S image size.

Grain provides the order and the threads or processes. Grain imports JAX, so this module imports Grain only
when a loader is made. By then the trainer has imported JAX itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Sequence
from multiprocessing import parent_process
from typing import Any, cast

import numpy as np

from harness.artifacts import Dataset, NormStats
from harness.data.batch import Batch, Source, Stats, batch_of, mixed_batch, own_stats
from harness.data.held_out import Kept
from harness.data.opened import Opened, open_each
from harness.data.order import Frame, Order
from harness.data.pace import Pace, workers_from_environment
from harness.data.pictures import Pictures
from harness.data.prompts import Prompts
from harness.data.space_check import check_has_state
from harness.errors import HarnessError
from harness.recipe.schema import Recipe

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
        opened = open_each(recipe, dataset)
        for one in opened:
            _check_unchanged(one)
        self._firsts = np.cumsum([0, *(one.data.frames for one in opened)])
        frames = [one.trained for one in opened]
        _check(dataset, sum(frames), batch_size, shard, shards)
        share = batch_size // shards
        rows = range(shard * share, (shard + 1) * share)
        order = Order(frames, [one.share for one in opened], seed, batch_size, rows)
        self._workers = workers_from_environment() if workers is None else workers
        self._threads = min(_MOST_THREADS, _THREADS_A_CORE * len(os.sched_getaffinity(0)))
        self._pace = Pace(dataset, share, self._workers or self._threads, recipe.model.image_size)
        sources = []
        readers = max(1, self._workers) * len(opened)
        for one in opened:
            part, data, own = one.recipe, one.data, cast(Stats, stats.norm_stats)
            data.share_memory_with(readers)
            if dataset.members:
                own = own_stats(own, part.data, one.described.features)
            check_has_state(part, own)
            pictures = Pictures(data, recipe.model.image_size, KEPT_BYTES // readers)
            sources.append(Source(part, pictures, own, Prompts(part, data.tasks, dataset.prompt_tokens)))
        self._batches = _Batches(recipe, sources, order, [one.kept for one in opened])

    def frames(self, index: list[int]) -> Batch:
        """The frames of these numbers as a batch, as `iterate` without `resized` makes it.

        Of a mixture, the numbers are those of a batch's `index`.
        """
        parts = self.dataset_of(index)
        return self._batches.of(
            [Frame(int(part), int(i - self._firsts[part])) for part, i in zip(parts, index, strict=True)]
        )

    def number_of(self, part: int, frame: int) -> int:
        """The number in a batch's `index` of a frame of the dataset at position `part` in data.datasets."""
        return int(self._firsts[part]) + frame

    def index_of(self, step: int) -> np.ndarray:
        """`index` of the whole global batch of `step`, of all shards; int64. No frame is read."""
        frames = self._batches.frames_of_all(step)
        return np.array([self.number_of(frame.part, frame.number) for frame in frames], np.int64)

    @property
    def sources(self) -> list[Source]:
        """The datasets that batches are made from."""
        return self._batches.sources

    def dataset_of(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """The position in data.datasets of each frame of a batch's `index`, int64; of one dataset: zeros."""
        return np.searchsorted(self._firsts, np.asarray(index), side="right") - 1

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

        Of a mixture also dataset int32 [B], and image_masks {camera: bool [B]}: see `mixed_batch`.

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


class _Batches:
    """The function from step to batch. Picklable, so that it can be sent to processes."""

    def __init__(self, recipe: Recipe, sources: list[Source], order: Order, kept: list[Kept | None]) -> None:
        self.recipe, self.sources, self.order, self._kept = recipe, sources, order, kept

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
        return self.of([self._of_all(frame) for frame in self.order(step)], resized=resized)

    def frames_of_all(self, step: int) -> list[Frame]:
        """The frames of the whole global batch, by their numbers in the whole datasets."""
        return [self._of_all(frame) for frame in self.order.of_all_rows(step)]

    def _of_all(self, frame: Frame) -> Frame:
        """The frame by its number in the whole dataset; the order counts those that are trained on."""
        kept = self._kept[frame.part]
        return frame if kept is None else Frame(frame.part, kept[frame.number])

    def of(self, frames: list[Frame], *, resized: bool = False) -> Batch:
        """The batch of these frames."""
        if self.recipe.data.datasets is None:
            return batch_of(self.sources[0], [frame.number for frame in frames], resized=resized)
        return mixed_batch(self.recipe, self.sources, frames, resized=resized)


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


def _check_unchanged(opened: Opened) -> None:
    data, described = opened.data, opened.described
    if data.frames != described.frames:
        raise HarnessError(
            "dataset-changed",
            f"{data.path} is not the dataset that dataset.json describes",
            got=f"{data.frames} frames",
            need=f"{described.frames} frames",
            fix="harness data and harness stats again, into a new run",
        )


def _check(dataset: Dataset, frames: int, batch_size: int, shard: int, shards: int) -> None:
    if frames < batch_size:
        rest = "" if frames == dataset.frames else ", without the episodes that train.holdout holds out,"
        raise HarnessError(
            "dataset-smaller-than-batch",
            f"{dataset.path or dataset.source}{rest} has fewer frames than a global batch",
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
