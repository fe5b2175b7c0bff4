"""Tests that openpi-client 0.1.2 and the calls of openpi's examples work against the server, unchanged.

`docker/lock/client.txt` has the client; the test image and `ci/local test` install it.
"""

from __future__ import annotations

import http.client
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts import Serving
from harness.checkpoint.locate import locate, recipe_of
from harness.data.lerobot import open_dataset
from harness.data.sample import sample_dataset_path
from harness.predict.predict import Device, Question, predict
from harness.run.directory import RunDir
from harness.serve.access import Key
from tests.support.openpi_checkpoints import openpi_checkpoint
from tests.support.serve_verb import Verb
from tests.support.served import libero, serving
from tests.test_predict import save

REASON = "docker/lock/client.txt has it: ci/local test, or pip install --no-deps --require-hashes -r it"
policies = pytest.importorskip("openpi_client.websocket_client_policy", reason=REASON)
image_tools = pytest.importorskip("openpi_client.image_tools", reason=REASON)
brokers = pytest.importorskip("openpi_client.action_chunk_broker", reason=REASON)
# The client of 0.1.2 opens its connection in the older of the library's two ways.
pytestmark = pytest.mark.filterwarnings("ignore:connect\\(\\) must be used:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks the environment for a proxy; one of the machine knows no port of this test."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    (directory / "manifest.json").write_text("{}")
    save(directory / "checkpoints", 3)
    return directory / "checkpoints/3"


@pytest.fixture(scope="module")
def verb(step: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verb]:
    run = tmp_path_factory.mktemp("served")
    verb = Verb(step, run, "--steps", "2", "--batch", "2")
    yield verb
    assert verb.end() == 0
    found = RunDir(run).read(Serving)
    assert found is not None
    assert found.ended_by == "SIGTERM"
    assert found.answered > 0
    assert found.stages["total"].p99_ms is not None
    assert found.deviations == [
        "--steps 2: 2 Euler steps instead of 10; what it costs in success is not known"
    ]


def test_a_served_step_answers_as_predict_does(step: Path, verb: Verb) -> None:
    located = locate(str(step))
    recipe = recipe_of(located, None)
    want = predict(
        located,
        recipe,
        Question(frame=4, sampling_steps=2, seed=9),
        Device("cpu", "cpu", None, None),
        lambda _: None,
    )
    data = open_dataset(sample_dataset_path())
    client = policies.WebsocketClientPolicy("127.0.0.1", verb.port)
    metadata = client.get_server_metadata()
    assert metadata["actions"] == metadata["actions"] | {"horizon": 10, "dimensions": 7}
    assert metadata["checkpoint"]["step"] == 3
    assert len(metadata["checkpoint"]["sha256"]) == 64
    found = client.infer(
        {
            "observation/image": data.image(4, "image"),
            "observation/wrist_image": data.image(4, "wrist_image"),
            "observation/state": data.state(4),
            "prompt": data.task(4),
            "noise_seed": 9,
        }
    )
    # The served batch has two rows, predict's one: other sums, rounded otherwise.
    np.testing.assert_allclose(found["actions"], want.predicted, rtol=0, atol=1e-5)
    assert {"infer_ms"} == found["policy_timing"].keys()


def test_the_calls_of_openpis_libero_evaluation(verb: Verb) -> None:
    """In the order and form of openpi examples/libero/main.py, commit 15a9616, with made pictures."""
    client = policies.WebsocketClientPolicy("127.0.0.1", verb.port)
    random, plan, done = np.random.default_rng(0), deque[np.ndarray](), []
    for _ in range(12):
        pictures = []
        for _ in range(2):
            rendered = random.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            turned = np.ascontiguousarray(rendered[::-1, ::-1])
            pictures.append(image_tools.convert_to_uint8(image_tools.resize_with_pad(turned, 224, 224)))
        if not plan:
            state = np.concatenate((random.random(3), random.random(3), random.random(2)))
            asked = {
                "observation/image": pictures[0],
                "observation/wrist_image": pictures[1],
                "observation/state": state,
                "prompt": "put both moka pots on the stove",
            }
            chunk = client.infer(asked)["actions"]
            assert len(chunk) >= 5
            plan.extend(chunk[:5])
        done.append(plan.popleft().tolist())
    assert np.shape(done) == (12, 7)
    assert np.isfinite(done).all()


def test_openpis_broker_slices_an_answer(verb: Verb) -> None:
    broker = brokers.ActionChunkBroker(policies.WebsocketClientPolicy("127.0.0.1", verb.port), 4)
    found = [broker.infer(libero(noise_seed=1))["actions"] for _ in range(5)]
    np.testing.assert_array_equal(found[0], found[4])
    assert found[0].shape == (7,)
    broker.reset()


def test_openpis_client_reads_a_refusal_and_goes_on(verb: Verb) -> None:
    client = policies.WebsocketClientPolicy("127.0.0.1", verb.port)
    with pytest.raises(RuntimeError, match="observation-key-missing"):
        client.infer({"prompt": "go"})
    assert client.infer(libero())["actions"].shape == (10, 7)


def test_openpis_client_sends_its_key() -> None:
    with serving(key=Key("a-key-of-many-characters")) as running:
        client = policies.WebsocketClientPolicy("127.0.0.1", running.port, "a-key-of-many-characters")
        assert client.infer(libero())["actions"].shape == (10, 7)
        with pytest.raises(Exception, match="401"):
            policies.WebsocketClientPolicy("127.0.0.1", running.port, "another")


def test_a_checkpoint_of_openpi_is_served_and_sigterm_answers_first(tmp_path: Path) -> None:
    directory = openpi_checkpoint("full", tmp_path / "theirs")
    sets = ["--recipe", "smoke", "--set", "data.asset_id=physical-intelligence/libero", "--steps", "1"]
    verb = Verb(directory, tmp_path, *sets, "--record", str(tmp_path / "kept"))
    client = policies.WebsocketClientPolicy("127.0.0.1", verb.port)
    assert client.infer(libero())["actions"].shape == (10, 7)
    connection = http.client.HTTPConnection("127.0.0.1", verb.port, timeout=10)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"OK\n"
    assert verb.end(signal.SIGINT) == 0
    found = RunDir(tmp_path).read(Serving)
    assert found is not None
    assert (found.ended_by, found.answered, found.step) == ("SIGINT", 1, 4)
    assert found.record is not None
    assert len(list((tmp_path / "kept").iterdir())) == 1
