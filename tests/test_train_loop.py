"""Tests runs through the real command line, in separate processes: killed, stopped, resumed, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from harness.artifacts import Manifest, Memory
from harness.data.sample import sample_dataset_path
from harness.profile.profile import profile
from harness.run.directory import RunDir
from tests.support.openpi_checkpoints import openpi_checkpoint
from tests.support.real_runs import (
    SMALL,
    STEPS,
    assert_same,
    harness,
    learned,
    metrics,
    small,
    start,
    wait_for,
)
from tests.support.session import CACHE, whole_run


@pytest.fixture(scope="module")
def cache() -> Path:
    return CACHE


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted: a copy of its own, since some tests resume it while others are read."""
    return Path(shutil.copytree(whole_run(), tmp_path_factory.mktemp("runs") / "whole", symlinks=True))


def test_an_uninterrupted_run_leaves_every_file_of_the_flow(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    files = {
        "machine.json",
        "plan.json",
        "dataset.json",
        "norm_stats.json",
        "manifest.json",
        "metrics.jsonl",
        "memory.json",
        "checkpoints",
        "checkpoint.json",
        "report.html",
    }
    assert files <= names
    assert json.loads((whole / "checkpoint.json").read_text())["steps"][-1]["complete"] is True
    assert (whole / "camera_views.png").stat().st_size > 1000


def test_where_the_time_of_its_steps_went_is_told(whole: Path) -> None:
    found = profile(whole)
    assert (found.first_step, found.steps) == (3, 2)
    parts = {row.part for row in found.rows}
    assert parts >= {"vision", "attention", "language and actions", "update"}
    assert {row.turn for row in found.rows if row.part == "vision"} >= {"forward", "backward"}
    assert 0 < found.busy_s <= found.step_s


def test_memory_is_measured_beside_what_the_compiler_said(whole: Path) -> None:
    memory, manifest = RunDir(whole).read(Memory), RunDir(whole).read(Manifest)
    assert memory is not None
    assert manifest is not None
    assert memory.step == STEPS
    assert memory.compiled == manifest.compiled_bytes
    assert memory.host_peak_bytes > memory.compiled["device"]
    assert "peak_bytes" in memory.unknown  # XLA's CPU client keeps no such figure


def test_wandb_offline_holds_metrics_and_camera_views(whole: Path) -> None:
    (file,) = whole.glob("wandb/offline-run-*/run-*.wandb")
    logged = file.read_bytes()
    for name in (b"camera_views", b"grad_norm", b"learning_rate"):
        assert name in logged
    assert list(whole.glob("wandb/offline-run-*/files/media/images/*.png"))
    assert (whole / "wandb_id.txt").read_text().strip() in file.name


@pytest.mark.parametrize("after", [2, 7])
def test_killed_and_resumed_is_bitwise_the_run_that_was_not(
    cache: Path, whole: Path, tmp_path: Path, after: int
) -> None:
    """Killed before the first checkpoint, and after one."""
    run = tmp_path / "killed"
    process = start(cache, *small(run))
    # A checkpoint is written in the background: step 4's is whole before step 9 at the latest, when the next
    # save begins.
    wait_for(
        lambda: len(metrics(run)) >= after and (after <= 4 or (run / "checkpoints" / "4").is_dir()), process
    )
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(metrics(run)) < STEPS
    # Another number of loader processes makes the same batches.
    _, err = harness(
        cache, "train", "--resume", "--run", str(run), HARNESS_LOADER_WORKERS="1" if after > 4 else "0"
    )
    assert ("resuming from the checkpoint" in err) == (after > 4)
    assert_same(run, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_saves_and_exits_cleanly(
    cache: Path, whole: Path, tmp_path: Path, number: int
) -> None:
    run = tmp_path / "stopped"
    process = start(cache, *small(run))
    wait_for(lambda: len(metrics(run)) >= 2, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    done = len(metrics(run))
    assert done < STEPS
    assert "stopped and saved" in err
    assert (run / "checkpoints" / str(done)).is_dir()
    harness(cache, "train", "--resume", "--run", str(run))
    assert_same(run, whole)


def test_a_stop_before_the_first_step_loses_nothing(cache: Path, tmp_path: Path) -> None:
    """While it plans there is no trainer to stop; told while the step is being compiled, the trainer ends
    before it computes anything.
    """
    run = tmp_path / "early"
    arguments = ("train", "--recipe=smoke", "--steps=1", *SMALL, "--run", str(run))
    # In an empty cache there is no plan, so that it is computed.
    process = start(tmp_path / "cache", *arguments)
    assert process.stderr is not None
    assert any("planning" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error [stopped]" in err
    process = start(cache, *arguments)
    assert process.stderr is not None
    assert any("compiling" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "stopped before its first step" in err
    assert not (run / "metrics.jsonl").exists()


def test_the_trainer_says_in_which_phase_it_is(cache: Path, whole: Path, tmp_path: Path) -> None:
    """What a lack of memory, or any other end, is told with."""
    run = tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("checkpoints", "wandb", "metrics.jsonl"))
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(f"steps: {STEPS}\n", "steps: 1\n", 1))
    env = os.environ | {
        "HARNESS_CACHE": str(cache),
        "WANDB_MODE": "disabled",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "harness.train.worker", str(run)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["name"] for event in events if event["event"] == "phase"] == [
        "start",
        "compile",
        "init",
        "step",
        "save",
        "step",
    ]
    recipe.write_text(recipe.read_text().replace("steps: 1\n", "steps: 2\n", 1))
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert '{"event": "phase", "name": "restore"}' in done.stdout


def test_a_finished_run_resumed_is_left_as_it_is(cache: Path, whole: Path) -> None:
    before = learned(whole)
    _, err = harness(cache, "train", "--resume", "--run", str(whole))
    assert "already" in err
    assert learned(whole) == before


def test_a_trained_run_is_not_trained_over(cache: Path, whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    _, err = harness(cache, "train", "--recipe=smoke", *SMALL, "--run", str(whole), code=2)
    assert "run-exists" in err
    assert "--resume" in err
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_another_recipe_in_the_same_directory_is_refused(cache: Path, whole: Path) -> None:
    before = (whole / "recipe.yaml").read_bytes()
    _, err = harness(
        cache,
        "train",
        "--recipe=smoke",
        "--resume",
        "--set=train.seed=7",
        *SMALL,
        "--run",
        str(whole),
        code=2,
    )
    assert "run-of-another-recipe" in err
    assert (whole / "recipe.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats", "--set=model.action_horizon=5"],
        ["data", "--recipe=pi05_libero"],
        ["plan", "--set=train.seed=7"],
    ],
)
def test_other_verbs_do_not_write_another_recipe_into_a_started_run(
    cache: Path, whole: Path, arguments: list[str]
) -> None:
    files = [whole / name for name in ("recipe.yaml", "dataset.json", "norm_stats.json", "plan.json")]
    before = [file.read_bytes() for file in files]
    _, err = harness(cache, *arguments, "--run", str(whole), code=2)
    assert "run-of-another-recipe" in err
    assert [file.read_bytes() for file in files] == before
    harness(cache, "stats", "--run", str(whole))  # without --recipe and --set it is the run's own recipe
    assert [file.read_bytes() for file in files] == before


def test_a_dataset_that_has_changed_is_refused_on_resume_and_nothing_is_overwritten(
    cache: Path, tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(sample_dataset_path(), data)
    harness(
        cache, "train", "--recipe=smoke", "--steps=1", *SMALL, f"--set=data.dataset={data}", "--run", str(run)
    )
    before = {
        name: (run / name).read_bytes() for name in ("dataset.json", "norm_stats.json", "manifest.json")
    }
    (data / "meta" / "tasks.jsonl").write_text(
        (data / "meta" / "tasks.jsonl").read_text().replace("stove", "plate")
    )
    _, err = harness(cache, "train", "--resume", "--steps=2", "--run", str(run), code=2)
    assert "dataset-differs" in err
    assert {name: (run / name).read_bytes() for name in before} == before


def test_resume_takes_the_latest_run_that_has_started(cache: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "smoke-001")
    (tmp_path / "smoke-002").mkdir()
    shutil.copy(whole / "recipe.yaml", tmp_path / "smoke-002")
    _, err = harness(cache, "train", "--resume", HARNESS_RUNS=str(tmp_path), HARNESS_RECIPE="smoke")
    assert "smoke-001" in err
    assert "already trained" in err


def test_interrupted_saves_are_deleted_on_request_alone(cache: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    left = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    (left / "params").mkdir(parents=True)
    for path in (left / "params", left):
        os.utime(path, (1, 1))
    harness(cache, "inspect", str(tmp_path))
    assert left.is_dir()
    _, err = harness(cache, "inspect", str(tmp_path), "--clean")
    assert "deleted" in err
    assert not left.exists()
    assert (tmp_path / "checkpoints" / str(STEPS)).is_dir()


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "nan"
    poison = [
        "--set=train.optimizer.schedule={warmup_steps: 0, peak: 1.0e+30, decay_steps: 12, end: 1.0e+30}"
    ]
    _, err = harness(cache, *small(run, *poison), code=2)
    assert "loss-not-finite" in err
    for line in metrics(run):
        assert np.isfinite(line["loss"])


def test_a_real_recipe_without_a_gpu_is_refused_and_never_falls_back_to_the_cpu(
    cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "big"
    _, err = harness(
        cache,
        "train",
        "--recipe=pi05_libero",
        "--set=data.dataset=sample",
        "--set=data.tokenizer=sample",
        "--run",
        str(run),
        code=2,
        CUDA_VISIBLE_DEVICES="",
    )
    assert "no-gpu" in err
    assert not (run / "checkpoints").exists()


def test_a_lora_run_that_saves_only_what_was_trained_resumes_bitwise(cache: Path, tmp_path: Path) -> None:
    base = openpi_checkpoint("full", tmp_path) / "4" / "params"
    lora = [f"--set=model.{expert}.lora={{rank: 4, alpha: 4.0}}" for expert in ("paligemma", "action_expert")]
    common = [
        "--recipe=smoke",
        *lora,
        "--set=train.trained=lora",
        f"--set=weights.source={base}",
        "--set=train.ema_decay=null",
        "--set=data.augment=false",
        "--set=train.global_batch=2",
    ]
    all_of_it, part = tmp_path / "all", tmp_path / "part"
    harness(cache, "train", *common, "--steps=4", "--run", str(all_of_it))
    small = ["--set=train.save=trained", "--set=train.save_every_steps=2"]
    harness(cache, "train", *common, *small, "--steps=2", "--run", str(part))
    harness(cache, "train", "--resume", "--steps=4", "--run", str(part))
    assert learned(part) == learned(all_of_it)
    saved = ocp.PyTreeCheckpointer().metadata(part / "checkpoints" / "4" / "params").item_metadata.tree
    names = str(saved)
    assert "lora_a" in names
    assert "input_embedding" not in names
    assert json.loads((part / "checkpoints/4/harness/base.json").read_text())["source"] == str(base)
