"""Trains a run from the first compile to the last checkpoint, in the order in which it happens."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from harness.artifacts import Manifest, Metrics
from harness.checkpoint.store import Store
from harness.data.loader import Loader
from harness.data.stats import to_openpi_json
from harness.errors import HarnessError
from harness.recipe.parameters import check_who_is_trained
from harness.run.job import Job
from harness.run.peers import ALONE, Peers
from harness.run.watcher import Watcher
from harness.train.cluster import stop_asked
from harness.train.compiled import CompiledStep
from harness.train.devices import layout_here
from harness.train.feed import feed, frames_digest
from harness.train.first_arrays import digests_of
from harness.train.held_out import Saves, compiled_for
from harness.train.held_out_file import values_of
from harness.train.kernels import Kernels, compile_pinned
from harness.train.later import made_later
from harness.train.manifest import describe_run
from harness.train.memory import check_fits, measure
from harness.train.metrics import as_line
from harness.train.pause import Pause
from harness.train.programs import lowered_step
from harness.train.records import Records
from harness.train.setup import setup_of
from harness.train.sharding import Layout
from harness.train.snapshot import base_of, restore, save
from harness.train.start import first_state
from harness.train.state import TrainState
from harness.train.tracing import Tracer
from harness.units import format_bytes, format_seconds


class Outcome(NamedTuple):
    step: int
    finished: bool


def train(job: Job, watcher: Watcher, peers: Peers = ALONE) -> Outcome:
    """The step at which the run ends, and whether it is the last one.

    The run ends at its last step, or where SIGTERM or Ctrl-C asked it to stop. The state is saved in both
    cases. Of several processes, process 0 writes the files of the run.
    Raises: HarnessError "does-not-fit", "loss-not-finite", and the errors of the loader, the weights and the
    checkpoints.
    """
    recipe = job.recipe
    check_who_is_trained(recipe)
    store = _store(job, peers, watcher)
    # Another machine's view of a shared directory may be some seconds old.
    start = int(peers.agree(str(store.latest() or 0)))
    if start >= recipe.train.steps:
        watcher.say(f"already trained to step {start}; nothing to do (--steps N trains further)")
        return Outcome(start, finished=True)
    with stop_asked(peers) as stop:
        # 1. Compile before anything is allocated: XLA says what the step needs, and it either fits or the run
        #    ends here.
        program = _compiled(job, watcher, peers)
        of_saves = compiled_for(job, program.step.setup, watcher, peers)
        peers.barrier()
        if stop():
            return Outcome(start, finished=False)
        # 2. The state: from the last whole checkpoint, else from the recipe's weights, else fresh.
        train_key, init_key = _keys(recipe.train.seed, program.step.setup.layout)
        state, manifest = (
            _resumed(job, program, store, start, watcher, peers)
            if start
            else _begun(job, program, init_key, watcher, peers)
        )
        # 3. The data, from where the state stands; the order of frames depends on seed and step alone.
        loader = Loader(
            recipe,
            job.dataset,
            job.stats,
            batch_size=recipe.train.global_batch,
            seed=recipe.train.seed,
            shard=peers.index,
            shards=peers.count,
        )
        records = Records(job, manifest, loader, watcher, start_step=start) if peers.index == 0 else None
        # 4. Steps, until the last one or until asked to stop.
        saves = Saves(job, of_saves, loader, watcher, start_step=start, peers=peers)
        trainer = _Trainer(job, watcher, program.step, store, records, loader, saves, peers)
        batches = loader.iterate(start, resized=False)
        try:
            step = trainer.run(state, train_key, start, batches, stop)
        finally:
            trainer.tracer.close()
            batches.close()
            if records is not None:
                records.metrics.close()
            store.close()
            if records is not None:
                records.wandb.close()
    return Outcome(step, finished=step == recipe.train.steps)


def _store(job: Job, peers: Peers, watcher: Watcher) -> Store:
    path, every = job.run.checkpoints, job.recipe.train.keep_every_steps
    streamed, told = job.levers.save == "streamed", Pause(watcher.say).wrote
    return Store(path, keep_every_steps=every, peers=peers, streamed=streamed, told=told, warn=watcher.warn)


def _keys(seed: int, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """(the key of the steps, the key of the initialization), on all devices of the layout."""
    if layout.replicated.is_fully_addressable:
        step, init = jax.device_put(jax.random.split(jax.random.key(seed)), layout.replicated)
        return step, init
    made = jax.jit(lambda: tuple(jax.random.split(jax.random.key(seed))), out_shardings=layout.replicated)
    return made()  # type: ignore[no-any-return]


class _Program(NamedTuple):
    step: CompiledStep
    kernels: Kernels


def _compiled(job: Job, watcher: Watcher, peers: Peers) -> _Program:
    """The program of a step, checked to fit the plan's device.

    Raises: HarnessError "devices-missing", "does-not-fit".
    """
    watcher.phase("compile")
    watcher.say("compiling the training step")
    setup = setup_of(job.recipe, layout_here(job.levers, peers, watcher))
    step = lowered_step(setup, job.levers)
    program = _Program(
        *compile_pinned(
            job.run, job.levers.platform, step.compile, watcher.warn, peers=peers, choice=step.choice
        )
    )
    check_fits(program.step, job.plan)
    # What imports and tracing left stays to the end. Each save collects garbage, and need not walk it again.
    gc.collect()
    gc.freeze()
    return program


def _resumed(
    job: Job, program: _Program, store: Store, start: int, watcher: Watcher, peers: Peers
) -> tuple[TrainState, Manifest | None]:
    """(the state of the checkpoint of step `start`, the run's manifest, which only process 0 has)."""
    watcher.phase("restore")
    watcher.say(f"resuming from the checkpoint of step {start}")
    state = restore(store, program.step.setup, start)
    if peers.index:
        return state, None
    manifest = job.run.read(Manifest)
    if manifest is None:
        # A replay from a checkpoint, in a directory of its own.
        manifest = describe_run(job, program.step, {"source": f"checkpoint of step {start}"}, program.kernels)
        job.run.write(manifest)
    return state, manifest


def _begun(
    job: Job, program: _Program, key: jax.Array, watcher: Watcher, peers: Peers
) -> tuple[TrainState, Manifest | None]:
    """(the state at step 0, the run's new manifest, which only process 0 has)."""
    watcher.phase("init" if job.recipe.weights.source is None else "load")
    state, weights = first_state(program.step.setup, key, watcher, peers)
    # The digests are taken before the first step, which gives the state's buffers away.
    leaves = digests_of(state, peers)
    if peers.index:
        return state, None
    manifest = describe_run(job, program.step, weights | {"leaves": leaves}, program.kernels)
    job.run.write(manifest)
    return state, manifest


class _Trainer:
    """The steps of one run, with the store, metrics and wandb that record them."""

    def __init__(
        self,
        job: Job,
        watcher: Watcher,
        compiled: CompiledStep,
        store: Store,
        records: Records | None,
        loader: Loader,
        saves: Saves,
        peers: Peers,
    ) -> None:
        self._job, self._watcher, self._compiled, self._loader = job, watcher, compiled, loader
        self._store, self._records, self._saves, self._peers = store, records, saves, peers
        self._norm_stats_json = to_openpi_json(job.stats)
        self._base = base_of(job.recipe)
        self._datasets = [one.source for one in job.dataset.members]
        # Metrics stay on the device until they are due: reading a metric waits for its step.
        self._pending: list[tuple[int, dict[str, jax.Array], str, float]] = []
        self._flushed = time.monotonic()
        self._step_s: float | None = None
        self.tracer = Tracer(job, compiled, watcher, first=peers.index == 0)

    def run(
        self,
        state: TrainState,
        key: jax.Array,
        start: int,
        batches: Iterator[dict[str, Any]],
        stop: Callable[[], bool],
    ) -> int:
        """The number of steps done, all of them saved.

        If a request to stop came before the first step, there is nothing to save.
        """
        train = self._job.recipe.train
        self._peers.barrier()
        # The pass of the checkpoint that the run goes on from, if it was left off.
        self._measure_held_out(state, start, stop)
        self._watcher.phase("step")
        self._peers.barrier()
        self._flushed, measured = time.monotonic(), False
        if start < train.steps and stop():
            return start
        for step in range(start, train.steps):
            self.tracer.begin(self._pending)
            before = time.monotonic()
            batch = next(batches)
            data_s = time.monotonic() - before
            inputs = feed(batch, self._compiled.setup.layout.rows, self._job.recipe.model.image_size)
            state, values = self._compiled.run(state, inputs, key)
            index = batch["index"] if self._peers.count == 1 else self._loader.index_of(step)
            self._pending.append((step, values, frames_digest(index), data_s))
            # While this step is computed, the next batch goes to the device. More batches under way would
            # take memory that no plan counts.
            if len(self._pending) > 1:
                jax.block_until_ready(self._pending[-2][1])
            done = step + 1
            ends = done == train.steps or stop()
            saves = ends or done % train.save_every_steps == 0
            self._flushed += self.tracer.end(done, values, saves=saves)
            if saves or done % train.log_every_steps == 0:
                self._flush()
                if ends or not measured:
                    measured = self._measure(done)
            if saves and self._job.keeps:
                self._watcher.phase("save")
                self._save(state, done)
                self._measure_held_out(state, done, stop)
                self._peers.barrier()
                self._watcher.phase("step")
            if ends:
                return done
        return start

    def _flush(self) -> None:
        """Writes the pending metrics. A loss that is not finite ends the run and is never saved."""
        fetched = [
            (step, as_line(jax.device_get(values), self._datasets), frames, data_s)
            for step, values, frames, data_s in self._pending
        ]
        self._pending.clear()
        now = time.monotonic()
        step_s, self._flushed = (now - self._flushed) / len(fetched), now
        self._step_s = step_s if self._step_s is None else min(step_s, self._step_s)
        lines = [
            Metrics(step=step, **values, frames=frames, step_s=step_s, data_s=data_s, time=time.time())
            for step, values, frames, data_s in fetched
        ]
        finite = [line for line in lines if math.isfinite(line.loss) and math.isfinite(line.grad_norm)]
        if self._records is not None:
            self._records.write(finite)
        slow = self._loader.bottleneck(step_s)
        if slow is not None:
            self._watcher.warn(slow)
        for line in finite:
            self._watcher.step(line, self._job.recipe.train.steps)
        if len(finite) < len(lines):
            bad = next(line for line in lines if line not in finite)
            raise HarnessError(
                "loss-not-finite",
                f"step {bad.step}: loss or gradient is not finite, so the update was not kept",
                got=f"loss {bad.loss}, grad_norm {bad.grad_norm}",
                fix=(
                    "lower train.optimizer.schedule.peak, or look at the findings of harness stats; the last"
                    " whole checkpoint is as it was"
                ),
            )

    def _measure(self, done: int) -> bool:
        """Writes memory.json. Always True: the value for `measured`."""
        memory = measure(self._job, self._compiled, done, self._peers)
        if self._peers.index:
            return True
        self._job.run.write(memory)
        if memory.peak_bytes is not None:
            self._watcher.say(
                f"peak {format_bytes(memory.peak_bytes)} in use on a device; the compiler said"
                f" {format_bytes(memory.compiled['device'])}"
            )
        return True

    def _measure_held_out(self, state: TrainState, step: int, stop: Callable[[], bool]) -> None:
        """Measures the state of a save on the held-out episodes, outside of the pace of the steps."""
        before = time.monotonic()
        line = self._saves.measure(state, step, stop)
        if line is not None and self._records is not None:
            self._records.wandb.held_out(step, values_of(line))
            self._saves.tell_cost(line, self._step_s)
        self._flushed += time.monotonic() - before

    def _save(self, state: TrainState, step: int) -> None:
        job, before = self._job, time.monotonic()
        if self._records is not None:
            self._records.metrics.to_disk()
        record = {
            "step": step,
            "recipe": job.recipe.model_dump(mode="json"),
            "recipe_sha256": job.recipe.sha256(),
            "plan": job.levers.model_dump(mode="json"),
            "data": {"seed": job.recipe.train.seed, "next_step": step, "dataset_sha256": job.dataset.sha256},
        }
        save(
            self._store,
            made_later(state) if job.levers.save == "streamed" else state,
            step=step,
            norm_stats_json=self._norm_stats_json,
            asset_id=job.recipe.data.asset_id,
            record=record,
            base=self._base,
        )
        if self._records is not None:
            self._records.saved(step)
        if job.levers.save == "streamed":
            # The pause is no part of the pace of the steps.
            waited = time.monotonic() - before
            self._flushed += waited
            self._watcher.say(f"saved step {step} while training waited, {format_seconds(waited)}")
