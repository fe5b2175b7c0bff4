"""Decides from batch times whether the loader, not the device, limits the speed of training."""

from __future__ import annotations

import math
import os
from collections import deque
from statistics import median

from harness.artifacts import Dataset, Feature
from harness.data.pictures import MOST_TIMES, travels
from harness.errors import HarnessError

WORKERS = "HARNESS_LOADER_WORKERS"
# Batches in the estimate. The first batches of a run count too: no batch is made only to be measured.
_BATCHES = 20
# The share of the step's time from which on the loader counts as the bottleneck.
_SHARE = 0.9


class Pace:
    """Measures the time that `parallel` threads or processes take for a batch of `samples`."""

    def __init__(self, dataset: Dataset, samples: int, parallel: int, size: int) -> None:
        self._dataset, self._samples, self._parallel, self._size = dataset, samples, parallel, size
        self._made_s: deque[float] = deque(maxlen=_BATCHES)
        self._told = False

    def made(self, seconds: float) -> None:
        """Records that one thread or process made a batch in `seconds`."""
        self._made_s.append(seconds)

    @property
    def samples_per_s(self) -> float | None:
        """Samples per second that the loader can deliver; None before there are enough batches."""
        if len(self._made_s) < _BATCHES:
            return None
        return self._samples * self._parallel / max(median(self._made_s), 1e-9)

    def bottleneck(self, step_s: float) -> str | None:
        """A message, given once, if steps of `step_s` seconds last as long as the loader needs; else None."""
        pace = self.samples_per_s
        if self._told or pace is None or self._samples / pace < _SHARE * step_s:
            return None
        self._told = True
        return (
            f"the loader, not the device, sets the pace: it makes {pace:.1f} samples a second, and a step of"
            f" {self._samples} takes {step_s:.2f} s. " + "; ".join(self._advice())
        )

    def _advice(self) -> list[str]:
        cores = len(os.sched_getaffinity(0))
        used = [self._dataset.features[name] for name in self._dataset.cameras.values() if name is not None]
        advice = []
        if self._parallel < cores:
            advice.append(f"{WORKERS}={cores} makes batches in as many processes as there are cores")
        else:
            advice.append(
                f"all {cores} cores make batches already: give the container more cores (docker run --cpus)"
            )
        if any(feature.dtype == "video" for feature in used):
            advice.append("a dataset with images in parquet instead of video decodes one frame for one frame")
        if not all(travels(*_height_and_width(feature), self._size) for feature in used):
            most = math.isqrt(MOST_TIMES) * self._size
            advice.append(
                f"square images of at most {most} × {most} are resized by the device, and these by the cores:"
                " store them so"
            )
        return advice


def _height_and_width(feature: Feature) -> tuple[int, int]:
    """Height and width from the metadata's shape, whose channels may be first or last."""
    shape = feature.shape if feature.shape[-1:] and feature.shape[-1] <= 4 else feature.shape[1:]
    return (shape[0], shape[1]) if len(shape) > 1 else (0, 1)


def workers_from_environment() -> int:
    """Number of processes that make batches: $HARNESS_LOADER_WORKERS, else 0 (threads of this process).

    Raises: HarnessError "loader-workers-invalid".
    """
    text = os.environ.get(WORKERS) or "0"
    if not text.isdecimal() or int(text) > 256:
        raise HarnessError(
            "loader-workers-invalid",
            f"{WORKERS} is not a number of processes",
            got=text,
            need="0 to 256",
            fix=f"unset {WORKERS}, or {WORKERS}=4",
        )
    return int(text)
