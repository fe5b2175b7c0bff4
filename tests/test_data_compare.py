"""Tests the comparison of other statistics with ours."""

from __future__ import annotations

import io
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from harness.artifacts import DimensionStats, NormStats
from harness.data.compare import compare_statistics
from harness.data.lerobot import open_dataset
from harness.data.norm_files import read_norm_stats
from harness.data.sample import sample_dataset_path
from harness.data.stats import to_openpi_json
from harness.data.transforms import normalize
from harness.errors import HarnessError
from harness.show.dataset import comparison_table
from tests.support.statistics import core_of, sample_stats, write_json

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
    found = compare_statistics(OURS, tmp_path)
    assert found.largest_share == 0
    assert len(found.differences) == 4 * 3
    assert (found.only_ours, found.only_theirs) == ({"state": 0, "actions": 0}, {"state": 0, "actions": 0})


@pytest.mark.parametrize("name", ["norm_stats.json", "stats.json", "episodes_stats.jsonl"])
def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a set"
    folder.mkdir()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 1834012\n"
    (folder / name).write_bytes(pointer)
    for path in (folder, folder / name):
        with pytest.raises(HarnessError) as caught:
            read_norm_stats(path)
        assert caught.value.code == "git-lfs-pointer"
        assert shlex.split(str(caught.value.fix)) == ["git", "-C", str(folder), "lfs", "pull"]


def test_the_largest_difference_comes_first_as_a_share_of_the_spread(tmp_path: Path) -> None:
    found = compare_statistics(
        OURS,
        _file(
            tmp_path / "x.json",
            lambda body: (
                body["state"]["q99"].__setitem__(0, 3.0),
                body["actions"]["mean"].__setitem__(0, 0.6),
            ),
        ),
    )
    first, second = found.differences[:2]
    assert (first.key, first.dimension, first.statistic, first.share) == ("state", 0, "q99", 0.25)
    assert (second.key, second.statistic) == ("actions", "mean")
    assert second.share == pytest.approx(0.1)


def test_a_difference_without_a_spread_is_the_worst(tmp_path: Path) -> None:
    found = compare_statistics(
        OURS, _file(tmp_path / "x.json", lambda body: body["state"]["q01"].__setitem__(1, 0.9))
    )
    assert (found.differences[0].dimension, found.differences[0].share) == (1, None)


def test_zero_padding_is_no_dimension_but_values_are(tmp_path: Path) -> None:
    def pad(body: dict) -> None:
        for vector in body["state"].values():
            vector.extend([0.0] * 30)
        for vector in body["actions"].values():
            vector.extend([1.0])

    found = compare_statistics(OURS, _file(tmp_path / "x.json", pad))
    assert found.only_theirs == {"state": 0, "actions": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"norm_stats": {"state": 3}}',
        '{"norm_stats": {"state": {"mean": [1], "std": [1, 2], "q01": [1], "q99": [1]}}}',
    ],
)
def test_what_is_not_norm_stats_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(HarnessError) as caught:
        compare_statistics(OURS, tmp_path / "x.json")
    assert caught.value.code == "norm-stats-invalid"


def test_a_range_that_is_too_small_for_our_data_says_how_far_it_goes(tmp_path: Path) -> None:
    """openpi issue 1025: q99 - q01 of 0.001 in one dimension.

    Against numpy's own normalization of every row.
    """
    stats, rows = sample_stats()
    core = core_of(stats)
    core["actions"]["q01"][2], core["actions"]["q99"][2] = 0.300, 0.301
    found = compare_statistics(stats, write_json(tmp_path / "x.json", {"norm_stats": core}), **rows)
    worst = found.reach[0]
    actions = open_dataset(sample_dataset_path()).columns.actions[:, 2].astype(np.float64)
    theirs = (actions - 0.3) / (0.001 + 1e-6) * 2 - 1
    assert (worst.key, worst.dimension) == ("actions", 2)
    np.testing.assert_allclose(
        [worst.low, worst.high, worst.outside],
        [theirs.min(), theirs.max(), (abs(theirs) > 1).mean()],
        rtol=1e-6,
    )
    assert (round(worst.q01), round(worst.q99)) == (-1633, -339)
    assert len(found.findings) == 1
    assert found.findings[0].startswith("actions[2] reaches")


@pytest.mark.parametrize("mode", ["quantile", "zscore"])
def test_our_own_statistics_are_reached_as_the_recipe_normalizes(tmp_path: Path, mode: str) -> None:
    stats, rows = sample_stats(mode)
    found = compare_statistics(stats, write_json(tmp_path / "x.json", {"norm_stats": core_of(stats)}), **rows)
    opened = open_dataset(sample_dataset_path())
    for one in found.reach:
        values = normalize(
            opened.columns.state if one.key == "state" else opened.columns.actions,
            stats.norm_stats[one.key],
            mode,
        )[:, one.dimension]
        np.testing.assert_allclose(
            [one.low, one.high, one.outside],
            [values.min(), values.max(), (abs(values) > 1).mean()],
            rtol=1e-5,
        )
    assert len(found.reach) == 15
    assert found.findings == []


def test_padding_to_32_dimensions_is_left_out_of_the_reach(tmp_path: Path) -> None:
    stats, rows = sample_stats()
    padded = {
        key: {name: vector + [0.0] * (32 - len(vector)) for name, vector in one.items()}
        for key, one in core_of(stats).items()
    }
    found = compare_statistics(stats, write_json(tmp_path / "x.json", {"norm_stats": padded}), **rows)
    assert (found.only_theirs, found.largest_share, len(found.reach)) == ({"state": 0, "actions": 0}, 0.0, 15)


def _change(key: str, statistic: str, dimension: int | None, value: object) -> object:
    def change(body: dict) -> None:
        if dimension is None:
            body[key][statistic] = value
        else:
            body[key][statistic][dimension] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change("actions", "q01", 0, 1.5), "actions[0]: q01 1.5 is above q99 1"),
        (_change("state", "q99", 1, float("nan")), "state[1]: q99 is nan"),
        (_change("state", "q99", 1, None), "state[1]: q99 is None"),
        (_change("state", "q01", 0, 1e400), "state[0]: q01 is inf"),
        (_change("state", "q01", 0, "1"), "state[0]: q01 is '1'"),
        (_change("actions", "q01", None, None), "actions has no q01, only mean, std, q99"),
        (_change("actions", "q99", None, []), "actions has no q99, only mean, std, q01"),
        (_change("actions", "q99", None, [1.0, 2.0]), "actions.q99 has 2 values, q01 1"),
        (_change("actions", "q99", None, {"a": 1}), "actions[0]: q99 is {'a': 1}"),
    ],
)
def test_quantiles_that_mean_nothing_are_refused_by_name_and_only_where_they_are_needed(
    tmp_path: Path, change: object, said: str
) -> None:
    file = _file(tmp_path / "x.json", change)
    with pytest.raises(HarnessError) as caught:
        compare_statistics(OURS, file)
    assert caught.value.code == "norm-stats-invalid"
    assert said in str(caught.value.got)
    assert compare_statistics(OURS, file, mode="zscore").form == "openpi's norm_stats.json"


@pytest.mark.parametrize("statistic", ["mean", "std"])
def test_zscore_needs_mean_and_std(tmp_path: Path, statistic: str) -> None:
    file = _file(tmp_path / "x.json", _change("actions", statistic, None, None))
    assert compare_statistics(OURS, file).largest_share is not None
    with pytest.raises(HarnessError) as caught:
        compare_statistics(OURS, file, mode="zscore")
    assert f"actions has no {statistic}" in str(caught.value.got)


def test_a_negative_deviation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        compare_statistics(OURS, _file(tmp_path / "x.json", _change("state", "std", 0, -1.0)), mode="zscore")
    assert "state[0]: std is -1" in str(caught.value.got)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"norm_stats": ' * 5000,
        "1" * 100_000,
        '{"norm_stats": {"state": {"q01": "x"}}}',
        "\ud800",
        "null",
        "3",
    ],
)
def test_no_bytes_are_a_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, errors="surrogatepass")
    with pytest.raises(HarnessError) as caught:
        compare_statistics(OURS, tmp_path / "x.json")
    assert caught.value.code == "norm-stats-invalid"


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "norm_stats.json")
    for path in (tmp_path, tmp_path / "norm_stats.json"):
        with pytest.raises(HarnessError) as caught:
            compare_statistics(OURS, path)
        assert caught.value.code in ("file-not-regular", "norm-stats-not-found")


def test_the_table_shows_ends_and_share(tmp_path: Path) -> None:
    stats, rows = sample_stats()
    core = core_of(stats)
    core["actions"]["q01"][2], core["actions"]["q99"][2] = 0.300, 0.301
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(
        comparison_table(
            compare_statistics(stats, write_json(tmp_path / "x.json", {"norm_stats": core}), **rows)
        )
    )
    row = next(line for line in console.export_text().splitlines() if line.startswith("actions[2]"))
    assert row.split() == ["actions[2]", "-1721", "-1633", "-339", "-334.8", "100.00", "%"]


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        compare_statistics(OURS, tmp_path / "x.json")
    assert caught.value.code == "norm-stats-not-found"
