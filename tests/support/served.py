"""A server in a thread, with an engine whose answers follow from each row alone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from harness.artifacts import DimensionStats
from harness.data.tokenizer import load_tokenizer
from harness.errors import HarnessError
from harness.recipe.schema import Recipe
from harness.serve.batch import Batcher
from harness.serve.desk import Desk
from harness.serve.inputs import Reader
from harness.serve.lengths import cameras_of
from harness.serve.record import Recorder
from harness.serve.rtc import Form, PreviousRows
from harness.serve.server import Server, Settings
from harness.serve.tally import Tally
from harness.serve.types import Inputs
from tests.support.tiny import tiny


def unit_stats(width: int) -> DimensionStats:
    """Statistics under which a normalized number is nearly the number itself."""
    return DimensionStats(mean=[0.0] * width, std=[1.0] * width, q01=[-1.0] * width, q99=[1.0] * width)


class RowEngine:
    """Gives each row its noise, plus what its pictures and its prompt sum up to; after `delay_s`.

    Actions of a previous chunk are mixed in by their weights. `seen` are the batches' rows, `went_on` whether
    they had previous chunks. `fails` decides by the inputs whether to raise.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        batches: tuple[int, ...] = (1,),
        delay_s: float = 0.0,
        rtc: Form | None = None,
    ) -> None:
        self.horizon, self.action_dim = recipe.model.action_horizon, recipe.model.action_dim
        self.buckets: tuple[int, ...] = (16, recipe.model.prompt_tokens)
        self.batches, self.cameras = batches, cameras_of(recipe)
        self.delay_s = delay_s
        self.deviations: list[str] = []
        self.attention: Literal["kernels", "xla"] = "xla"
        self.rtc = rtc
        self.seen: list[tuple[int, int]] = []
        self.went_on: list[bool] = []
        self.fails: Callable[[Inputs], bool] = lambda _: False

    def warm(self, say: Callable[[str], None]) -> None:
        say("warm")

    def sample(self, inputs: Inputs, noise: np.ndarray, previous: PreviousRows | None = None) -> np.ndarray:
        self.seen.append(inputs.tokens.shape)
        self.went_on.append(previous is not None)
        if self.fails(inputs):
            raise RuntimeError("the device is gone")
        time.sleep(self.delay_s)
        found = row_actions(inputs, noise)
        return found if previous is None else found + previous.weights[..., None] * (previous.chunk - found)


def row_actions(inputs: Inputs, noise: np.ndarray) -> np.ndarray:
    """What `RowEngine` answers."""
    sums = [image.reshape(len(noise), -1).mean(axis=1) / 255 for image in inputs.images.values()]
    total = np.sum(sums, axis=0) + (inputs.tokens * inputs.token_mask).sum(axis=1) / 1000
    return (noise / 10 + total[:, None, None]).astype(np.float32)


def host_noise(horizon: int, action_dim: int) -> Callable[[int], np.ndarray]:
    """Noise of a seed, without JAX."""
    return lambda seed: np.random.default_rng(seed).standard_normal((horizon, action_dim)).astype(np.float32)


class Running:
    """A server that listens at `uri`. `stop` begins its end, and `join` waits for it."""

    def __init__(self, server: Server, desk: Desk, tally: Tally) -> None:
        self.server, self.desk, self.tally = server, desk, tally
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self.failed: HarnessError | None = None
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._listens.wait(20)
        if self.failed is not None:
            raise self.failed

    @property
    def uri(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self.server.run(self._ready))
        except HarnessError as error:
            self.failed = error
            self._listens.set()

    def _ready(self, port: int) -> None:
        self.port = port
        self._listens.set()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def reader_of(
    recipe: Recipe, buckets: tuple[int, ...], state_width: int | None = 8, rtc: Form | None = None
) -> Reader:
    stats = {"actions": unit_stats(7), "state": unit_stats(state_width or 8)}
    return Reader(recipe, stats, state_width, buckets, load_tokenizer("sample"), rtc)


@contextlib.contextmanager
def serving(
    engine: Any = None,
    recipe: Recipe | None = None,
    recorder: Recorder | None = None,
    warn: Callable[[str], None] = print,
    **settings: Any,
) -> Iterator[Running]:
    """A server of the tiny recipe on a free port of this machine."""
    recipe = recipe or tiny()
    engine = engine or RowEngine(recipe)
    tally = Tally()
    batcher = Batcher(engine, host_noise(engine.horizon, engine.action_dim), lambda: tally.clients)
    desk = Desk(reader_of(recipe, engine.buckets, rtc=engine.rtc), batcher, {"horizon": engine.horizon})
    running = Running(Server(desk, Settings(**{"port": 0} | settings), tally, recorder, warn), desk, tally)
    try:
        yield running
    finally:
        running.stop()
        running.join()
        batcher.close()


def libero(seed: int = 0, size: int = 224, **more: Any) -> dict[str, Any]:
    """An observation as openpi's LIBERO client sends it."""
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    return {
        "observation/image": pictures[0],
        "observation/wrist_image": pictures[1],
        "observation/state": random.standard_normal(8),
        "prompt": "put the bowl on the stove",
    } | more
