"""Tests the keys of a request that ask for real-time chunking: what they become, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.artifacts import DimensionStats
from harness.data.space import Space
from harness.data.transforms import unnormalize
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.serve.rtc import soft_mask
from harness.serve.rtc_keys import DELAY, EXECUTION_HORIZON, PREVIOUS_CHUNK, Seen, previous_from

WIDTH = 7


def seen(*overrides: str, width: int = WIDTH) -> Seen:
    rng = np.random.default_rng(0)
    low = rng.uniform(-2, -1, width)
    high = rng.uniform(1, 2, width)
    stats = DimensionStats(mean=(low + high).tolist(), std=high.tolist(), q01=low.tolist(), q99=high.tolist())
    return Seen(load_recipe("pi05_libero", [*overrides]), stats)


def chunk(rows: int, width: int = WIDTH, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def request(rows: int = 8, **more: Any) -> dict[str, Any]:
    return {PREVIOUS_CHUNK: chunk(rows), DELAY: 2} | {f"rtc/{name}": value for name, value in more.items()}


def test_a_request_that_says_nothing_has_no_previous_chunk() -> None:
    assert previous_from({"prompt": "fold", "observation/state": np.zeros(8)}, seen()) is None
    assert previous_from({PREVIOUS_CHUNK: None, DELAY: None}, seen()) is None


@pytest.mark.parametrize("normalization", ["quantile", "zscore"])
def test_the_chunk_is_normalized_and_padded_and_comes_back(normalization: str) -> None:
    how = seen(f"data.normalization={normalization}")
    found = previous_from(request(), how)
    assert found is not None
    model = how.recipe.model
    assert found.chunk.shape == (1, model.action_horizon, model.action_dim)
    assert found.chunk.dtype == np.float32
    back = unnormalize(found.chunk[0, :8], how.stats, how.recipe.data.normalization)
    np.testing.assert_allclose(back, chunk(8), atol=1e-5)
    assert not found.chunk[:, 8:].any()  # rows that do not exist
    assert not found.chunk[:, :, WIDTH:].any()  # the model's padding


@pytest.mark.parametrize("adapt", [(), ("data.adapt=aloha",)])
def test_absolute_actions_are_taken_relative_to_the_new_state(adapt: tuple[str, ...]) -> None:
    """As the server would answer them from that state: there and back gives the same actions."""
    how = seen("data.relative=0-5,7-12" if adapt else "data.relative=0-3", *adapt, width=14)
    rng = np.random.default_rng(5)
    state, told = rng.uniform(0, 0.5, 14).astype(np.float32), chunk(6, 14)
    found = previous_from({PREVIOUS_CHUNK: told, DELAY: 1}, how, state)
    assert found is not None
    space, mode = Space.of(how.recipe.data), how.recipe.data.normalization
    answered = space.recorded(unnormalize(found.chunk[0, :6], how.stats, mode), space.states(state))
    np.testing.assert_allclose(answered, told, atol=1e-5)
    other = previous_from({PREVIOUS_CHUNK: told, DELAY: 1}, how, state + 1)
    assert other is not None
    moved = np.abs(other.chunk - found.chunk)[0, :6].max(axis=0) > 1e-3
    assert set(np.flatnonzero(moved[:14])) <= set(np.flatnonzero(space.relative))
    assert moved.any()


def test_relative_actions_without_a_state_are_refused() -> None:
    with pytest.raises(HarnessError, match="relative to the state"):
        previous_from(request(), seen("data.relative=0-3"))


@pytest.mark.parametrize(
    ("rows", "delay", "told", "expected"),
    [(8, 2, None, 2), (6, 2, None, 4), (10, 0, None, 1), (10, 3, None, 3), (6, 2, 7, 7), (1, 1, None, 9)],
)
def test_the_execution_horizon_is_what_the_chunk_has_lost_unless_told(
    rows: int, delay: int, told: int | None, expected: int
) -> None:
    found = previous_from(request(rows, delay=delay, execution_horizon=told), seen())
    assert found is not None
    assert (found.delay, found.execution_horizon) == (delay, expected)
    np.testing.assert_array_equal(found.mask, soft_mask(10, delay, expected))


@settings(deadline=None)
@given(st.integers(1, 10), st.integers(-1, 11), st.none() | st.integers(-1, 11))
def test_whatever_is_taken_counts_no_row_that_does_not_exist(rows: int, delay: int, told: int | None) -> None:
    try:
        found = previous_from(request(rows, delay=delay, execution_horizon=told), seen())
    except HarnessError:
        return
    assert found is not None
    assert not found.mask[rows:].any()
    assert (found.mask[:delay] == 1).all()
    assert delay <= found.execution_horizon <= 10 - delay
    assert found.mask[-1] == 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({DELAY: 2}, "without the previous chunk"),
    ({EXECUTION_HORIZON: 2}, "without the previous chunk"),
    ({PREVIOUS_CHUNK: chunk(8)}, "without rtc/delay"),
    (request() | {PREVIOUS_CHUNK: "actions"}, "holds no numbers"),
    (request() | {PREVIOUS_CHUNK: [["a"] * WIDTH]}, "holds no numbers"),
    (request() | {PREVIOUS_CHUNK: np.ones((8, WIDTH), bool)}, "holds no numbers"),
    (request() | {PREVIOUS_CHUNK: np.ones((8, WIDTH), complex)}, "holds no numbers"),
    (request() | {PREVIOUS_CHUNK: [[10**400] * WIDTH]}, "holds no numbers"),
    (request() | {PREVIOUS_CHUNK: [[1.0], [1.0, 2.0]]}, "is no array"),
    (request() | {PREVIOUS_CHUNK: {"a": 1}}, "holds no numbers"),
    (request() | {PREVIOUS_CHUNK: chunk(0)}, "not a chunk of this policy"),
    (request() | {PREVIOUS_CHUNK: chunk(11)}, "not a chunk of this policy"),
    (request() | {PREVIOUS_CHUNK: chunk(8, 32)}, "not a chunk of this policy"),
    (request() | {PREVIOUS_CHUNK: chunk(8)[None]}, "not a chunk of this policy"),
    (request() | {PREVIOUS_CHUNK: np.full((8, WIDTH), np.nan)}, "not finite"),
    (request() | {PREVIOUS_CHUNK: np.full((8, WIDTH), 1e300)}, "beyond all numbers"),
    (request(delay=2.0), "no whole number"),
    (request(delay=True), "no whole number"),
    (request(delay="2"), "no whole number"),
    (request(delay=np.array([2])), "no whole number"),
    (request(delay=10**30), "no whole number"),
    (request(delay=-1), "does not go with the chunk"),
    (request(delay=6), "does not go with the chunk"),
    (request(2, delay=3), "does not go with the chunk"),
    (request(execution_horizon=1), "does not go with the chunk"),
    (request(execution_horizon=9), "does not go with the chunk"),
    (request(5, execution_horizon=4), "does not go with the chunk"),
]


@pytest.mark.parametrize(("told", "words"), BAD)
def test_what_cannot_be_is_refused_in_one_sentence(told: dict[str, Any], words: str) -> None:
    with pytest.raises(HarnessError, match=words) as refusal:
        previous_from(told, seen())
    assert refusal.value.code == "observation-invalid"
    assert refusal.value.need
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("delay", [2, np.int64(2), np.array(2, np.int32)])
def test_whole_numbers_come_in_each_form_that_a_client_packs(delay: Any) -> None:
    found = previous_from(request(delay=delay), seen())
    assert found is not None
    assert type(found.delay) is int


def test_a_delay_longer_than_the_trained_ones_is_refused() -> None:
    trained = seen("train.action_delay.max=2")
    assert previous_from(request(delay=2), trained) is not None
    with pytest.raises(HarnessError, match="trained with") as refusal:
        previous_from(request(delay=3), trained)
    assert "train.action_delay.max" in str(refusal.value.need)
