"""Tests of a worker with the real simulator, as an evaluation talks to it, and of what it certifies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from harness.simulate import controls
from harness.simulate.observation import Observation
from tests.simulator.inside import Talk, talking

SHORT = {"max_steps__libero_goal": 10}


@pytest.fixture(scope="module")
def worker() -> Iterator[Talk]:
    with talking() as talk:
        yield talk


def test_it_certifies(worker: Talk) -> None:
    ready, _ = worker.ask({"do": "hello"})
    assert (ready["is"], ready["versions"]["mujoco"], ready["versions"]["robosuite"]) == (
        "ready",
        "3.2.3",
        "1.4.1",
    )
    assert ready["renderer"]
    certified, _ = worker.ask({"do": "certify"})
    assert len(certified["findings"]) == 8
    assert [finding for finding in certified["findings"] if not finding["ok"]] == []


@pytest.mark.parametrize("key", [("libero_goal", 8, 3), ("libero_object", 2, 1)], ids=str)
def test_a_recorded_episode_succeeds_at_its_recorded_step(worker: Talk, key: tuple[str, int, int]) -> None:
    last, queries = worker.drive(*key, "replay")
    recorded = controls.recording(*key)
    assert (last["outcome"], last["steps"]) == ("success", recorded.steps)
    assert list(last["reached"].values()) == [recorded.steps]
    assert len(queries) == len(last["observations"]) == -(-recorded.steps // 5)
    # Pictures were not asked for; what they are is in the digests all the same.
    assert all(set(arrays) == {"state"} for _, arrays in queries)


def test_a_policy_sees_what_the_digests_say_and_a_second_time_the_same(worker: Talk) -> None:
    def acts(query: int) -> np.ndarray:
        return np.random.default_rng(query).uniform(-1, 1, (10, 7)).astype(np.float32)

    last, queries = worker.drive("libero_goal", 8, 0, "remote", acts, **SHORT)
    assert (last["outcome"], last["steps"], last["initial_state"]) == ("failure", 10, 0)
    for (message, arrays), sha256 in zip(queries, last["observations"], strict=True):
        seen = Observation(arrays["image"], arrays["wrist_image"], arrays["state"], message["prompt"])
        assert seen.image.shape == seen.wrist_image.shape == (224, 224, 3)
        assert seen.sha256() == sha256 == message["sha256"]
    assert worker.drive("libero_goal", 8, 0, "remote", acts, **SHORT)[0] == last
    still = worker.drive("libero_goal", 8, 0, "zero", **SHORT)[0]
    assert still["scene_sha256"] == last["scene_sha256"]
    assert still["observations"][0] == last["observations"][0]
    assert still["observations"][1] != last["observations"][1]
    assert still["actions_sha256"] != last["actions_sha256"]


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (np.full((10, 7), np.nan), "NaN"),
        (np.zeros((4, 7)), "4 actions"),
        (np.zeros((10, 32)), "[10, 32]"),
        (np.zeros(7), "[7]"),
    ],
    ids=["no number", "too few", "another robot's", "one action"],
)
def test_an_answer_that_cannot_be_executed_ends_the_episode_with_its_name(
    worker: Talk, answer: np.ndarray, got: str
) -> None:
    last, _ = worker.drive("libero_goal", 8, 0, "remote", lambda _query: answer, **SHORT)
    assert (last["is"], last["code"]) == ("error", "actions-invalid")
    assert got in last["got"]
    assert last["fix"]


@pytest.mark.parametrize(
    ("key", "policy", "other", "code"),
    [
        (("libero_goal", 10, 0), "zero", {}, "task-missing"),
        (("libero_goal", 8, 50), "zero", {}, "episode-missing"),
        (("libero_goal", 8, 4), "replay", {}, "recording-missing"),
        (("libero_gaol", 8, 0), "zero", {}, "simulator-confused"),
        (("libero_goal", 8, 0), "human", {}, "control-unknown"),
        (("libero_goal", 8, 0), "zero", {"turn": 90}, "protocol-invalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_driven_is_named_and_the_worker_goes_on(
    worker: Talk, key: tuple[str, int, int], policy: str, other: dict[str, int], code: str
) -> None:
    last, _ = worker.drive(*key, policy, **other)
    assert (last["is"], last["code"]) == ("error", code)
    assert last["fix"]


def test_an_abandoned_episode_has_no_outcome_and_the_worker_goes_on(worker: Talk) -> None:
    order = {"do": "drive", "suite": "libero_goal", "task": 8, "episode": 0, "policy": "zero"}
    from harness.simulate import protocol

    assert worker.ask({**order, "protocol": protocol.shipped("openpi").values})[0]["is"] == "scene"
    assert worker.next()[0]["is"] == "query"
    assert worker.ask({"do": "abandon"})[0] == {"is": "abandoned"}
    assert worker.ask({"do": "dance"})[0]["code"] == "simulator-confused"
    assert worker.ask({"do": "hello"})[0]["is"] == "ready"


def test_it_ends_when_told_and_when_its_input_ends(worker: Talk) -> None:
    del worker
    with talking() as one, talking() as two:
        assert one.ask({"do": "hello"})[0]["is"] == "ready"
        os.kill(one.process.pid, signal.SIGTERM)
        assert two.process.stdin is not None
        two.process.stdin.close()
        assert one.process.wait(timeout=60) == 128 + signal.SIGTERM
        assert two.process.wait(timeout=60) == 0
