"""Tests that the table of causes says what is known of each, and what is not."""

from __future__ import annotations

from pathlib import Path

from harness.evaluate.judge import judge
from tests.support.evaluated import CLAIMED, claimed, lower, setting, stats, two


def test_what_is_not_known_is_said_and_forbids_nothing(tmp_path: Path) -> None:
    found = judge(*claimed()(tmp_path / "made"))
    assert {each.field for each in found.apart if each.status == "unknown"} == {
        *("protocol version", "renderer", "scenes", "dataset statistics"),
    }
    assert any("not known on a side" in note for note in found.notes)


def test_why_it_is_lower_is_one_table(tmp_path: Path) -> None:
    recipe = setting().evaluated.recipe
    assert recipe is not None
    changed = {**recipe, "train": {**recipe["train"], "seed": 7}, "name": "mine"}
    changes = {
        "evaluated": {
            "recipe": changed,
            "data_sha256": ["e" * 64],
            "statistics": {
                **(setting().evaluated.statistics or {}),
                "actions": stats(7, moved=0.5),
            },
        },
        "renderer": "egl",
    }
    found = judge(*two(lower(6), CLAIMED, changes=changes)(tmp_path / "made"))
    rows = {row.cause: row for row in found.why}
    assert list(rows) == ["recipe", "data", "statistics", "protocol and simulator", "chance"]
    assert all(row.status == "differs" for row in found.why)
    assert rows["recipe"].says.startswith("1 keys differ")
    assert "train.seed: 7 here" in rows["recipe"].details[0]
    assert "actions[0] most: 25 % of its range" in rows["statistics"].says
    assert "renderer" in rows["protocol and simulator"].says
    assert "does not explain" in rows["chance"].says


def test_what_a_policy_does_not_tell_is_unknown_and_not_equal(tmp_path: Path) -> None:
    silent = {"kind": "server", "recipe": None, "data_sha256": None, "statistics": None}
    rows = judge(*two(CLAIMED, CLAIMED, 2, changes={"evaluated": silent})(tmp_path / "made")).why
    assert [row.status for row in rows[:3]] == ["unknown"] * 3
    assert all(row.says.startswith("ours is not known") for row in rows[:3])


def test_statistics_of_another_robot_are_of_other_dimensions(tmp_path: Path) -> None:
    other = {"statistics": {"state": stats(14), "actions": stats(14)}}
    rows = judge(*two(CLAIMED, CLAIMED, 2, changes={"evaluated": other})(tmp_path / "made")).why
    assert "other dimensions" in rows[2].says


def test_a_dimension_that_does_not_move_has_no_share(tmp_path: Path) -> None:
    still = stats(7).model_copy(update={"q01": [0.0] * 7, "q99": [0.0] * 7})
    run = two(CLAIMED, CLAIMED, 2, changes={"evaluated": {"statistics": {"actions": still}}})(tmp_path / "a")
    assert "other dimensions" in judge(*run).why[2].says
    both = two(
        CLAIMED, CLAIMED, 2, changes={"evaluated": {"statistics": {"state": stats(8), "actions": still}}}
    )
    assert "actions[0] most: 50 %" in judge(*both(tmp_path / "b")).why[2].says
