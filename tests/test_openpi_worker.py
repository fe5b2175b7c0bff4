"""Tests openpi under the supervisor, with a stand-in that prints and saves as openpi does.

Covered are its metrics, its checkpoints, and every way in which it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.checkpoint.inspect import inspect
from harness.data.sample import sample_dataset_path
from harness.flow.trainer_openpi import Openpi
from harness.run.status import read_status
from harness.supervise.run import Outcome
from tests.support.openpi_scene import Scene
from tests.support.openpi_standin import HEAD, started


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda **plan: Scene(tmp_path, monkeypatch, **plan)


def test_a_run_from_start_to_end(scene: Any) -> None:
    run = scene(unlike_lock=["wandb 0.24.2 instead of 0.19.11"])
    outcome = run.train()
    assert outcome == Outcome(7, True, 0)
    assert [line["step"] for line in run.lines()] == list(range(7))
    assert [line["loss"] for line in run.lines()] == [round(2 / (1 + 0.3 * step), 4) for step in range(7)]
    assert run.lines()[0]["learning_rate"] == pytest.approx(3e-3 / 6)
    assert "data_s" not in run.lines()[0]
    assert [text.partition(" ")[2] for text in run.listener.heard if text.startswith("phase")] == [
        "import",
        "start",
        "load",
        "compile",
        "step",
        "save",
    ]
    assert run.manifest.upstream is not None
    assert run.manifest.upstream.commit == HEAD
    assert run.manifest.upstream.unlike_lock == ["wandb 0.24.2 instead of 0.19.11"]
    assert run.manifest.packages["jax"] == "0.5.3"
    assert run.manifest.lock_sha256 == "ab" * 32
    assert (run.manifest.step_fingerprint, run.manifest.weights) == (None, {"source": "random", "seed": 42})
    assert read_status(run.run).state == "finished"
    assert read_status(run.run).saved_step == 7


def test_what_an_import_prints_is_not_taken_for_the_entrys_line(scene: Any) -> None:
    run = scene(before=["{'level': 'warn'}", '{"level": "info", "what": "a plugin"}', "{", "{}"])
    assert run.train() == Outcome(7, True, 0)
    assert run.manifest.upstream is not None
    assert run.manifest.upstream.commit == HEAD


def test_openpi_reads_the_runs_own_files(scene: Any) -> None:
    run = scene()
    run.train()
    (once,) = started(run.openpi)
    job, env = once["job"], once["env"]
    stats = json.loads(
        (Path(job["assets"]["assets_dir"]) / job["assets"]["asset_id"] / "norm_stats.json").read_text()
    )["norm_stats"]
    ours = json.loads((run.run.path / "norm_stats.json").read_text())["norm_stats"]
    assert {key: {name: stats[key][name] for name in ("mean", "std", "q01", "q99")} for key in stats} == {
        key: {name: ours[key][name] for name in ("mean", "std", "q01", "q99")} for key in ours
    }
    assert (Path(env["HF_LEROBOT_HOME"]) / job["repo_id"] / "meta/info.json").is_file()
    assert (Path(env["OPENPI_DATA_HOME"]) / "big_vision/paligemma_tokenizer.model").stat().st_size > 1000
    assert (env["WANDB_MODE"], env["HF_HUB_OFFLINE"]) == ("offline", "1")
    assert env["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert job["sizes"] == {"vision": "mu/14", "vocab_size": 512}
    assert (job["train"]["overwrite"], job["train"]["resume"]) == (False, False)
    assert job["checkpoint_dir"] == str(run.run.checkpoints.absolute())


@pytest.mark.parametrize("name", ["of@home", ".."])
def test_a_dataset_in_a_directory_of_any_name_is_where_openpi_looks(
    name: str, scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An "@" is a revision in names on the hub alone, and ".." is no name of a link."""
    data, run = tmp_path / "of@home", scene()
    shutil.copytree(sample_dataset_path(), data)
    monkeypatch.chdir(data / "meta")
    run.prepare(f"data.dataset={data if name == data.name else name}")
    run.train()
    (once,) = started(run.openpi)
    assert once["job"]["repo_id"] == data.name
    assert (Path(once["env"]["HF_LEROBOT_HOME"]) / data.name).resolve() == data.resolve()


def test_a_number_of_loader_processes_that_is_none_is_refused(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scene()
    monkeypatch.setenv("HARNESS_LOADER_WORKERS", "four")
    assert run.ends_with().code == "loader-workers-invalid"


def test_its_checkpoints_are_inspected_and_digested(scene: Any) -> None:
    run = scene()
    run.train()
    found = inspect(run.run.path, deep=True)
    assert (found.layout, found.step, found.partial) == ("openpi", 6, False)
    assert [step.complete for step in found.steps] == [True]
    assert found.parameters_trained == found.parameters_total == run.manifest.parameters_trained
    assert not [text for text in found.findings if "sha256" in text]
    digests = json.loads((run.run.checkpoints / "6/harness/digests.json").read_text())
    assert set(digests["leaves"]) == {f"{leaf.item}/{leaf.path}" for leaf in found.leaves}
    key, value = next(iter(digests["leaves"].items()))
    digests["leaves"][key] = value[::-1]
    (run.run.checkpoints / "6/harness/digests.json").write_text(json.dumps(digests))
    assert any("sha256" in text for text in inspect(run.run.path, deep=True).findings)


def test_a_resume_says_that_batches_are_seen_again(scene: Any) -> None:
    run = scene()
    run.train()
    run.prepare("train.steps=10")
    assert run.train() == Outcome(10, True, 0)
    assert started(run.openpi)[1]["job"]["train"]["resume"] is True
    assert [line["step"] for line in run.lines()] == list(range(10))
    # The stand-in's loss is that of the batch, and its loader begins anew.
    assert run.lines()[7]["loss"] == run.lines()[0]["loss"]
    assert run.manifest.upstream is not None
    assert "resumed at step 7" in run.manifest.upstream.notes[-1]
    assert "seen again" in run.manifest.upstream.notes[-1]


def test_what_is_trained_already_is_not_started_again(scene: Any) -> None:
    run = scene()
    run.train()
    assert run.train() == Outcome(7, True, 0)
    assert len(started(run.openpi)) == 1


def test_means_over_several_steps_say_so(scene: Any) -> None:
    run = scene()
    run.prepare("train.log_every_steps=3")
    run.train()
    assert [(line["step"], line["mean_of_steps"]) for line in run.lines()] == [(0, 1), (3, 3), (6, 3)]
    run.prepare("train.log_every_steps=3", "train.steps=10")
    run.train()
    # It began at step 7: two steps were taken until it logged again.
    assert [(line["step"], line["mean_of_steps"]) for line in run.lines()][3:] == [(9, 3)]
    assert read_status(run.run).state == "finished"


@pytest.mark.parametrize(
    "plan",
    [
        {"signal_at_import": int(signal.SIGSEGV)},
        {"exit_at_import": 139},
        {"signal_at_import": int(signal.SIGABRT)},
    ],
)
def test_a_crash_at_import_is_told_as_one(scene: Any, plan: dict[str, int]) -> None:
    run = scene(**plan)
    error = run.ends_with(restarts=3)
    assert error.code == "openpi-crashed-at-import"
    assert "uv sync --frozen" in error.fix
    # It would crash again.
    assert len(started(run.openpi)) == 1
    assert not run.run.metrics.exists()


@pytest.mark.parametrize("plan", [{"signal_at": 5, "signal": int(signal.SIGKILL)}, {"exit_at_import": 137}])
def test_being_killed_is_told_as_that(scene: Any, plan: dict[str, int]) -> None:
    error = scene(**plan).ends_with()
    assert error.code == "killed"
    assert "SIGKILL" in error.fix


def test_after_a_kill_it_goes_on_from_the_last_whole_checkpoint(scene: Any) -> None:
    run = scene(signal_at=5, signal=int(signal.SIGKILL))
    assert run.train(restarts=1) == Outcome(7, True, 1)
    assert [line["step"] for line in run.lines()] == list(range(7))
    assert run.manifest.upstream is not None
    assert "resumed at step 4" in run.manifest.upstream.notes[-1]


def test_a_kill_before_the_first_checkpoint_starts_anew(scene: Any) -> None:
    run = scene(signal_at=2, signal=int(signal.SIGKILL))
    assert run.train(restarts=1) == Outcome(7, True, 1)
    assert [line["step"] for line in run.lines()] == list(range(7))
    assert any("openpi starts anew" in text for text in run.listener.heard)
    assert run.manifest.upstream is not None
    assert not any("resumed" in note for note in run.manifest.upstream.notes)


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        ({"memory_at": 2}, "device-out-of-memory"),
        ({"nan_at": 4}, "loss-not-finite"),
        ({"disk_full": 3}, "disk-full"),
        ({"error_at": 2}, "trainer-failed"),
        (
            {"refused": {"code": "openpi-trains-others", "what": "w", "got": "g", "need": "n", "fix": "f"}},
            "openpi-trains-others",
        ),
        ({"signal_at": 4, "signal": int(signal.SIGSEGV)}, "crashed"),
    ],
)
def test_every_other_end_has_its_words(scene: Any, plan: dict[str, Any], code: str) -> None:
    run = scene(**plan, always=True)
    error = run.ends_with()
    assert error.code == code
    assert error.fix


def test_a_loss_that_is_not_finite_is_not_kept(scene: Any) -> None:
    run = scene(nan_at=4, step_s=0.5)
    run.ends_with()
    assert [line["step"] for line in run.lines()] == [0, 1, 2, 3]
    # It would have gone on and saved over what was sound.
    assert [path.name for path in run.run.checkpoints.iterdir()] == ["3"]


def test_its_own_error_is_the_last_word(scene: Any) -> None:
    assert "something that nobody foresaw" in str(scene(error_at=2).ends_with().got)


def test_an_interrupted_save_is_said_and_not_resumed_from(scene: Any) -> None:
    run = scene(disk_full=6)
    run.ends_with()
    assert (run.run.checkpoints / "6.orbax-checkpoint-tmp-1").is_dir()
    assert len(inspect(run.run.path).interrupted) == 1
    os.rename(
        run.run.checkpoints / "6.orbax-checkpoint-tmp-1", run.run.checkpoints / "6.orbax-checkpoint-tmp-0"
    )
    run.train()
    assert any("6.orbax-checkpoint-tmp-0 was never finished" in text for text in run.listener.heard)
    assert run.manifest.upstream is not None
    assert "resumed at step 4" in run.manifest.upstream.notes[-1]


def stop_when(run: Scene, mark: str) -> threading.Thread:
    """Sends this process what Ctrl-C sends, as soon as the listener has heard `mark`."""
    event = run.listener.when[mark] = threading.Event()

    def send() -> None:
        if event.wait(60):
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_stop_says_what_is_lost(scene: Any) -> None:
    run = scene(step_s=0.05)
    run.prepare("train.steps=90", "train.save_every_steps=40")
    thread = stop_when(run, "step 41/90")
    outcome = run.train()
    thread.join()
    assert (outcome.step, outcome.finished) == (41, False)
    assert any(
        "saves nothing when it is stopped: the last whole checkpoint is after 41 steps" in text
        for text in run.listener.heard
    )
    assert read_status(run.run).saved_step == 41


def test_a_stop_before_any_checkpoint_says_so(scene: Any) -> None:
    run = scene(step_s=0.3)
    run.prepare("train.steps=90", "train.save_every_steps=40")
    thread = stop_when(run, "step 0/90")
    outcome = run.train()
    thread.join()
    assert (outcome.step, outcome.finished) == (0, False)
    assert any("no checkpoint was whole" in text for text in run.listener.heard)


def test_a_stop_waits_for_the_save_under_way(scene: Any) -> None:
    run = scene(save_s=3, step_s=1.5)
    thread = stop_when(run, "step 3/7")
    outcome = run.train()
    thread.join()
    assert (outcome.step, outcome.finished) == (4, False)
    assert not [path for path in run.run.checkpoints.iterdir() if "tmp" in path.name]


def test_a_trainer_whose_watcher_is_gone_ends(scene: Any) -> None:
    run = scene(step_s=300)
    command = Openpi().command(run.run)
    environment = os.environ | {
        "HARNESS_SUPERVISOR": str(os.getpid()),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert process.stdout is not None
    while b'"compile"' not in process.stdout.readline():
        pass
    (once,) = started(run.openpi)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{once['pid']}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline


def test_another_commit_is_refused_or_recorded(scene: Any) -> None:
    run = scene(commit="f" * 40)
    (run.openpi / ".git/HEAD").write_text("f" * 40 + "\n")
    assert run.ends_with().code == "openpi-commit-differs"
    assert run.train(any_commit=True).finished
    assert run.manifest.upstream is not None
    assert run.manifest.upstream.commit == "f" * 40
    assert any("--any-commit" in note for note in run.manifest.upstream.notes)
    assert "--any-commit" in started(run.openpi)[-1]["argv"]


def test_the_first_line_is_held_against_known_weights(scene: Any, tmp_path: Path) -> None:
    run = scene(param_norm=1234.5678)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "x").write_text("x")
    run.prepare(f"weights.source={weights}")
    run.train()
    # The tiny model has no fingerprint; that is said, and kept in the manifest with the norm.
    assert run.manifest.weights["fingerprint"] == "unknown"
    assert "1234.568" in run.manifest.weights["param_norm"]
    assert run.manifest.weights["files"] == {
        str(weights): {"sha256": run.manifest.weights["files"][str(weights)]["sha256"]}
    }
    assert started(run.openpi)[0]["job"]["weights"] == str(weights)


def test_a_key_that_its_wandb_refuses_is_met_before_training(
    scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 86)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = scene(wandb="0.19.11")
    error = run.ends_with()
    assert (error.code, "kkk" in str(error)) == ("wandb-too-old", False)
    assert not run.run.metrics.exists()
