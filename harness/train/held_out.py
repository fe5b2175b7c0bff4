"""Measures the parameters of a save on the held-out episodes, and keeps held_out.jsonl.

A pass reads the parameters to deploy, and draws nothing from the training's random numbers. Training is the
same bit for bit with and without it. It begins when the save's arrays are on the host, so that the save is
whole whatever becomes of the pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from harness.artifacts.held_out import HeldOutLine, OfDataset, Switch
from harness.data.held_out_actions import as_recorded, largest_normalized, spread_of
from harness.data.held_out_rows import SAMPLING_STEPS, RecordedSwitch, Rows, count_of, rows_of_all, shared
from harness.data.loader import Loader
from harness.data.stats import LARGE_NORMALIZED
from harness.errors import HarnessError
from harness.model.pi05 import Params
from harness.received.text import word
from harness.run.directory import HELD_OUT_KERNELS
from harness.run.job import Job
from harness.run.peers import ALONE, Peers
from harness.run.watcher import Watcher
from harness.train.arrays import put_rows, whole
from harness.train.feed import feed
from harness.train.held_out_file import HeldOutFile, values_of
from harness.train.held_out_program import HeldOutProgram, compile_held_out, deployed
from harness.train.kernels import compile_pinned
from harness.train.metrics import tell_unread
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


def compiled_for(job: Job, setup: Setup, watcher: Watcher, peers: Peers = ALONE) -> HeldOutProgram | None:
    """The compiled pass, checked to fit the plan's device. None if the recipe holds nothing out.

    Raises: HarnessError "does-not-fit".
    """
    holdout = job.recipe.train.holdout
    if holdout is None or not job.keeps:
        return None
    watcher.say("compiling the held-out pass")
    parts = job.dataset.parts
    each = zip(shared(holdout, len(parts)), parts, strict=True)
    rows = sum(count_of(own, len(part.held_out)) for own, part in each)
    program, _ = compile_pinned(
        job.run,
        job.levers.platform,
        lambda options: compile_held_out(setup, job.levers, rows, options=options or None),
        watcher.warn,
        name=HELD_OUT_KERNELS,
        peers=peers,
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

    def __init__(self, job: Job, program: HeldOutProgram, loader: Loader, peers: Peers = ALONE) -> None:
        recipe, holdout = job.recipe, job.recipe.train.holdout
        assert holdout is not None
        self._job, self._program, self._loader, self._peers = job, program, loader, peers
        self._sources = loader.sources
        left_out = [part.held_out for part in job.dataset.parts]
        datasets = [source.pictures.data for source in self._sources]
        self.rows: Rows = rows_of_all(
            holdout,
            list(zip(datasets, left_out, strict=True)),
            recipe.model.action_horizon,
            recipe.model.action_dim,
        )

    def run(
        self, step: int, params: tuple[Params, Params], stop: Callable[[], bool] = lambda: False
    ) -> HeldOutLine | None:
        """The line of the parameters `params`. None if `stop` says so meanwhile."""
        before, measured = time.monotonic(), []
        for start in range(0, len(self.rows.frames), self._program.rows):
            if stop():
                return None
            measured.append(self._some(params, start))
        losses, sampled = (
            np.concatenate(parts)[: len(self.rows.frames)] for parts in zip(*measured, strict=True)
        )
        return self._line(step, Measured(losses, sampled), time.monotonic() - before)

    def odd(self) -> list[str]:
        """A warning for each dimension of the held-out actions that lies far outside of the others."""
        names = [f" of {one.source}" for one in self._job.dataset.members] or [""]
        found = []
        for part, (source, name) in enumerate(zip(self._sources, names, strict=True)):
            largest = largest_normalized(source, [self.rows.frames[row] for row in self._of(part)])
            found += [
                f"actions[{d}] of the held-out episodes{name} reaches {largest[d]:.3g} when normalized, which"
                " rules the held-out loss: it hardly moves in the episodes that are trained on; --set"
                " data.degenerate_dimensions=pass_through, or other episodes by --set train.holdout.seed=1"
                for d in np.flatnonzero(largest > LARGE_NORMALIZED)
            ]
        return found

    def _of(self, part: int) -> list[int]:
        """The rows of the dataset at this position, ascending."""
        return [row for row, mine in enumerate(self.rows.part) if mine == part]

    def _some(self, params: tuple[Params, Params], start: int) -> Measured:
        """The rows from `start` on, as many as the program takes. Missing ones are the last row again."""
        rows, layout = self.rows, self._program.setup.layout
        share = self._program.rows // self._peers.count
        mine = range(self._peers.index * share, (self._peers.index + 1) * share)
        at = [min(start + i, len(rows.frames) - 1) for i in mine]
        batch = self._loader.frames([self._loader.number_of(rows.part[i], rows.frames[i]) for i in at])
        inputs = feed(batch, layout.rows, self._job.recipe.model.image_size)
        inputs |= put_rows(
            {"noise": rows.noise[at], "start": rows.start[at], "time": rows.time[at]}, layout.rows
        )
        losses, sampled = self._program.run(*params, inputs)
        return Measured(np.asarray(whole(losses)), np.asarray(whole(sampled)))

    def _line(self, step: int, measured: Measured, seconds: float) -> HeldOutLine:
        rows, recipe = self.rows, self._job.recipe
        actions = self._in_robots_units(measured.sampled)
        errors = [self._error(row, actions[row]) for row in range(rows.measured)]  # each [D]
        owners = [(rows.part[row], rows.episode[row]) for row in range(rows.measured)]
        episodes = sorted(set(owners))
        of = [[row for row, owner in enumerate(owners) if owner == episode] for episode in episodes]
        spreads = [spread_of(source) for source in self._sources]
        alone = len(spreads) == 1
        return HeldOutLine(
            step=step,
            parameters="trained" if recipe.train.ema_decay is None else "average",
            rows_sha256=rows.sha256,
            sampling_steps=SAMPLING_STEPS,
            episodes=[episode for _, episode in episodes],
            frames=[len(mine) for mine in of],
            loss=[_finite(measured.losses[mine].mean(dtype=np.float64)) for mine in of],
            error=[
                [_finite(value) for value in np.stack([errors[row] for row in mine]).mean(axis=0)]
                for mine in of
            ],
            spread=spreads[0] if alone else [],
            datasets=[] if alone else self._datasets([part for part, _ in episodes], spreads),
            switches=[self._switch(each, actions[each.row]) for each in rows.switches],
            seconds=seconds,
            time=time.time(),
        )

    def _in_robots_units(self, sampled: np.ndarray) -> dict[int, np.ndarray]:
        """The sampled actions of each row as its dataset records actions: [N, A, E] to [A, D] each."""
        found: dict[int, np.ndarray] = {}
        for part, source in enumerate(self._sources):
            rows = self._of(part)
            found |= zip(
                rows,
                as_recorded(source, sampled[rows], [self.rows.frames[row] for row in rows]),
                strict=True,
            )
        return found

    def _error(self, row: int, sampled: np.ndarray) -> np.ndarray:
        """The mean absolute error of each dimension of a row's chunk, padding left out. [A, D] to [D]."""
        data = self._sources[self.rows.part[row]].pictures.data
        recorded, is_pad = data.action_chunk(self.rows.frames[row], len(sampled))
        error: np.ndarray = np.abs(sampled - recorded)[~is_pad].mean(axis=0, dtype=np.float64)
        return error

    def _datasets(self, owners: list[int], spreads: list[list[float | None]]) -> list[OfDataset]:
        """What a line says of each dataset of a mixture. `owners` has the position of each episode's."""
        dataset = self._job.dataset
        return [
            OfDataset(dataset=one.source, share=share, episodes=owners.count(part), spread=spreads[part])
            for part, (one, share) in enumerate(zip(dataset.members, dataset.shares, strict=True))
        ]

    def _switch(self, recorded: RecordedSwitch, actions: np.ndarray) -> Switch:
        """The recorded switch beside the nearest predicted one of the same direction. Shape: actions [A, D].

        A chunk that begins after the switch has it at its first frame, or earlier.
        """
        values = actions[:, recorded.dimension]
        upper = values > recorded.middle
        found = [
            int(t) for t in np.flatnonzero(upper[1:] != upper[:-1]) + 1 if bool(upper[t]) == recorded.after
        ]
        if not found and np.isfinite(values).all() and (upper == recorded.after).all():
            found = [0]
        offset = min((t - recorded.offset for t in found), key=abs, default=None)
        room = (recorded.offset, len(values) - 1 - recorded.offset)
        return Switch(
            dimension=recorded.dimension,
            episode=recorded.episode,
            offset=offset,
            room=room,
            part=self.rows.part[recorded.row],
        )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class Saves:
    """What a training run does about the held-out episodes at its saves. Without a holdout: nothing."""

    def __init__(
        self,
        job: Job,
        program: HeldOutProgram | None,
        loader: Loader,
        watcher: Watcher,
        *,
        start_step: int,
        peers: Peers = ALONE,
    ) -> None:
        self._job, self._watcher, self._peers, self._passes = job, watcher, peers, 0
        self._pass = None if program is None else HeldOutPass(job, program, loader, peers)
        if self._pass is None:
            return
        self._open(start_step)
        rows = self._pass.rows
        for text in self._pass.odd():
            watcher.warn(text)
        watcher.say(
            f"at each save {rows.measured} frames and {len(rows.switches)} switches of"
            f" {len(set(rows.episode))} held-out episodes are measured"
        )

    def _open(self, start_step: int) -> None:
        """Opens held_out.jsonl, which drops what a killed run has left there. Only process 0 has the file."""

        def opened() -> None:
            path = self._job.run.held_out
            self._file = HeldOutFile(path, start_step=start_step)
            tell_unread(path, self._file.unread, self._watcher)

        self._peers.first(opened)

    def measure(self, state: TrainState, step: int, stop: Callable[[], bool]) -> HeldOutLine | None:
        """The line of the state after `step` steps, which is now in the file.

        None if this save is not measured, was measured before, or is left off because of `stop`. A resume
        from this save makes up for a pass that was left off; from the last one there is none.

        Raises: HarnessError of `HeldOutFile.write`.
        """
        if self._pass is None or not is_measured(self._job, step):
            return None
        known = self._peers.index == 0 and self._file.has(step, self._pass.rows.sha256)
        if self._peers.agree("measured" if known else ""):
            return None
        self._watcher.phase("held-out pass")
        line = self._pass.run(step, deployed(state), stop)
        if line is None:
            fix = f"harness choose {word(self._job.run.path)} --fill"
            if step < self._job.recipe.train.steps:
                fix = f"--resume, or {fix},"
            self._watcher.say(f"the held-out pass of step {step} was left off; {fix} makes up for it")
            return None
        self._peers.first(lambda: self._file.write(line))
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
