"""Verify: a run of our own is equal in every field and bit for bit; whatever was changed afterwards is named first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Manifest
from harness.artifacts.verdict import Verdict
from harness.data.sample import sample_dataset_path
from harness.errors import HarnessError
from harness.verify.fields import Found, compare, first_difference, overall
from harness.verify.replay import compare_metrics, recorded_metrics

SMALL = [f"--set={key}" for key in ("model.image_size=56", "data.augment=false", "train.save_every_steps=2", "train.keep_every_steps=2")]


def harness(cache: Path, *arguments: str, code: int | None = 0, **environment: str) -> str:
    env = os.environ | {"HARNESS_CACHE": str(cache), "WANDB_MODE": "disabled"} | environment
    done = subprocess.run([sys.executable, "-m", "harness.cli", *arguments], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert code is None or done.returncode == code, done.stderr[-3000:] + done.stdout[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a trained run, its dataset and a cache of compiled programs."""
    root = tmp_path_factory.mktemp("verify")
    shutil.copytree(sample_dataset_path(), root / "data")
    harness(root / "cache", "train", "--steps=4", f"--run={root / 'run'}", f"--set=data.dataset={root / 'data'}", *SMALL)
    return root


def verdict(place: Path, run: Path, *arguments: str, code: int = 0, **environment: str) -> Verdict:
    return Verdict.model_validate_json(harness(place / "cache", "verify", str(run), "--json", *arguments, code=code, **environment))


def copy(place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(place / "run", tmp_path / "run")


def test_an_untouched_run_is_equal_bit_for_bit(place: Path, tmp_path: Path) -> None:
    run = copy(place, tmp_path)
    found = verdict(place, run, "--steps=3")
    assert found.verdict == "equal"
    assert found.replay is not None
    assert (found.replay.steps, found.replay.tolerance, found.replay.largest_difference) == (3, 0.0, 0.0)
    assert {row.field for row in found.fields if row.status == "equal"} >= {
        "recipe",
        "dataset",
        "norm_stats",
        "weights",
        "plan",
        "packages",
        "step_fingerprint",
    }
    assert Verdict.model_validate_json((run / "verdict.json").read_text()) == found


def test_it_can_begin_at_a_checkpoint(place: Path, tmp_path: Path) -> None:
    found = verdict(place, copy(place, tmp_path), "--steps=1", "--from=2", code=1)
    assert found.replay is not None
    assert (found.replay.start, found.replay.steps, found.replay.status) == (2, 1, "equal")
    # From a checkpoint nothing is described anew, and that is said; nothing differs.
    assert {row.field for row in found.fields if row.status == "cannot tell" and row.matters} == {"device", "step_fingerprint"}
    assert not [row for row in found.fields if row.status == "differs" and row.matters]


def change_recipe(run: Path, place: Path) -> None:
    del place
    file = run / "recipe.yaml"
    file.write_text(file.read_text().replace("seed: 42", "seed: 43"))


def change_data(run: Path, place: Path) -> None:
    del run
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = sorted((place / "data" / "data").rglob("*.parquet"))[0]
    table = pq.read_table(file)
    column = table.column("actions").to_pylist()
    column[0] = np.asarray(column[0]) + 0.5
    index = table.schema.get_field_index("actions")
    values = pa.array([list(map(float, row)) for row in column]).cast(table.schema.field(index).type)
    pq.write_table(table.set_column(index, table.schema.field(index), values), file)


def change_metrics(run: Path, place: Path) -> None:
    del place
    lines = (run / "metrics.jsonl").read_text().splitlines()
    body = json.loads(lines[1])
    body["loss"] = float(body["loss"]) * (1 + 1e-7)
    lines[1] = json.dumps(body)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("change", "first"), [(change_recipe, "recipe.train.seed"), (change_metrics, "loss of step 1")])
def test_what_was_changed_is_named_first(change: Callable[[Path, Path], None], first: str, place: Path, tmp_path: Path) -> None:
    run = copy(place, tmp_path)
    change(run, place)
    found = verdict(place, run, "--steps=2", code=1)
    assert found.verdict == "differs"
    assert str(found.first_difference).startswith(first)


def test_a_changed_dataset_and_another_flag_are_named(place: Path, tmp_path: Path) -> None:
    run = copy(place, tmp_path)
    kept = shutil.copytree(place / "data", tmp_path / "kept")
    try:
        change_data(run, place)
        assert verdict(place, run, "--steps=0", code=1).first_difference == "dataset"
    finally:
        shutil.rmtree(place / "data")
        kept.rename(place / "data")
    found = verdict(place, run, "--steps=0", code=1, XLA_FLAGS="--xla_cpu_enable_fast_math=true")
    assert found.first_difference == "environment.XLA_FLAGS"


def test_two_runs(place: Path, tmp_path: Path) -> None:
    run = copy(place, tmp_path)
    found = Verdict.model_validate_json(harness(place / "cache", "verify", str(place / "run"), str(run), "--json"))
    assert found.verdict == "equal"
    change_metrics(run, place)
    found = Verdict.model_validate_json(harness(place / "cache", "verify", str(place / "run"), str(run), "--json", code=1))
    assert str(found.first_difference).startswith("loss of step 1")


def test_what_is_no_run_is_refused(place: Path, tmp_path: Path) -> None:
    harness(place / "cache", "verify", str(tmp_path), code=2)
    run = copy(place, tmp_path)
    (run / "metrics.jsonl").write_text("not metrics\n")
    harness(place / "cache", "verify", str(run), code=2)


# --- the comparison itself ---


def test_a_field_that_nobody_knows_raises_no_doubt_and_one_that_only_the_run_knows_does(place: Path) -> None:
    manifest = Manifest.model_validate_json((place / "run" / "manifest.json").read_text()).model_copy(update={"lock_sha256": "a" * 64, "image": None})
    same: dict[str, Any] = {
        "recipe": manifest.recipe,
        "weights": {"source": "random", "seed": "42"},
        "plan": manifest.plan.levers.model_dump(mode="json"),
        "lock_sha256": None,
        "image": None,
    }
    same |= {name: getattr(manifest, name) for name in Found._fields if name not in same and name != "why"}
    rows = {row.field: row for row in compare(manifest, Found(**same))}
    assert rows["lock"].status == "cannot tell"
    assert rows["lock"].matters
    assert not rows["image"].matters
    assert overall(list(rows.values()), []) == "cannot tell"
    assert first_difference(list(rows.values())) is None
    cadence = dict(manifest.recipe) | {"name": "other"}
    rows = {row.field: row for row in compare(manifest, Found(**same | {"recipe": cadence, "lock_sha256": "a" * 64}))}
    assert rows["recipe"].status == "equal"
    assert not rows["recipe.name"].matters
    assert overall(list(rows.values()), []) == "equal"


def metrics(loss: float, step: int = 0) -> dict[int, dict[str, float]]:
    return {step: {"loss": loss, "grad_norm": 1.0, "param_norm": 2.0, "learning_rate": 1e-4}}


@pytest.mark.parametrize(
    ("recorded", "again", "tolerance", "status"),
    [
        (metrics(1.0), metrics(1.0), 0.0, "equal"),
        (metrics(1.0), metrics(1.0 + 2**-52), 0.0, "differs"),
        (metrics(1.0), metrics(1.01), 0.02, "equal"),
        (metrics(1.0), metrics(float("nan")), 0.02, "differs"),
        (metrics(float("nan")), metrics(float("nan")), 0.0, "equal"),
        (metrics(1.0), metrics(1.0, step=5), 0.0, "cannot tell"),
    ],
)
def test_metrics_are_compared_bit_for_bit_or_within_a_tolerance(recorded: Any, again: Any, tolerance: float, status: str) -> None:
    assert compare_metrics(recorded, again, start=0, tolerance=tolerance, device="cpu").status == status


def test_of_a_step_that_was_replayed_the_last_line_counts(tmp_path: Path) -> None:
    lines = [json.dumps({"step": 0, "loss": loss, "grad_norm": 1, "param_norm": 1, "learning_rate": 1}) for loss in (3.0, 4.0)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert recorded_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == 4.0
    with pytest.raises(HarnessError) as caught:
        recorded_metrics(tmp_path / "nothing.jsonl")
    assert caught.value.code == "metrics-missing"
