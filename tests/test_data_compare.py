"""Other statistics beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.artifacts import DimensionStats, NormStats
from harness.data.compare import compare
from harness.data.stats import to_openpi_json
from harness.errors import HarnessError

STATE = DimensionStats(mean=[0.0, 1.0], std=[1.0, 0.0], q01=[-2.0, 1.0], q99=[2.0, 1.0])
ACTIONS = DimensionStats(mean=[0.5], std=[0.25], q01=[0.0], q99=[1.0])
OURS = NormStats(norm_stats={"state": STATE, "actions": ACTIONS}, frames=10, action_horizon=10)


def _file(path: Path, change: object = None) -> Path:
    body = json.loads(to_openpi_json(OURS))
    if callable(change):
        change(body["norm_stats"])
    path.write_text(json.dumps(body))
    return path


def test_the_same_statistics_differ_by_nothing(tmp_path: Path) -> None:
    _file(tmp_path / "norm_stats.json")
    found = compare(OURS, tmp_path)
    assert found.largest_share == 0
    assert len(found.differences) == 4 * 3
    assert (found.only_ours, found.only_theirs) == ({"state": 0, "actions": 0}, {"state": 0, "actions": 0})


def test_the_largest_difference_comes_first_as_a_share_of_the_spread(tmp_path: Path) -> None:
    found = compare(OURS, _file(tmp_path / "x.json", lambda body: (body["state"]["q99"].__setitem__(0, 3.0), body["actions"]["mean"].__setitem__(0, 0.6))))
    first, second = found.differences[:2]
    assert (first.key, first.dimension, first.statistic, first.share) == ("state", 0, "q99", 0.25)
    assert (second.key, second.statistic) == ("actions", "mean")
    assert second.share == pytest.approx(0.1)


def test_a_difference_without_a_spread_is_the_worst(tmp_path: Path) -> None:
    found = compare(OURS, _file(tmp_path / "x.json", lambda body: body["state"]["q01"].__setitem__(1, 0.9)))
    assert (found.differences[0].dimension, found.differences[0].share) == (1, None)


def test_zero_padding_is_no_dimension_but_values_are(tmp_path: Path) -> None:
    def pad(body: dict) -> None:
        for vector in body["state"].values():
            vector.extend([0.0] * 30)
        for vector in body["actions"].values():
            vector.extend([1.0])

    found = compare(OURS, _file(tmp_path / "x.json", pad))
    assert found.only_theirs == {"state": 0, "actions": 1}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"norm_stats": {"state": 3}}', '{"norm_stats": {"state": {"mean": [1], "std": [1, 2], "q01": [1], "q99": [1]}}}']
)
def test_what_is_not_norm_stats_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(HarnessError) as caught:
        compare(OURS, tmp_path / "x.json")
    assert caught.value.code == "norm-stats-invalid"


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        compare(OURS, tmp_path / "x.json")
    assert caught.value.code == "norm-stats-not-found"
