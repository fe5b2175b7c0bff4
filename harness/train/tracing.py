"""Traces a few steps of a run. `harness profile` reads what is written here: what ran, and of which program.

The first two steps of a process are left out: they meet caches that are empty and a loader that begins. A
trace ends before a save, so a step next to one may make it shorter.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from harness.artifacts import Traced
from harness.errors import HarnessError
from harness.received.text import one_line, word
from harness.run.directory import PROFILE, PROGRAM, RunDir
from harness.run.job import Job
from harness.run.watcher import Watcher
from harness.train.compiled import CompiledStep

_WARM = 2


class Tracer:
    """Traces `job.profile` steps of a run; none if that is 0, or if this is not the first process."""

    def __init__(self, job: Job, compiled: CompiledStep, watcher: Watcher, *, first: bool = True) -> None:
        self._job, self._compiled, self._watcher = job, compiled, watcher
        self._wanted = job.profile if first else 0
        self._seen = self._traced = 0
        self._began: float | None = None

    def begin(self, latest: Any) -> None:
        """Before a step. `latest` are values of the step before it, which may still be computed."""
        self._seen += 1
        if not self._wanted or self._seen <= _WARM:
            return
        if self._began is None:
            jax.block_until_ready(latest)
            with self._or_none():
                self._start()
                self._began = time.monotonic()
        self._traced += 1

    def end(self, step: int, values: Any, *, saves: bool) -> float:
        """After step `step`, whose values may still be computed: the seconds that writing the trace took."""
        if self._began is None or not (saves or self._traced == self._wanted):
            return 0.0
        jax.block_until_ready(values)
        ended = time.monotonic()
        seconds, self._began = ended - self._began, None
        with self._or_none():
            self._write(step, seconds)
        self._wanted = 0
        return time.monotonic() - ended

    def close(self) -> None:
        """Ends a trace whose run ends in an error, and says so if there was never one."""
        if self._began is not None:
            self._began = None
            with self._or_none():
                jax.profiler.stop_trace()
        elif self._wanted:
            self._watcher.warn(
                f"no step was profiled: a profile begins with step {_WARM + 1} of a start, and this one had"
                f" {self._seen}"
            )

    @contextlib.contextmanager
    def _or_none(self) -> Iterator[None]:
        """A failure inside costs the profile, and no training: a full disk, a driver without a profiler."""
        try:
            yield
        except (OSError, RuntimeError, HarnessError) as error:
            self._wanted = 0
            self._watcher.warn(f"no step was profiled: {one_line(str(error))[:300]}; training goes on")

    def _start(self) -> None:
        directory = self._job.run.path / PROFILE
        directory.mkdir(exist_ok=True)
        options = jax.profiler.ProfileOptions()
        # Each call of a Python function would be an event, a thousand times as many as there are kernels.
        options.python_tracer_level = 0
        jax.profiler.start_trace(str(directory), profiler_options=options)

    def _write(self, step: int, seconds: float) -> None:
        run = self._job.run
        device = self._compiled.setup.layout.mesh.devices.flat[0]
        directory = run.path / PROFILE
        before = set(directory.rglob("*.xplane.pb"))
        jax.profiler.stop_trace()
        made = sorted(set(directory.rglob("*.xplane.pb")) - before)
        (directory / PROGRAM).write_text(self._compiled.run.as_text())
        RunDir(directory).write(
            Traced(
                first_step=step - self._traced + 1,
                steps=self._traced,
                seconds=seconds,
                batch=self._job.recipe.train.global_batch,
                platform=device.platform,
                device=device.device_kind,
                devices=self._compiled.setup.layout.mesh.devices.size,
                jax=jax.__version__,
                trace=str(made[-1].relative_to(directory)) if made else None,
            )
        )
        self._watcher.say(
            f"traced {self._traced} steps; where their time went: harness profile {word(run.path)}"
        )
