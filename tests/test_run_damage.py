"""Tests damaged files of a run: every verb that reads one answers, or refuses with our own error.

A resume does the same.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from harness.artifacts import Dataset, NormStats
from harness.choose.choose import choose
from harness.flow.chain import Chain
from harness.probe.machine import probe
from harness.recipe.load import load_recipe
from harness.run.directory import sha256_json
from harness.verify.run import verify_pair
from tests.support.held_out import falling, run_of
from tests.support.mutation import damage_file, damage_value
from tests.support.report_run import full_run, manifest
from tests.support.run_readers import READERS, TEXTS, outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that a run may have; data and statistics are those of the sample."""
    directory = full_run(tmp_path_factory.mktemp("runs") / "smoke-001")
    for name in ("dataset.json", "norm_stats.json", "manifest.json"):
        (directory.path / name).unlink()
    chain = Chain(directory, load_recipe("smoke"), trains=True)
    dataset = chain.dataset()
    directory.write(
        manifest(
            dataset_sha256=dataset.sha256, norm_stats_sha256=sha256_json(chain.stats(dataset).norm_stats)
        )
    )
    directory.write(probe([directory.path]))
    directory.write(verify_pair(directory, directory))
    (directory.path / ".lock").write_text('{"pid": 1, "host": "x", "since": 1.0}')
    (directory.path / "wandb_id.txt").write_text("abcdefgh\n")
    directory.write(choose(run_of(directory.path, falling(3, 3), [])))
    assert directory.read(Dataset)
    assert directory.read(NormStats)
    return directory.path


@pytest.mark.parametrize("seed", range(2))
def test_no_damage_brings_a_reader_down(seed: int, run: Path, tmp_path: Path) -> None:
    """Fifteen damages each; benchmarks/damage_artifacts.py does thousands.

    A page with its drawings is made of one of them.
    """
    chance = random.Random(seed)
    there = [name for name in TEXTS if (run / name).is_file()]
    assert len(there) > 10
    for number in range(15):
        copy = shutil.copytree(run, tmp_path / "smoke-001")
        victim = copy / chance.choice(there)
        done = (
            damage_value(victim, chance)
            if victim.suffix in (".json", ".jsonl") and chance.random() < 0.5
            else damage_file(victim, chance)
        )
        for name, reader in READERS.items():
            if name != "report" or number == 0:
                assert outcome(reader, copy) != "a refusal without a fix", done
        shutil.rmtree(copy)


def test_the_readers_read(run: Path, tmp_path: Path) -> None:
    """What the law above rests on: whole, the run is read by all; without its manifest, by fewer."""
    copy = Path(shutil.copytree(run, tmp_path / "smoke-001"))
    whole = {name: outcome(reader, copy) for name, reader in READERS.items()}
    # It has no checkpoint to inspect, and nobody would take its sixty lines for learning.
    assert whole.pop("inspect") == "checkpoint-empty"
    assert whole.pop("choose") == "exit code 1"
    assert whole.pop("status").startswith("exit code")
    assert whole == {
        "analyse": "exit code 1",
        "verify": "exit code 0",
        "report": "exit code 0",
        "resume": "exit code 0",
    }
    (copy / "manifest.json").write_text("{")
    assert outcome(READERS["verify"], copy) == "artifact-invalid"
