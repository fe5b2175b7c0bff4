"""Tests the forms in which other people have their statistics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.data.compare import compare_statistics
from harness.data.norm_files import read_norm_stats
from harness.errors import HarnessError
from tests.support.statistics import core_of, sample_stats, write_json

FORMS = {
    "openpi's norm_stats.json": lambda core: {"norm_stats": core},
    "openpi's norm_stats.json without its wrapper `norm_stats`": lambda core: core,
    "LeRobot's stats.json": lambda core: {
        "observation.state": core["state"] | {"count": [100], "max": [1.0] * 8},
        "action": core["actions"] | {"count": [100], "q50": [0.0] * 7},
        "observation.images.top": {
            "mean": [[[0.4]]] * 3,
            "std": [[[0.2]]] * 3,
            "max": [[[1.0]]] * 3,
            "count": [100],
        },
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_that_people_have_are_read_and_named(tmp_path: Path, form: str) -> None:
    stats, _ = sample_stats()
    found = compare_statistics(stats, write_json(tmp_path / "x.json", FORMS[form](core_of(stats))))
    assert (found.form, found.largest_share) == (form, 0.0)


def test_the_key_action_is_the_key_actions(tmp_path: Path) -> None:
    stats, _ = sample_stats()
    core = core_of(stats)
    assert (
        compare_statistics(
            stats,
            write_json(
                tmp_path / "x.json", {"norm_stats": {"state": core["state"], "action": core["actions"]}}
            ),
        ).largest_share
        == 0
    )


def test_lerobots_file_is_found_in_its_dataset_by_the_recipes_names(tmp_path: Path) -> None:
    stats, _ = sample_stats()
    core = core_of(stats)
    (tmp_path / "meta").mkdir()
    body = {
        "joints": core["state"] | {"count": [1]},
        "targets": core["actions"] | {"count": [1]},
        "action": {"mean": [0.0], "count": [1]},
    }
    write_json(tmp_path / "meta/stats.json", body)
    assert (
        compare_statistics(stats, tmp_path, names={"state": "joints", "actions": "targets"}).largest_share
        == 0
    )


def test_the_episodes_of_a_dataset_are_put_together_where_that_suffices(tmp_path: Path) -> None:
    """Mean and deviation of a whole follow from its parts', quantiles do not."""
    generator = np.random.default_rng(3)
    parts = [
        {"state": generator.normal(size=(n, 2)), "action": generator.normal(size=(n, 1))} for n in (5, 9, 2)
    ]
    lines = [
        {
            "stats": (
                {
                    key: {"mean": x.mean(0).tolist(), "std": x.std(0).tolist(), "count": [len(x)]}
                    for key, x in part.items()
                }
                | {"image": {"mean": [[[0.5]]]}}
            )
        }
        for part in parts
    ]
    (tmp_path / "episodes_stats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_norm_stats(tmp_path, "zscore").stats
    for key, name in (("state", "state"), ("actions", "action")):
        whole = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(found[key].mean, whole.mean(0))
        np.testing.assert_allclose(found[key].std, whole.std(0))
    with pytest.raises(HarnessError) as caught:
        read_norm_stats(tmp_path, "quantile")
    assert "has no q01 and no q99, only mean, std" in str(caught.value.got)
