"""Tests which numbers of rows at once a plan may take."""

from __future__ import annotations

import pytest

from harness.plan import candidates


@pytest.mark.parametrize("rows", [1, 2, 12, 97, 256, 3600, 10_007, 65_536])
def test_microbatches_are_all_divisors(rows: int) -> None:
    assert candidates.divisors(rows) == [d for d in range(1, rows + 1) if rows % d == 0]


@pytest.mark.parametrize("rows", [10**8, 10**18])
def test_a_batch_of_any_size_is_planned_at_once(rows: int) -> None:
    """All numbers up to the batch were tried, which did not end."""
    sizes = candidates.divisors(rows)
    assert (sizes[0], sizes[-1]) == (1, rows)
    assert all(rows % size == 0 for size in sizes)
