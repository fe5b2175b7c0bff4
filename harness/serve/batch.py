"""The thread that computes: requests of several clients in one batch, each row as if it were alone.

All rows of a batch have prompts of one bucket and the same cameras, and either all of them go on from a
previous chunk or none does. A batch is filled up to a compiled size. With one compiled size a request
therefore meets the same program whoever else is served, and its actions are the same bits.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from harness.errors import HarnessError
from harness.serve.inputs import Asked
from harness.serve.noise import Draw
from harness.serve.rtc import rows_of
from harness.serve.types import Engine, Inputs

# How long a batch waits for more rows. A control step of a robot takes 20 to 100 ms.
WAIT_S = 0.003
_END_S = 10


class Sampled(NamedTuple):
    """Normalized actions [H, D] of a request, the seconds that it waited, and those of its batch."""

    actions: np.ndarray
    wait_s: float
    infer_s: float
    rows: int


class _Job(NamedTuple):
    asked: Asked
    seed: int
    since: float
    future: Future[Sampled]

    @property
    def program(self) -> tuple[int, bool, frozenset[str]]:
        """What requests of one batch have in common."""
        return len(self.asked.tokens), self.asked.previous is not None, frozenset(self.asked.images)


class Batcher:
    """Computes requests in a thread of its own, so that nothing else of the server waits for the device.

    `others()` is the number of clients that could still ask: a batch does not wait for more.
    """

    def __init__(self, engine: Engine, draw: Draw, others: Callable[[], int] = lambda: 1) -> None:
        self._engine, self._draw, self._others = engine, draw, others
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._left: deque[_Job] = deque()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def submit(self, asked: Asked, seed: int) -> Future[Sampled]:
        """The future of a request's actions. A future that is cancelled in time is not computed."""
        job = _Job(asked, seed, time.perf_counter(), Future())
        self._queue.put(job)
        return job.future

    def close(self) -> None:
        """Ends the thread after the requests that it has; one that hangs ends with the process."""
        self._queue.put(None)
        self._thread.join(_END_S)

    def _run(self) -> None:
        while True:
            jobs = self._next()
            if jobs is None:
                return
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._compute(jobs)

    def _next(self) -> list[_Job] | None:
        """The requests of the next batch: the oldest, and others of its program. None at the end."""
        most, jobs, ended = self._engine.batches[-1], list(self._left), False
        self._left.clear()
        deadline = time.perf_counter() + WAIT_S if jobs else None
        while len(jobs) < most:
            if deadline is None:
                job = self._queue.get()
                deadline = time.perf_counter() + WAIT_S
            else:
                waits = len(jobs) < self._others() and not ended
                try:
                    job = self._queue.get(timeout=max(deadline - time.perf_counter(), 0) if waits else 0)
                except queue.Empty:
                    break
            if job is None:
                ended = True
                if not jobs:
                    return None
                self._queue.put(None)
                break
            jobs.append(job)
        chosen = [job for job in jobs if job.program == jobs[0].program][:most]
        taken = set(map(id, chosen))
        self._left.extend(job for job in jobs if id(job) not in taken)
        return chosen

    def _compute(self, jobs: list[_Job]) -> None:
        began = time.perf_counter()
        try:
            rows = next(size for size in self._engine.batches if size >= len(jobs))
            noise = np.zeros((rows, self._engine.horizon, self._engine.action_dim), np.float32)
            for row, job in enumerate(jobs):
                noise[row] = self._draw(job.seed)
            inputs = stacked([job.asked for job in jobs], rows)
            previous = [job.asked.previous for job in jobs if job.asked.previous is not None]
            if previous and self._engine.rtc is not None:
                found = self._engine.sample(inputs, noise, rows_of(previous, rows, self._engine.rtc))
            else:
                found = self._engine.sample(inputs, noise)
        except BaseException as error:
            # The thread goes on: what failed for these clients may do for others.
            refusal = error if isinstance(error, HarnessError) else _failed(error)
            for job in jobs:
                job.future.set_exception(refusal)
            return
        took = time.perf_counter() - began
        for row, job in enumerate(jobs):
            job.future.set_result(Sampled(found[row], began - job.since, took, len(jobs)))


def stacked(asked: list[Asked], rows: int) -> Inputs:
    """The inputs of these requests, and of black rows without a prompt up to `rows`."""
    images = {}
    for camera, first in asked[0].images.items():
        images[camera] = np.zeros((rows, *first.shape), np.uint8)
        for row, one in enumerate(asked):
            images[camera][row] = one.images[camera]
    tokens = np.zeros((rows, len(asked[0].tokens)), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, one in enumerate(asked):
        tokens[row], mask[row] = one.tokens, one.token_mask
    return Inputs(images, tokens, mask)


def _failed(error: BaseException) -> HarnessError:
    return HarnessError(
        "inference-failed",
        "the model could not be computed for this request",
        got=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
        need="a device that computes",
        fix="ask again; if it happens again, restart the server: harness serve STEP",
    )
