"""Measures the parameters of a save on the held-out episodes, and keeps held_out.jsonl.

A pass reads the parameters to deploy, and draws nothing from the training's random numbers. Training is the
same bit for bit with and without it. It begins when the save's arrays are on the host, so that the save is
whole whatever becomes of the pass.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from harness.artifacts.held_out import HeldOutLine, Switch, line_of
from harness.data.held_out_rows import SAMPLING_STEPS, RecordedSwitch, Rows, count_of, rows_of
from harness.data.loader import Loader
from harness.data.stats import LARGE_NORMALIZED, TINY_SHARE
from harness.data.transforms import normalize, unnormalize
from harness.errors import HarnessError
from harness.model.pi05 import Params
from harness.received.files import METRICS_BYTES, read_received, there
from harness.received.writing import open_to_write
from harness.run.directory import HELD_OUT_KERNELS, cannot_write, write_atomic
from harness.run.job import Job
from harness.run.watcher import Watcher
from harness.train.feed import feed
from harness.train.held_out_program import HeldOutProgram, compile_held_out, deployed
from harness.train.kernels import compile_pinned
from harness.train.setup import Setup
from harness.train.state import TrainState
from harness.units import format_bytes, format_seconds

# The share of a run's time that its passes may take before it says so.
MOST_SHARE = 0.02


def is_measured(job: Job, step: int) -> bool:
    """True if the save after `step` steps is measured: one of the recipe's cadence, or the last.

    A save that a stop asked for is not. The file of a run that was stopped is therefore that of one that was
    not.
    """
    train = job.recipe.train
    return step > 0 and (step % train.save_every_steps == 0 or step == train.steps)


def compiled_for(job: Job, setup: Setup, watcher: Watcher) -> HeldOutProgram | None:
    """The compiled pass, checked to fit the plan's device. None if the recipe holds nothing out.

    Raises: HarnessError "does-not-fit".
    """
    holdout = job.recipe.train.holdout
    if holdout is None or not job.keeps:
        return None
    watcher.say("compiling the held-out pass")
    program, _ = compile_pinned(
        job.run,
        job.levers.platform,
        lambda options: compile_held_out(
            setup, job.levers, count_of(holdout, len(job.dataset.held_out)), options=options or None
        ),
        watcher.warn,
        name=HELD_OUT_KERNELS,
    )
    usable = job.plan.usable_bytes
    if usable is not None and program.device_bytes > usable:
        raise HarnessError(
            "does-not-fit",
            f"the held-out pass does not fit {job.plan.device} beside the state; nothing was allocated",
            got=f"{format_bytes(usable)} usable",
            need=f"{format_bytes(program.device_bytes)} by XLA's buffer assignment",
            fix="free the device's memory (harness probe shows who holds it), or --set train.holdout=null",
        )
    return program


class Measured(NamedTuple):
    """Losses [N] of the rows, and their sampled actions [N, A, E], normalized."""

    losses: np.ndarray
    sampled: np.ndarray


class HeldOutPass:
    """The pass over the rows of one run."""

    def __init__(self, job: Job, program: HeldOutProgram, loader: Loader) -> None:
        recipe, holdout = job.recipe, job.recipe.train.holdout
        assert holdout is not None
        self._job, self._program, self._loader = job, program, loader
        self.rows: Rows = rows_of(
            holdout, loader.data, job.dataset.held_out, recipe.model.action_horizon, recipe.model.action_dim
        )

    def run(self, step: int, params: tuple[Params, Params], stop: Sequence[int] = ()) -> HeldOutLine | None:
        """The line of the parameters `params`. None if `stop` is filled meanwhile."""
        before, measured = time.monotonic(), []
        for start in range(0, len(self.rows.frames), self._program.rows):
            if stop:
                return None
            measured.append(self._some(params, start))
        losses, sampled = (
            np.concatenate(parts)[: len(self.rows.frames)] for parts in zip(*measured, strict=True)
        )
        return self._line(step, Measured(losses, sampled), time.monotonic() - before)

    def odd(self) -> list[str]:
        """A warning for each dimension of the held-out actions that lies far outside of the others."""
        stats, mode = self._job.stats.norm_stats["actions"], self._job.recipe.data.normalization
        horizon, data = self._job.recipe.model.action_horizon, self._loader.data
        chunks = np.stack([data.action_chunk(i, horizon)[0] for i in self.rows.frames])
        largest = np.abs(normalize(chunks, stats, mode)).max(axis=(0, 1))
        return [
            f"actions[{d}] of the held-out episodes reaches {largest[d]:.3g} when normalized, which rules the"
            " held-out loss: it hardly moves in the episodes that are trained on; --set"
            " data.degenerate_dimensions=pass_through, or other episodes by --set train.holdout.seed=1"
            for d in np.flatnonzero(largest > LARGE_NORMALIZED)
        ]

    def _some(self, params: tuple[Params, Params], start: int) -> Measured:
        """The rows from `start` on, as many as the program takes. Missing ones are the last row again."""
        rows, layout = self.rows, self._program.setup.layout
        at = [min(start + i, len(rows.frames) - 1) for i in range(self._program.rows)]
        batch = self._loader.frames([rows.frames[i] for i in at])
        inputs = feed(batch, layout.rows, self._job.recipe.model.image_size)
        inputs |= jax.device_put(
            {"noise": rows.noise[at], "start": rows.start[at], "time": rows.time[at]}, layout.rows
        )
        losses, sampled = self._program.run(*params, inputs)
        return Measured(np.asarray(losses), np.asarray(sampled))

    def _line(self, step: int, measured: Measured, seconds: float) -> HeldOutLine:
        rows, recipe, data = self.rows, self._job.recipe, self._loader.data
        stats, actions = self._job.stats.norm_stats["actions"], self._in_robots_units(measured.sampled)
        chunks = [data.action_chunk(i, recipe.model.action_horizon) for i in rows.frames[: rows.measured]]
        errors = np.stack(
            [
                np.abs(sampled - recorded)[~is_pad].mean(axis=0, dtype=np.float64)
                for sampled, (recorded, is_pad) in zip(actions, chunks, strict=False)
            ]
        )  # [measured, D]
        owners = np.array(rows.episode[: rows.measured])
        episodes = sorted(set(rows.episode[: rows.measured]))
        of = [owners == episode for episode in episodes]
        return HeldOutLine(
            step=step,
            parameters="trained" if recipe.train.ema_decay is None else "average",
            rows_sha256=rows.sha256,
            sampling_steps=SAMPLING_STEPS,
            episodes=episodes,
            frames=[int(mine.sum()) for mine in of],
            loss=[_finite(measured.losses[: rows.measured][mine].mean(dtype=np.float64)) for mine in of],
            error=[[_finite(value) for value in errors[mine].mean(axis=0)] for mine in of],
            spread=_spread(stats.q01, stats.q99, stats.std, recipe.data.normalization),
            switches=[self._switch(each, actions[each.row]) for each in rows.switches],
            seconds=seconds,
            time=time.time(),
        )

    def _in_robots_units(self, sampled: np.ndarray) -> np.ndarray:
        """The sampled actions of the rows as the dataset records actions. Shapes: [N, A, E] to [N, A, D]."""
        return unnormalize(
            sampled, self._job.stats.norm_stats["actions"], self._job.recipe.data.normalization
        )

    def _switch(self, recorded: RecordedSwitch, actions: np.ndarray) -> Switch:
        """The recorded switch beside the nearest predicted one of the same direction. Shape: actions [A, D].

        A chunk that begins after the switch has it at its first frame, or earlier.
        """
        middle = next(two.middle for two in self.rows.two_valued if two.dimension == recorded.dimension)
        values = actions[:, recorded.dimension]
        upper = values > middle
        found = [
            int(t) for t in np.flatnonzero(upper[1:] != upper[:-1]) + 1 if bool(upper[t]) == recorded.after
        ]
        if not found and np.isfinite(values).all() and (upper == recorded.after).all():
            found = [0]
        offset = min((t - recorded.offset for t in found), key=abs, default=None)
        room = (recorded.offset, len(values) - 1 - recorded.offset)
        return Switch(dimension=recorded.dimension, episode=recorded.episode, offset=offset, room=room)


class HeldOutFile:
    """held_out.jsonl: one line a measured save. A line is appended whole, or dropped at the next start."""

    def __init__(self, path: Path, *, start_step: int | None) -> None:
        """Keeps the lines up to `start_step`; None keeps all.

        A killed run may have measured saves after its last whole checkpoint; those steps are computed again.
        Raises: UnsafeFile.
        """
        kept: list[bytes] = []
        self._known: set[tuple[int, str]] = set()
        data = read_received(path, path.parent, METRICS_BYTES) if there(path) else b""
        for text in data.splitlines():
            line = line_of(text)
            if line is not None and (start_step is None or line.step <= start_step):
                kept.append(text + b"\n")
                self._known.add((line.step, line.rows_sha256))
        if b"".join(kept) != data:
            write_atomic(path, b"".join(kept))
        self._path = path

    def has(self, step: int, rows_sha256: str) -> bool:
        return (step, rows_sha256) in self._known

    def write(self, line: HeldOutLine) -> None:
        """Appends the line. Returns when the disk has it.

        Raises: HarnessError "disk-full" or "not-writable"; UnsafeFile.
        """
        rest = line.model_dump_json().encode() + b"\n"
        try:
            with os.fdopen(open_to_write(self._path, append=True), "r+b", buffering=0) as file:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._known.add((line.step, line.rows_sha256))


def values_of(line: HeldOutLine) -> dict[str, Any]:
    """The values of a line that wandb shows: means over the episodes, and the share of missed switches."""
    found: dict[str, float] = {}
    for name, each in [("loss", line.loss), *_errors(line)]:
        known = [value for value in each if value is not None]
        if len(known) == len(each):
            found[f"held_out/{name}"] = math.fsum(known) / len(known)
    if line.switches:
        missed = sum(switch.offset is None for switch in line.switches)
        found["held_out/switches_missed"] = missed / len(line.switches)
    return found


def _errors(line: HeldOutLine) -> list[tuple[str, list[float | None]]]:
    return [(f"action_error_{d}", [row[d] for row in line.error]) for d in range(len(line.spread))]


def _spread(q01: list[float], q99: list[float], std: list[float], mode: str) -> list[float | None]:
    """The normalization's spread of each dimension; None for one that does not move."""
    quantile = [(b - a, max(abs(a), abs(b))) for a, b in zip(q01, q99, strict=True)]
    pairs = (
        quantile
        if mode == "quantile"
        else [(wide, size) for wide, (_, size) in zip(std, quantile, strict=True)]
    )
    return [wide if wide > TINY_SHARE * size else None for wide, size in pairs]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class Saves:
    """What a training run does about the held-out episodes at its saves. Without a holdout: nothing."""

    def __init__(
        self, job: Job, program: HeldOutProgram | None, loader: Loader, watcher: Watcher, *, start_step: int
    ) -> None:
        self._job, self._watcher, self._passes = job, watcher, 0
        self._pass = None if program is None else HeldOutPass(job, program, loader)
        if self._pass is None:
            return
        self._file = HeldOutFile(job.run.held_out, start_step=start_step)
        rows = self._pass.rows
        for text in self._pass.odd():
            watcher.warn(text)
        watcher.say(
            f"at each save {rows.measured} frames and {len(rows.switches)} switches of"
            f" {len(set(rows.episode))} held-out episodes are measured"
        )

    def measure(self, state: TrainState, step: int, stop: Sequence[int]) -> HeldOutLine | None:
        """The line of the state after `step` steps, which is now in the file.

        None if this save is not measured, was measured before, or is left off because of `stop`. A resume
        from this save makes up for a pass that was left off.

        Raises: HarnessError of `HeldOutFile.write`.
        """
        wanted = self._pass is not None and is_measured(self._job, step)
        if self._pass is None or not wanted or self._file.has(step, self._pass.rows.sha256):
            return None
        self._watcher.phase("held-out pass")
        line = self._pass.run(step, deployed(state), stop)
        if line is None:
            self._watcher.say(
                f"the held-out pass of step {step} was left off; --resume, or harness choose --fill, makes up"
                " for it"
            )
            return None
        self._file.write(line)
        self._tell(line)
        return line

    def tell_cost(self, line: HeldOutLine, step_s: float | None) -> None:
        """Says once if the passes take more of the run's time than they should, and how many frames do not.

        The first pass of a process is left out, because it reads the pictures for the first time.
        """
        self._passes += 1
        holdout, every = self._job.recipe.train.holdout, self._job.recipe.train.save_every_steps
        if self._passes != 2 or step_s is None or holdout is None:
            return
        share = line.seconds / (line.seconds + every * step_s)
        if share > MOST_SHARE:
            fewer = max(1, int(sum(line.frames) * MOST_SHARE / share))
            self._watcher.say(
                f"the held-out pass took {format_seconds(line.seconds)}, {share:.0%} of the time from save to"
                f" save; --set train.holdout.frames={fewer} in the next run, or rarer saves, make it"
                f" {MOST_SHARE:.0%}"
            )

    def _tell(self, line: HeldOutLine) -> None:
        values = values_of(line)
        loss = values.get("held_out/loss")
        if loss is None or any(value is None for row in line.error for value in row):
            self._watcher.warn(
                f"step {line.step}: the held-out loss or a sampled action is not finite; this save is of no"
                " use"
            )
        else:
            missed = values.get("held_out/switches_missed")
            switches = "" if missed is None else f", {missed:.0%} of the switches missed"
            self._watcher.say(f"step {line.step}: held-out loss {loss:.4f}{switches}")
