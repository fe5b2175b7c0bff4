"""Tests verify: a run of our own is equal in every field and bit for bit.

A later change is named first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import flips
from harness.artifacts import Manifest
from harness.artifacts.verdict import Verdict
from harness.run.directory import RunDir
from harness.verify.fields import compare_fields, first_difference, overall
from harness.verify.run import verify_run
from tests.support.file_server import Server
from tests.support.scripted import Listener
from tests.support.verifying import change_metrics, copy, found_as, harness, verdict


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a trained run, the dataset and the weights that it was made from, and a cache of
    compiled programs.
    """
    return flips.prepare(tmp_path_factory.mktemp("verify")).root


def test_an_untouched_run_is_equal_bit_for_bit(place: Path, tmp_path: Path) -> None:
    run = copy(place, tmp_path)
    found = verdict(place, run, "--steps=3")
    assert found.verdict == "equal"
    assert found.replay is not None
    assert (found.replay.steps, found.replay.tolerance, found.replay.largest_difference) == (
        3,
        0.0,
        0.0,
    ), found.replay.note
    same = {row.field for row in found.fields if row.status == "equal"}
    assert same >= {
        "recipe",
        "recipe_sha256",
        "dataset",
        "norm_stats",
        "weights",
        "leaves",
        "plan",
        "files",
        "lock",
        "packages",
        "packages_sha256",
        "source",
    }
    assert same >= {"environment", "device", "step_fingerprint", "executable_fingerprint"}
    assert Verdict.model_validate_json((run / "verdict.json").read_text()) == found


def test_it_can_begin_at_a_checkpoint(place: Path, tmp_path: Path) -> None:
    found = verdict(place, copy(place, tmp_path), "--steps=1", "--from=2")
    assert found.replay is not None
    assert (found.replay.start, found.replay.steps, found.replay.largest_difference) == (2, 1, 0.0)
    rows = {row.field: row for row in found.fields}
    assert (rows["device"].status, rows["executable_fingerprint"].status) == ("equal", "equal")
    # What training began with is not computed again there; the files of the weights have answered for it.
    assert (rows["leaves"].status, rows["leaves"].matters, rows["weights"].status) == (
        "cannot tell",
        False,
        "equal",
    )


def test_kernels_are_not_copied_from_outside_of_the_run(place: Path, tmp_path: Path) -> None:
    run, scratch = copy(place, tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "private").write_text("PRIVATE")
    (run / "kernels.pbtxt").symlink_to(tmp_path / "private")
    found = verdict(place, run, "--steps=1", code=1, TMPDIR=str(scratch))
    assert found.replay is not None
    assert found.replay.status == "cannot tell"
    assert "file-leaves-root" in found.replay.note
    assert not any("PRIVATE" in path.read_text() for path in scratch.rglob("kernels.pbtxt"))


# What needs no step computed again to be found, and no other source.
FILES = [
    each for each in flips.FLIPS if "loss" not in each.expected and each.expected not in ("array", "source")
]


@pytest.mark.parametrize("flip", FILES, ids=lambda flip: flip.name)
def test_what_was_flipped_is_named_first(
    flip: flips.Flip, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, here = copy(place, tmp_path), flips.Place(place)
    for name, value in (("HARNESS_LOCK_SHA256", flips.LOCK), *flip.environment):
        # The flags of these tests are the run's too; one more is the difference.
        monkeypatch.setenv(name, f"{os.environ['XLA_FLAGS']} {value}" if name == "XLA_FLAGS" else value)
    with flips.kept(here):
        flip.change(here, run)
        found = verify_run(RunDir(run), steps=0, start=0, device=None, watcher=Listener())
    assert (found.verdict, found.first_difference) == ("differs", flip.expected)


def test_arrays_that_differ_are_named(place: Path, tmp_path: Path) -> None:
    run, here = copy(place, tmp_path), flips.Place(place)
    with flips.kept(here):
        flips.weight_value(here, run)
        found = verdict(place, run, "--steps=1", code=1)
    rows = {row.field: row for row in found.fields}
    assert found.first_difference == "weights.weights"
    assert rows["weights.weights"].note == "arrays that differ: PaliGemma/img/embedding/kernel"
    assert [name for name in rows if name.startswith("leaves.")] == ["leaves.PaliGemma/img/embedding/kernel"]
    assert found.replay is not None
    assert found.replay.status == "differs"


def test_metrics_and_checkpoints_that_were_changed(place: Path, tmp_path: Path) -> None:
    run, here = copy(place, tmp_path), flips.Place(place)
    change_metrics(run, place)
    found = verdict(place, run, "--steps=2", code=1)
    assert str(found.first_difference).startswith("loss of step 1")
    flips.checkpoint_byte(here, run)
    found = verdict(place, run, "--steps=1", "--from=2", code=1)
    assert found.replay is not None
    assert found.replay.status == "differs"
    assert str(found.first_difference).startswith("array ")


def test_a_damaged_plan_is_a_field_that_cannot_be_told(place: Path, tmp_path: Path) -> None:
    run = copy(place, tmp_path)
    (run / "plan.json").write_text("{")
    found = verdict(place, run, "--steps=0", code=1)
    assert [row.status for row in found.fields if row.field == "plan"] == ["cannot tell"]


def test_a_run_does_not_go_on_with_other_statistics(place: Path, tmp_path: Path) -> None:
    """They lie in the run's directory, current by what they were computed from, and are not those that it was
    started with.
    """
    run = copy(place, tmp_path)
    flips.a_statistic(flips.Place(place), run)
    sets = [f"--run={run}", "--steps=5"]
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "train", "--resume", *sets],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "[norm_stats-differs]" in done.stderr


def test_two_runs(place: Path, tmp_path: Path) -> None:
    run = copy(place, tmp_path)
    found = Verdict.model_validate_json(
        harness(place / "cache", "verify", str(place / "run"), str(run), "--json")
    )
    assert found.verdict == "equal"
    change_metrics(run, place)
    found = Verdict.model_validate_json(
        harness(place / "cache", "verify", str(place / "run"), str(run), "--json", code=1)
    )
    assert str(found.first_difference).startswith("loss of step 1")


def received(place: Path, tmp_path: Path, **recipe: dict[str, Any]) -> Path:
    """A copy of the run whose manifest's recipe says something else."""
    run = copy(place, tmp_path)
    body = json.loads((run / "manifest.json").read_text())
    for section, changes in recipe.items():
        body["recipe"][section] |= changes
    (run / "manifest.json").write_text(json.dumps(body))
    return run


@pytest.mark.parametrize("steps", ["0", "1"])
def test_verify_asks_no_server_that_only_the_run_names(steps: str, place: Path, tmp_path: Path) -> None:
    stranger = Server()
    try:
        run = received(
            place,
            tmp_path,
            weights={"source": f"{stranger.url}/ckpt/internal"},
            data={"dataset": "lab/robot", "revision": None},
        )
        known = {
            "HF_ENDPOINT": stranger.url,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_" + "a" * 34,
            "HF_HOME": str(tmp_path / "hf"),
            "NO_PROXY": "*",
        }
        found = verdict(
            place, run, f"--steps={steps}", code=1, HARNESS_CACHE=str(tmp_path / "cache"), **known
        )
        assert stranger.requests == []
        rows = {row.field: row for row in found.fields}
        assert rows["dataset"].status == "cannot tell"
        assert "lab/robot is not on this machine" in str(rows["dataset"].note)
        assert "--fetch" in str(rows["dataset"].note)
        verdict(place, run, "--steps=0", "--fetch", code=1, HARNESS_CACHE=str(tmp_path / "cache"), **known)
        assert stranger.requests != []
    finally:
        stranger.httpd.shutdown()
        stranger.httpd.server_close()


@pytest.mark.parametrize("end", ["..", "%2e%2e", "lock", ""])
def test_verify_leaves_the_cache_as_it_is_whatever_the_run_names(
    end: str, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache/huggingface").mkdir(parents=True)
    (tmp_path / "cache/huggingface/data").write_text("mine")
    run = received(place, tmp_path, weights={"source": f"http://127.0.0.1:9/ckpt/{end}"})
    harness(tmp_path / "cache", "verify", str(run), "--steps=0", code=1)
    assert [path.name for path in (tmp_path / "cache").rglob("*")] == ["huggingface", "data"]


def test_a_directory_that_is_no_dataset_is_neither_listed_nor_hashed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text("hunter2")
    monkeypatch.setenv("HOME", str(home))
    # A terabyte, which takes an hour to hash.
    os.truncate(home / "secret", 2**40)
    run = received(place, tmp_path, data={"dataset": "~"})
    found = verify_run(RunDir(run), steps=0, start=0, device=None, watcher=Listener())
    row = next(row for row in found.fields if row.field == "dataset")
    assert (row.status, row.found) == ("cannot tell", None)
    assert "not a LeRobot dataset" in str(row.note)


def test_what_is_no_run_is_refused(place: Path, tmp_path: Path) -> None:
    harness(place / "cache", "verify", str(tmp_path), code=2)
    run = copy(place, tmp_path)
    (run / "metrics.jsonl").write_text("not metrics\n")
    harness(place / "cache", "verify", str(run), code=2)


def test_a_field_that_nobody_knows_raises_no_doubt_and_one_that_only_the_run_knows_does(place: Path) -> None:
    manifest = Manifest.model_validate_json((place / "run" / "manifest.json").read_text()).model_copy(
        update={"lock_sha256": "a" * 64, "image": None}
    )
    rows = {row.field: row for row in compare_fields(manifest, found_as(manifest, lock_sha256=None))}
    assert rows["lock"].status == "cannot tell"
    assert rows["lock"].matters
    assert not rows["image"].matters
    assert overall(list(rows.values()), []) == "cannot tell"
    assert first_difference(list(rows.values())) is None
    cadence = dict(manifest.recipe) | {"name": "other"}
    rows = {row.field: row for row in compare_fields(manifest, found_as(manifest, recipe=cadence))}
    assert rows["recipe"].status == "equal"
    assert not rows["recipe.name"].matters
    assert overall(list(rows.values()), []) == "equal"


# Cause, and what follows from it: where both differ, the cause is named.
CAUSES = [
    ("recipe", "dataset_sha256"),
    ("dataset_sha256", "norm_stats_sha256"),
    ("lock_sha256", "packages"),
    ("packages", "norm_stats_sha256"),
    ("source_sha256", "plan"),
    ("weights", "leaves"),
    ("device", "leaves"),
    ("environment", "executable_fingerprint"),
    ("device", "plan"),
    ("plan", "step_fingerprint"),
    ("kernels_sha256", "executable_fingerprint"),
    ("step_fingerprint", "executable_fingerprint"),
]


@pytest.mark.parametrize(("cause", "effect"), CAUSES)
def test_causes_are_named_before_what_follows_from_them(cause: str, effect: str, place: Path) -> None:
    manifest = Manifest.model_validate_json((place / "run" / "manifest.json").read_text())
    levers = manifest.plan.levers.model_copy(update={"platform": "cuda"})
    known = {
        "kernels_sha256": "a" * 64,
        "lock_sha256": "b" * 64,
        "plan": manifest.plan.model_copy(update={"levers": levers}),
    }
    manifest = manifest.model_copy(update=known)

    def other(name: str) -> Any:
        value = getattr(found_as(manifest), name)
        return dict(value) | {"other": "x"} if isinstance(value, dict) else "x"

    named = first_difference(compare_fields(manifest, found_as(manifest, **{effect: other(effect)})))
    assert named is not None
    rows = compare_fields(manifest, found_as(manifest, **{cause: other(cause), effect: other(effect)}))
    assert first_difference(rows) == first_difference(
        compare_fields(manifest, found_as(manifest, **{cause: other(cause)}))
    )
    assert first_difference(rows) != named


def test_flags_are_compared_one_by_one_and_dumps_change_nothing(place: Path) -> None:
    manifest = Manifest.model_validate_json((place / "run" / "manifest.json").read_text()).model_copy(
        update={"environment": {"XLA_FLAGS": "--a=1 --b"}}
    )

    def named(flags: str) -> str | None:
        return first_difference(
            compare_fields(manifest, found_as(manifest, environment={"XLA_FLAGS": flags}))
        )

    assert named("--b=true   --a=1 --xla_dump_to=/somewhere") is None
    assert named("--a=2 --b") == "environment.XLA_FLAGS.--a"
    assert named("--a=1") == "environment.XLA_FLAGS.--b"


def test_two_commits_with_one_source_are_one(place: Path) -> None:
    manifest = Manifest.model_validate_json((place / "run" / "manifest.json").read_text()).model_copy(
        update={"source_revision": "a" * 40}
    )
    rows = compare_fields(manifest, found_as(manifest, source_revision="b" * 40))
    assert first_difference(rows) is None
    assert (
        first_difference(
            compare_fields(manifest, found_as(manifest, source_revision="b" * 40, source_sha256=None))
        )
        == "source_revision"
    )
