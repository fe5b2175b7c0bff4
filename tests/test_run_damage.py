"""Tests damaged files of a run: every verb that reads one answers, or refuses with our own error.

A resume does the same.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

import click
import pytest

from harness.artifacts import Dataset, Manifest, NormStats
from harness.choose.choose import choose
from harness.cli import app
from harness.errors import HarnessError
from harness.flow.chain import Chain
from harness.flow.find import recipe_of
from harness.probe.machine import probe
from harness.recipe.load import load_recipe, recipe_from
from harness.run.directory import RunDir, sha256_json
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


def test_no_fix_deletes_what_no_verb_writes_again(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "smoke-001"))
    for name, kind in (("manifest.json", Manifest), ("dataset.json", Dataset)):
        for text in ("{", '{"schema_version": 2}'):
            (copy / name).write_text(text)
            with pytest.raises(HarnessError) as caught:
                RunDir(copy).read(kind)
            assert ("rm " in str(caught.value.fix)) == (kind is Dataset)
    assert "version 2" in caught.value.what
    (copy / "dataset.json").write_text('{"sha256": "1", "sha256": "2"}')
    with pytest.raises(HarnessError, match="the key 'sha256' twice"):
        RunDir(copy).read(Dataset)
    (copy / "dataset.json").write_bytes(bytes(500))
    with pytest.raises(HarnessError, match="zeros alone"):
        RunDir(copy).read(Dataset)


def test_a_lost_recipe_is_the_manifests(run: Path, tmp_path: Path) -> None:
    """Not the default one, with which the run cannot go on."""
    copy = RunDir(shutil.copytree(run, tmp_path / "smoke-001"))
    own = recipe_of(copy, None, [], own_first=True)
    (copy.path / "recipe.yaml").write_bytes(bytes(500))
    with pytest.raises(HarnessError) as caught:
        recipe_of(copy, None, [], own_first=True)
    assert f"mv {copy.path}/recipe.yaml {copy.path}/recipe.yaml.old" in str(caught.value.fix)
    (copy.path / "recipe.yaml").unlink()
    assert recipe_of(copy, None, [], own_first=True) == own
    assert recipe_of(copy, None, ["train.steps=70"], own_first=True).train.steps == 70
    with pytest.raises(HarnessError, match="run-of-another-recipe"):
        recipe_of(copy, "pi05_libero", [], own_first=True)


def test_of_two_runs_the_files_of_both_are_looked_at(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "smoke-001"))
    assert verify_pair(RunDir(copy), RunDir(run)).verdict == "equal"
    file = copy / "norm_stats.json"
    body = json.loads(file.read_text())
    body["norm_stats"]["state"]["mean"][0] += 1.0
    file.write_text(json.dumps(body))
    for one, other in ((copy, run), (run, copy)):
        found = verify_pair(RunDir(one), RunDir(other))
        assert (found.verdict, str(found.first_difference).rpartition("files.")[2]) == (
            "differs",
            "norm_stats.json",
        )


@pytest.mark.parametrize(
    ("key", "value", "hashed", "verdict"),
    [
        ("dataset", "/elsewhere/sample", {}, "equal"),
        ("dataset", "/elsewhere/sample", {"dataset_sha256": "1" * 64}, "differs"),
        ("prompt", "another instruction", {}, "differs"),
    ],
)
def test_two_runs_may_have_the_same_bytes_at_two_places(
    key: str, value: str, hashed: dict[str, str], verdict: str, run: Path, tmp_path: Path
) -> None:
    copy = RunDir(shutil.copytree(run, tmp_path / "smoke-001"))
    was = copy.read(Manifest)
    assert was is not None
    own = recipe_from(dict(was.recipe), where="recipe")
    moved = own.model_copy(update={"data": own.data.model_copy(update={key: value})})
    changed = {"recipe": moved.model_dump(mode="json"), "recipe_sha256": moved.sha256()}
    RunDir(run).write(was.model_copy(update={"recipe_sha256": own.sha256()}))
    copy.write(was.model_copy(update=changed | hashed))
    found = verify_pair(RunDir(run), copy)
    RunDir(run).write(was)
    rows = {row.field: row for row in found.fields}
    assert rows[f"recipe.data.{key}"].status == rows["recipe_sha256"].status == "differs"
    assert found.verdict == verdict


def test_a_page_that_has_no_place_in_the_run_may_lie_elsewhere(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "smoke-001"))
    (copy / "report.html").unlink(missing_ok=True)
    (copy / "report.html").mkdir()
    with pytest.raises(HarnessError) as caught:
        READERS["report"](copy)
    assert caught.value.code == "not-writable"
    assert "--output" in str(caught.value.fix)


@pytest.mark.parametrize(("verb", "name"), [("analyse", "curve.json"), ("choose", "choice.json")])
def test_an_answer_that_cannot_be_kept_is_given_all_the_same(
    verb: str, name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "smoke-001"))
    (copy / name).unlink(missing_ok=True)
    # No file can be written where a directory is, as none can in a run that is somebody else's.
    (copy / name).mkdir()
    with contextlib.suppress(SystemExit, click.exceptions.Exit):
        app([verb, str(copy), "--json"], standalone_mode=False)
    said = capsys.readouterr()
    assert json.loads(said.out)["schema_version"] == 1
    assert f"{name} was not written" in said.err
    with pytest.raises(HarnessError, match="not-writable"):
        app([verb, "--run", str(copy)], standalone_mode=False)
