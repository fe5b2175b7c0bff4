"""Tests that a request's actions do not depend on who else is served."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from harness.errors import HarnessError
from harness.serve.batch import Batcher, Sampled, stacked
from harness.serve.inputs import Asked
from harness.serve.noise import MOST_SEED, drawer
from tests.support.served import RowEngine, host_noise, libero, reader_of, row_actions
from tests.support.tiny import tiny


def asked(seed: int, prompt: str = "go") -> Asked:
    return reader_of(tiny(), (16, 64)).read(libero(seed, prompt=prompt))


def alone(one: Asked, seed: int) -> np.ndarray:
    return row_actions(stacked([one], 1), host_noise(10, 32)(seed)[None])[0]


class Held(RowEngine):
    """Waits in its first batch, so that requests gather behind it."""

    def __init__(self, **more: object) -> None:
        super().__init__(tiny(), **more)  # type: ignore[arg-type]
        self.go = threading.Event()

    def sample(self, *given: object) -> np.ndarray:
        self.go.wait(20)
        return super().sample(*given)  # type: ignore[arg-type]


def test_requests_that_wait_together_are_computed_together_and_each_gets_its_own() -> None:
    engine = Held(batches=(4,))
    batcher = Batcher(engine, host_noise(10, 32), lambda: 9)
    ones = [asked(n) for n in range(9)]
    futures = [batcher.submit(one, 100 + n) for n, one in enumerate(ones)]
    engine.go.set()
    for n, (one, future) in enumerate(zip(ones, futures, strict=True)):
        np.testing.assert_array_equal(future.result(20).actions, alone(one, 100 + n))
    assert len(engine.seen) == 3
    assert {rows for rows, _ in engine.seen} == {4}
    assert sorted(future.result().rows for future in futures) == [1] + [4] * 8
    batcher.close()


def test_prompts_of_different_buckets_are_never_in_one_batch() -> None:
    """A longer bucket is another program, whose sums may be rounded otherwise."""
    engine = Held(batches=(4,))
    batcher = Batcher(engine, host_noise(10, 32), lambda: 4)
    ones = [asked(n, "go" if n % 2 else "go " * 30) for n in range(4)]
    futures = [batcher.submit(one, n) for n, one in enumerate(ones)]
    engine.go.set()
    for n, (one, future) in enumerate(zip(ones, futures, strict=True)):
        np.testing.assert_array_equal(future.result(20).actions, alone(one, n))
    assert {length for _, length in engine.seen} == {16, 64}
    batcher.close()


def test_requests_with_other_cameras_are_never_in_one_batch() -> None:
    """A row without a camera is not one with a black picture."""
    engine = Held(batches=(4,))
    batcher = Batcher(engine, host_noise(10, 32), lambda: 4)
    ones = [asked(n) for n in range(4)]
    ones[1:3] = [one._replace(images={"base_0_rgb": one.images["base_0_rgb"]}) for one in ones[1:3]]
    futures = [batcher.submit(one, n) for n, one in enumerate(ones)]
    engine.go.set()
    for n, (one, future) in enumerate(zip(ones, futures, strict=True)):
        np.testing.assert_array_equal(future.result(20).actions, alone(one, n))
    batcher.close()


def test_a_lone_client_does_not_wait_for_others() -> None:
    batcher = Batcher(RowEngine(tiny(), batches=(8,)), host_noise(10, 32), lambda: 1)
    one = asked(0)
    waits = [batcher.submit(one, 0).result(20).wait_s for _ in range(20)]
    assert sorted(waits)[10] < 0.002
    batcher.close()


def test_the_smallest_compiled_batch_is_taken() -> None:
    engine = RowEngine(tiny(), batches=(2, 4))
    batcher = Batcher(engine, host_noise(10, 32))
    batcher.submit(asked(0), 0).result(20)
    assert [rows for rows, _ in engine.seen] == [2]
    batcher.close()


def test_what_fails_for_some_fails_for_no_later_one() -> None:
    engine = RowEngine(tiny())
    engine.fails = lambda inputs: bool(inputs.tokens[0, 3] == asked(0, "break").tokens[3])
    batcher = Batcher(engine, host_noise(10, 32))
    with pytest.raises(HarnessError) as caught:
        batcher.submit(asked(0, "break"), 0).result(20)
    assert caught.value.code == "inference-failed"
    assert "the device is gone" in str(caught.value)
    assert batcher.submit(asked(0), 0).result(20).rows == 1
    batcher.close()


def test_a_cancelled_request_is_not_computed() -> None:
    engine = Held()
    batcher = Batcher(engine, host_noise(10, 32))
    first: Future[Sampled] = batcher.submit(asked(0), 0)
    while not first.running():
        pass
    second, third = batcher.submit(asked(1), 1), batcher.submit(asked(2), 2)
    assert second.cancel()
    engine.go.set()
    np.testing.assert_array_equal(third.result(20).actions, alone(asked(2), 2))
    assert len(engine.seen) == 2
    batcher.close()


@pytest.mark.parametrize("seed", [0, 7, 2**31, MOST_SEED])
def test_noise_is_that_of_predict(seed: int) -> None:
    """predict draws it inside of its program, for one row."""
    inside = jax.jit(lambda key: jax.random.normal(key, (1, 10, 32)))(jax.random.key(seed))
    np.testing.assert_array_equal(drawer(10, 32)(seed), np.asarray(inside)[0])


def test_other_seeds_give_other_noise() -> None:
    draw = drawer(10, 32)
    assert len({draw(seed).tobytes() for seed in (0, 1, 2**31, MOST_SEED)}) == 4
