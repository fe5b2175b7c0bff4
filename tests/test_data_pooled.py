"""Tests that the statistics of a mixture are those of its frames as they are drawn, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from harness.data import stats as module
from harness.data.dataset import describe
from harness.data.metadata import Episode
from harness.data.pooled import Part, pooled
from harness.data.rows import Block
from harness.data.space import Space
from harness.data.stats import compute
from harness.data.tally import QUANTILES, chunk_weights
from tests.support.mixtures import mixture, three

PLAIN = Space(None, ())
HORIZON = 4


def block(lengths: Sequence[int], width: int, seed: int, *, coarse: bool = False) -> Block:
    """Episodes of random numbers; `coarse` ones have many equal values."""
    generator, rows = np.random.default_rng(seed), sum(lengths)
    state, actions = (generator.normal(seed, 1 + seed, (rows, width)).astype(np.float32) for _ in range(2))
    if coarse:
        state, actions = (np.round(values).astype(np.float32) for values in (state, actions))
    episodes = [Episode(n, 0, length, "x", 0, {}) for n, length in enumerate(lengths)]
    return Block(episodes, state, actions, np.zeros(rows), np.zeros(rows, np.int64))


def part(held: Block, share: int, space: Space = PLAIN) -> Part:
    return Part(lambda: iter([held]), share, ("state", "actions"), space)


def expected(values: list[np.ndarray], weights: list[np.ndarray], shares: Sequence[int]) -> dict[str, float]:
    """The statistics of one dimension by their definition, in exact fractions."""
    whole, total = sum(shares), int(sum(weight.sum() for weight in weights))
    rows = sorted(
        (float(x), Fraction(int(w)) * Fraction(share * total, whole * int(weight.sum())))
        for each, weight, share in zip(values, weights, shares, strict=True)
        for x, w in zip(each, weight, strict=True)
    )
    mean = sum(Fraction(x) * w for x, w in rows) / total
    variance = sum((Fraction(x) - mean) ** 2 * w for x, w in rows) / total
    found = {"mean": float(mean), "std": float(variance) ** 0.5}

    def at(rank: int) -> float:
        seen = Fraction(0)
        for x, w in rows:
            seen += w
            if seen > rank:
                return x
        return rows[-1][0]

    for name, q in zip(("q01", "q99"), QUANTILES, strict=True):
        place = (total - 1) * q
        low, high = at(int(place)), at(min(int(place) + 1, total - 1))
        found[name] = low + (high - low) * (place % 1)
    return found | {"min": rows[0][0], "max": rows[-1][0]}


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("shares", [[1, 1, 1], [7, 2, 1], [1, 1000, 3], [90, 60, 25], [123457, 3, 99991]])
def test_statistics_of_a_mixture_equal_their_definition(shares: list[int], coarse: bool) -> None:
    blocks = [
        block(lengths, 2, seed, coarse=coarse) for seed, lengths in enumerate([(50, 40), (60,), (9, 16)])
    ]
    found = pooled([part(each, share) for each, share in zip(blocks, shares, strict=True)], HORIZON)
    for key in ("state", "actions"):
        weights = [
            np.ones(len(each.state))
            if key == "state"
            else chunk_weights([e.length for e in each.episodes], HORIZON)
            for each in blocks
        ]
        for d in range(2):
            wanted = expected([getattr(each, key)[:, d] for each in blocks], weights, shares)
            for name, value in wanted.items():
                got = getattr(found[key], name)[d]
                if name in ("mean", "std"):
                    assert got == pytest.approx(value, rel=1e-12, abs=1e-12)
                else:
                    assert got == value, (key, d, name)


def test_without_weights_they_are_those_of_the_datasets_one_after_the_other() -> None:
    blocks = [block(lengths, 3, seed) for seed, lengths in enumerate([(300, 40), (60,)])]
    found = pooled([part(blocks[0], 340), part(blocks[1], 60)], HORIZON)
    whole = pooled([Part(lambda: iter(blocks), 1, ("state", "actions"), PLAIN)], HORIZON)
    for name in ("q01", "q99", "min", "max"):
        assert getattr(found["actions"], name) == getattr(whole["actions"], name)
    for name in ("mean", "std"):
        np.testing.assert_allclose(
            getattr(found["actions"], name), getattr(whole["actions"], name), rtol=1e-12
        )


def test_a_dimension_that_some_lack_is_that_of_the_others() -> None:
    narrow, wide = block((50,), 2, 1), block((80, 10), 5, 2)
    found = pooled([part(narrow, 3), part(wide, 1)], HORIZON)["actions"]
    alone = pooled([part(wide, 1)], HORIZON)["actions"]
    assert len(found.mean) == 5
    assert found.mean[:2] != alone.mean[:2]
    for name in ("mean", "std", "q01", "q99", "min", "max"):
        assert getattr(found, name)[2:] == getattr(alone, name)[2:]


def test_relative_and_absolute_datasets_are_counted_as_the_model_sees_each() -> None:
    relative = Space(None, (True, False))
    one, other = block((30, 20), 2, 1), block((40,), 2, 2)
    found = pooled([part(one, 1, relative), part(other, 2)], HORIZON)["actions"]
    values, weights = [], []
    for held, space in ((one, relative), (other, PLAIN)):
        rows = [actions for _, actions in space.rows(held, HORIZON)]
        values.append(np.concatenate(rows))
        weights.append(np.ones(len(values[-1])))
    for d in range(2):
        wanted = expected([each[:, d] for each in values], weights, [1, 2])
        assert found.q01[d] == wanted["q01"]
        assert found.mean[d] == pytest.approx(wanted["mean"], rel=1e-12)
        assert found.std[d] == pytest.approx(wanted["std"], rel=1e-12)


def test_large_datasets_are_read_in_parts_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = three(tmp_path)
    said = mixture(*({"dataset": name, "weight": w} for name, w in zip(names, (0.5, 0.3, 0.2), strict=True)))
    found = describe(said)
    whole = compute(said, found)
    monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    again = compute(said, found)
    for name in ("q01", "q99", "min", "max"):
        assert getattr(again.norm_stats["actions"], name) == getattr(whole.norm_stats["actions"], name)
    np.testing.assert_allclose(again.norm_stats["state"].mean, whole.norm_stats["state"].mean, rtol=1e-12)
    assert whole.frames == 16 + 30 + 9
