"""Tests real-time chunking over a socket: keys, batches, refusals, and what the handshake says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.checkpoint.locate import Located
from harness.errors import HarnessError
from harness.predict.predict import Device
from harness.serve.batch import Batcher
from harness.serve.client import Client
from harness.serve.engine import open_engine
from harness.serve.inputs import Asked
from harness.serve.open import Wish, open_served
from harness.serve.rtc_keys import DELAY, EXECUTION_HORIZON, PREVIOUS_CHUNK
from harness.serve.wire import unpack
from tests.support.exported import write_checkpoint
from tests.support.served import RowEngine, host_noise, libero, reader_of, serving
from tests.support.tiny import tiny

RELATIVE = "data.relative=0-2"


def keys(chunk: np.ndarray, delay: int = 2, **more: Any) -> dict[str, Any]:
    return {PREVIOUS_CHUNK: chunk, DELAY: delay} | {f"rtc/{name}": value for name, value in more.items()}


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("form", ["guided", "continued"])
def test_a_chunk_goes_on_from_the_one_before_over_a_socket(form: str, relative: bool) -> None:
    """What is decided comes back in the robot's units, from another state too."""
    recipe = tiny(*([RELATIVE] if relative else []), *(["train.action_delay.max=4"] * (form == "continued")))
    with serving(RowEngine(recipe, rtc=form), recipe) as running:  # type: ignore[arg-type]
        client = Client(running.uri)
        first = np.asarray(client.infer(libero(0))["actions"])
        rest = first[4:]
        plain = client.infer(libero(1, noise_seed=3))
        led = client.infer(libero(1, noise_seed=3, **keys(rest)))
        client.close()
    assert led.keys() - {"server_timing"} == plain.keys() - {"server_timing"}
    actions = np.asarray(led["actions"])
    np.testing.assert_allclose(actions[:2], rest[:2], atol=1e-5)
    assert np.abs(np.asarray(plain["actions"])[:2] - rest[:2]).max() > 1e-2
    np.testing.assert_array_equal(actions[-4:], np.asarray(plain["actions"])[-4:])


@pytest.mark.parametrize("sets", [[], ["train.action_delay.max=3"]])
def test_the_real_engine_serves_both_forms(tmp_path: Path, sets: list[str]) -> None:
    recipe = tiny("model.prompt_tokens=16", *sets)
    step = write_checkpoint(tmp_path / "5", recipe)
    wish = Wish(steps=2, batch=2, rtc=True)
    device = Device("cpu", "cpu", None, None)
    opened = open_served(Located(step, 5, None), recipe, wish, device, lambda _: None, open_engine)
    said: Any = unpack(opened.desk.metadata)
    form = "continued" if sets else "guided"
    assert said["rtc"] == {
        "mode": form,
        "keys": [PREVIOUS_CHUNK, DELAY, EXECUTION_HORIZON],
        "least_delay": 0,
        "most_delay": 3 if sets else 5,
    }

    def answer(observation: dict[str, Any]) -> np.ndarray:
        asked = opened.reader.read(observation)
        sampled = opened.desk.batcher.submit(asked, 7).result(60)
        return opened.reader.actions(sampled.actions, asked)

    plain = answer(libero(1))
    rest = answer(libero(2))[3:]
    led = answer(libero(1, **keys(rest)))
    nearer = np.abs(led[:2] - rest[:2]).max() / np.abs(plain[:2] - rest[:2]).max()
    assert nearer < (1e-5 if sets else 0.9)
    np.testing.assert_array_equal(answer(libero(1)), plain)
    opened.desk.batcher.close()


def test_requests_with_and_without_a_chunk_never_share_a_batch() -> None:
    recipe = tiny()
    engine = RowEngine(recipe, batches=(4,), rtc="guided", delay_s=0.1)
    reader = reader_of(recipe, engine.buckets, rtc="guided")
    batcher = Batcher(engine, host_noise(10, 32), lambda: 9)
    chunk = np.zeros((6, 7), np.float32)
    more = [keys(chunk, n % 3) if n % 2 else {} for n in range(8)]
    asked = [reader.read(libero(n, **each)) for n, each in enumerate(more)]
    futures = [batcher.submit(one, n) for n, one in enumerate(asked)]
    together = [future.result(20).actions for future in futures]
    went_on = list(engine.went_on)
    assert set(went_on) == {True, False}
    for n, one in enumerate(asked):
        alone = batcher.submit(one, n).result(20).actions
        np.testing.assert_array_equal(together[n], alone)
        assert engine.went_on[-1] == (n % 2 == 1)
    batcher.close()


def read(told: dict[str, Any], rtc: Any = "guided", *sets: str) -> Asked:
    return reader_of(tiny(*sets), (16, 64), rtc=rtc).read(libero(0, **told))


def test_a_chunk_of_which_nothing_counts_is_no_chunk() -> None:
    chunk = np.zeros((10, 7))
    assert read({}).previous is None
    assert read(keys(chunk, 0, execution_horizon=10)).previous is None
    assert read(keys(chunk, 0)).previous is not None
    assert read(keys(chunk, 0), "continued", "train.action_delay.max=3").previous is None
    assert read(keys(chunk, 1), "continued", "train.action_delay.max=3").previous is not None


@pytest.mark.parametrize(
    ("told", "rtc", "words"),
    [
        (keys(np.zeros((8, 7))), None, "harness serve STEP --rtc"),
        ({DELAY: 2}, None, "--rtc"),
        ({DELAY: 2}, "guided", "without the previous chunk"),
        (keys(np.zeros((8, 7)), 6), "guided", "does not go with the chunk"),
        (keys(np.zeros((8, 9))), "guided", "not a chunk of this policy"),
        ({"rtc/previous_chunks": np.zeros((8, 7))}, "guided", "a key is not known"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_and_the_connection_lives(
    told: dict[str, Any], rtc: Any, words: str
) -> None:
    with pytest.raises(HarnessError, match=words) as raised:
        read(told, rtc)
    assert raised.value.code == "observation-invalid"
    recipe = tiny()
    with serving(RowEngine(recipe, rtc=rtc), recipe) as running:
        client = Client(running.uri)
        with pytest.raises(Exception, match=words) as answered:
            client.infer(libero(0, **told))
        assert "Traceback" not in str(answered.value)
        assert np.asarray(client.infer(libero(0))["actions"]).shape == (10, 7)
        client.close()
