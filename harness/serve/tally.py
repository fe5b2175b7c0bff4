"""Counts and times of a server, in memory of a fixed size, and as Prometheus' text."""

from __future__ import annotations

import threading
import time
from typing import Literal

import numpy as np

from harness.artifacts import Stage

StageName = Literal["decode", "wait", "infer", "encode", "total"]
STAGES: tuple[StageName, ...] = ("decode", "wait", "infer", "encode", "total")
Outcome = Literal["answered", "refused", "failed", "lost"]
OUTCOMES: tuple[Outcome, ...] = ("answered", "refused", "failed", "lost")
# Percentiles are of so many last answers: an hour of eight clients at 2 answers a second.
KEPT = 65_536
# The media type of Prometheus' text. Source: prometheus.io, "Exposition formats".
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Tally:
    """What happened so far. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times = np.zeros((KEPT, len(STAGES)))
        self._sums = np.zeros(len(STAGES))
        self._began = time.monotonic()
        self._rows = 0
        self.outcomes: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)
        self.clients = self.most_clients = self.connections = 0
        self.unauthorized = self.turned_away = self.prompts_cut = 0

    def came(self) -> None:
        """Counts a client that has connected."""
        with self._lock:
            self.connections += 1
            self.clients += 1
            self.most_clients = max(self.most_clients, self.clients)

    def went(self) -> None:
        """Counts a client that is gone."""
        with self._lock:
            self.clients -= 1

    def ended(self, outcome: Outcome) -> None:
        """Counts a request that was not answered with actions."""
        with self._lock:
            self.outcomes[outcome] += 1

    def denied(self, *, unauthorized: bool) -> None:
        """Counts a handshake that was refused: for its key, or for want of room."""
        with self._lock:
            self.unauthorized += unauthorized
            self.turned_away += not unauthorized

    def cut(self) -> bool:
        """Counts a request whose prompt is longer than the model's; True for the first."""
        with self._lock:
            self.prompts_cut += 1
            return self.prompts_cut == 1

    def answered(self, seconds: dict[StageName, float], rows: int) -> None:
        """Counts an answer, and how long each stage of it took. `rows` shared its batch."""
        with self._lock:
            values = [seconds[name] for name in STAGES]
            self._times[self.outcomes["answered"] % KEPT] = values
            self._sums += values
            self.outcomes["answered"] += 1
            self._rows += rows

    @property
    def seconds(self) -> float:
        """Seconds since the server began."""
        return time.monotonic() - self._began

    @property
    def timed(self) -> int:
        """The number of answers that the percentiles are of."""
        return min(self.outcomes["answered"], KEPT)

    @property
    def rows_a_batch(self) -> float | None:
        """The mean number of requests that shared an answer's batch; None before the first answer."""
        answers = self.outcomes["answered"]
        return self._rows / answers if answers else None

    def stages(self) -> dict[StageName, Stage]:
        """Percentiles of each stage."""
        with self._lock:
            times = self._times[: self.timed].copy()
        if not len(times):
            return {name: Stage(p50_ms=None, p95_ms=None, p99_ms=None) for name in STAGES}
        found = 1000 * np.percentile(times, [50, 95, 99], axis=0)
        return {
            name: Stage(p50_ms=float(p50), p95_ms=float(p95), p99_ms=float(p99))
            for name, (p50, p95, p99) in zip(STAGES, found.T, strict=True)
        }

    def text(self, *, draining: bool) -> str:
        """The metrics in Prometheus' text."""
        lines = [
            "# HELP harness_serve_requests_total Requests by what became of them.",
            "# TYPE harness_serve_requests_total counter",
            *(
                f'harness_serve_requests_total{{outcome="{name}"}} {count}'
                for name, count in self.outcomes.items()
            ),
            "# HELP harness_serve_denied_total Handshakes that were refused.",
            "# TYPE harness_serve_denied_total counter",
            f'harness_serve_denied_total{{why="key"}} {self.unauthorized}',
            f'harness_serve_denied_total{{why="room"}} {self.turned_away}',
            "# HELP harness_serve_prompts_cut_total Requests whose prompt was longer than the model's.",
            "# TYPE harness_serve_prompts_cut_total counter",
            f"harness_serve_prompts_cut_total {self.prompts_cut}",
            "# HELP harness_serve_connections_total Clients that have connected.",
            "# TYPE harness_serve_connections_total counter",
            f"harness_serve_connections_total {self.connections}",
            "# HELP harness_serve_clients Clients that are connected.",
            "# TYPE harness_serve_clients gauge",
            f"harness_serve_clients {self.clients}",
            "# HELP harness_serve_draining 1 while the server ends.",
            "# TYPE harness_serve_draining gauge",
            f"harness_serve_draining {int(draining)}",
            "# HELP harness_serve_stage_seconds Time of each stage; quantiles of the last answers.",
            "# TYPE harness_serve_stage_seconds summary",
        ]
        for number, (name, stage) in enumerate(self.stages().items()):
            quantiles = (("0.5", stage.p50_ms), ("0.95", stage.p95_ms), ("0.99", stage.p99_ms))
            lines += [
                f'harness_serve_stage_seconds{{stage="{name}",quantile="{q}"}} {ms / 1000:.6f}'
                for q, ms in quantiles
                if ms is not None
            ]
            lines.append(f'harness_serve_stage_seconds_sum{{stage="{name}"}} {self._sums[number]:.6f}')
            lines.append(f'harness_serve_stage_seconds_count{{stage="{name}"}} {self.outcomes["answered"]}')
        return "\n".join(lines) + "\n"
