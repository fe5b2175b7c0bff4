"""Tests `train --backend openpi`.

Covered are: where openpi is found, what it cannot do, who owns a run, its plan, its console, and the chain.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Gpu, Host, Machine, Manifest
from harness.checkpoint.inspect import inspect
from harness.errors import HarnessError
from harness.flow.find import trainer_of
from harness.openpi.console import Console, is_finite, step_values
from harness.openpi.install import check_wandb, find_installation
from harness.openpi.job import check_upstream_can
from harness.openpi.run import plan_run
from harness.openpi.table import Setup, need
from harness.recipe.load import load_recipe
from harness.run.directory import RunDir
from harness.run.status import read_status
from harness.units import GIB
from tests.support.openpi_standin import HEAD, standin, started

ROOT = Path(__file__).parents[1]
CARD = Gpu(
    index=0,
    uuid="GPU-1",
    name="NVIDIA RTX A6000",
    total_bytes=48 * GIB,
    free_bytes=48 * GIB,
    compute_capability="8.6",
)


def code_of(call: Any) -> str:
    with pytest.raises(HarnessError) as caught:
        call()
    assert caught.value.fix
    return caught.value.code


def test_openpi_is_found_or_the_way_to_it_is_said(tmp_path: Path) -> None:
    assert code_of(lambda: find_installation({})) == "openpi-missing"
    assert code_of(lambda: find_installation({"HARNESS_OPENPI": str(tmp_path)})) == "openpi-missing"
    root = standin(tmp_path / "openpi")
    found = find_installation({"HARNESS_OPENPI": str(root)})
    assert (found.root, found.commit, found.is_pinned) == (root, HEAD, True)
    (root / ".venv/bin/python").chmod(0o644)
    assert code_of(lambda: find_installation({"HARNESS_OPENPI": str(root)})) == "openpi-environment-missing"


@pytest.mark.parametrize("head", ["f" * 40, ""])
def test_another_commit_is_refused_unless_any_may_be(tmp_path: Path, head: str) -> None:
    root = standin(tmp_path / "openpi")
    (root / ".git/HEAD").write_text(head)
    assert code_of(lambda: find_installation({"HARNESS_OPENPI": str(root)})) == "openpi-commit-differs"
    assert find_installation({"HARNESS_OPENPI": str(root)}, any_commit=True).commit == (head or "unknown")


@pytest.mark.skipif(
    shutil.which("git") is None,
    reason="git itself tells of changes; the test image has no git, and ci/all runs this one outside of it",
)
def test_a_changed_file_is_another_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.openpi import install as openpi_install

    root = standin(tmp_path / "openpi")
    shutil.rmtree(root / ".git")
    for command in (
        ["init", "-q"],
        ["add", "scripts", "src"],
        ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"],
    ):
        subprocess.run(
            ["git", "-C", str(root), *command], check=True, env=os.environ | {"GIT_CONFIG_GLOBAL": os.devnull}
        )
    monkeypatch.setattr(
        openpi_install, "COMMIT", (root / ".git/refs/heads").iterdir().__next__().read_text()[:7]
    )
    assert find_installation({"HARNESS_OPENPI": str(root)}).is_pinned
    (root / "scripts/train.py").write_text("changed")
    assert code_of(lambda: find_installation({"HARNESS_OPENPI": str(root)})) == "openpi-commit-differs"
    assert find_installation({"HARNESS_OPENPI": str(root)}, any_commit=True).commit.endswith("+modified")


@pytest.mark.parametrize(
    "override",
    [
        "train.optimizer.moments=int8",
        "train.ema_every_steps=2",
        "data.augment=false",
        "data.normalization=zscore",
        "data.cameras.left_wrist_0_rgb=null",
        "data.cameras.base_0_rgb=front",
        "data.actions=action",
        "model.image_size=56",
    ],
)
def test_what_openpi_has_not_is_refused_with_what_it_has(override: str) -> None:
    check_upstream_can(load_recipe("smoke"))
    recipe = load_recipe("smoke", [override])
    with pytest.raises(HarnessError) as caught:
        check_upstream_can(recipe)
    assert caught.value.code == "upstream-cannot"
    # The fix is one that helps.
    mended = load_recipe("smoke", [override, caught.value.fix.partition(",")[0].removeprefix("--set ")])
    check_upstream_can(mended)


@pytest.mark.parametrize(
    ("version", "length", "mode", "goes"),
    [
        ("0.19.11", 86, None, False),
        ("0.19.11", 40, None, True),
        ("0.19.11", 0, None, True),
        ("0.24.2", 86, None, True),
        ("0.19.11", 86, "offline", True),
    ],
)
def test_wandb_takes_the_key_or_is_too_old(version: str, length: int, mode: str | None, goes: bool) -> None:
    environ = {"WANDB_API_KEY": "k" * length} | ({} if mode is None else {"WANDB_MODE": mode})
    if goes:
        check_wandb(version, environ)
    else:
        assert code_of(lambda: check_wandb(version, environ)) == "wandb-too-old"


def test_a_run_keeps_its_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)

    def names() -> list[str]:
        return [each.name for each in (trainer_of(run), trainer_of(run, "ours"), trainer_of(run, "openpi"))]

    assert [*names(), trainer_of(None).name] == ["ours", "ours", "openpi", "ours"]
    monkeypatch.setenv("HARNESS_BACKEND", "openpi")
    assert [*names(), trainer_of(None).name] == ["openpi", "ours", "openpi", "openpi"]
    monkeypatch.setenv("HARNESS_BACKEND", "torch")
    assert code_of(lambda: trainer_of(run)) == "backend-unknown"


def test_a_small_model_is_planned_for_the_cpu() -> None:
    made = plan_run(load_recipe("smoke"), Machine(host=Host(ram_available_bytes=8 * GIB)), None, None)
    assert made.chosen is not None
    assert (made.backend, made.chosen.levers.platform, made.chosen.source, made.chosen.deviations) == (
        "openpi",
        "cpu",
        "counted",
        [],
    )
    # float32 weights, two moments, average and gradients.
    assert made.chosen.host_bytes == 5 * 4 * made.parameters_total


@pytest.mark.parametrize(
    ("recipe", "batch", "fits"), [("pi05_libero_lora", 8, True), ("pi05_libero", 8, False)]
)
def test_a_real_model_has_the_bytes_of_the_table(recipe: str, batch: int, fits: bool) -> None:
    own = load_recipe(recipe, [f"train.global_batch={batch}"])
    made = plan_run(own, Machine(gpus=[CARD], host=Host(ram_available_bytes=64 * GIB)), None, None)
    who = ("both", "lora", False) if fits else ("none", "full", True)
    assert made.candidates[0].device_bytes == need(Setup(*who, batch)).bytes
    assert (made.chosen is not None, made.backend) == (fits, "openpi")
    # The recipe is carried out as it is, whatever it is called.
    assert made.candidates[0].deviations == []
    assert made.memory_fraction is not None
    assert made.memory_fraction <= 0.9


def test_a_large_model_needs_a_gpu() -> None:
    assert (
        code_of(
            lambda: plan_run(
                load_recipe("pi05_libero"), Machine(host=Host(ram_available_bytes=900 * GIB)), None, None
            )
        )
        == "no-gpu"
    )


def test_what_openpi_logs_is_read_back() -> None:
    rng = random.Random(0)
    console, recipe = Console(load_recipe("smoke"), start=0), load_recipe("smoke")
    assert console.read("10:00:00.000 [I] Initialized train state:", 100.0) is None
    assert console.phase == "compile"
    last, clock = -1, 100.0
    for _ in range(50):
        step, clock = last + rng.randint(1, 9), clock + rng.random()
        values = {
            name: rng.random() * 10 ** rng.randint(-3, 4) for name in ("grad_norm", "loss", "param_norm")
        }
        text = f"Step {step}: " + ", ".join(f"{name}={value:.4f}" for name, value in values.items())
        line = console.read(rng.choice(["", "\x1b[A", "  3%|▎ | 3/60 "]) + text, clock)
        assert line is not None
        assert {name: getattr(line, name) for name in values} == {
            name: float(f"{value:.4f}") for name, value in values.items()
        }
        assert (line.step, line.mean_of_steps, is_finite(line)) == (step, step - last, True)
        last = step
    # A line that is there twice, as bars repeat them, counts once.
    assert console.read(text, clock) is None
    assert recipe.train.optimizer.schedule.peak >= line.learning_rate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Step 3: loss=0.1",
        "Step 3: loss=0.1, grad_norm=x, param_norm=1.0",
        "10:00:03.000 [I] Progress on: 3.0it/30.0it rate:1.0s/it",
        "Steps 3: grad_norm=1.0, loss=1.0, param_norm=1.0",
        "Step 3: grad_norm=1.0, loss=1.0, param_norm=1.0 and more",
    ],
)
def test_other_lines_are_no_steps(text: str) -> None:
    assert step_values(text) is None


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN"])
def test_what_is_not_finite_is_read_as_that(value: str) -> None:
    line = Console(load_recipe("smoke"), start=0).read(
        f"Step 0: grad_norm=1.0, loss={value}, param_norm=1.0", 0.0
    )
    assert line is not None
    assert not math.isfinite(line.loss)
    assert not is_finite(line)


def harness(tmp_path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HARNESS_CACHE": str(tmp_path / "cache"),
        "HARNESS_RUNS": str(tmp_path / "runs"),
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, "-m", "harness.cli", *words]
    return subprocess.run(
        command, env=environment | variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )


def test_the_chain_from_probe_to_report(tmp_path: Path) -> None:
    openpi, path = standin(tmp_path / "openpi"), tmp_path / "runs/a"
    options = ("--name", "a", "--recipe", "smoke", "--steps", "4", "--device", "cpu")
    done = harness(tmp_path, "train", "--backend", "openpi", *options, HARNESS_OPENPI=str(openpi))
    assert done.returncode == 0, done.stderr
    names = {"machine", "plan", "dataset", "norm_stats", "doctor", "manifest", "checkpoint", "curve"}
    assert {f"{name}.json" for name in names} | {"metrics.jsonl", "report.html", "recipe.yaml"} <= {
        file.name for file in path.iterdir()
    }
    assert "step 4/4" in done.stderr
    assert json.loads((path / "plan.json").read_text())["backend"] == "openpi"
    assert started(openpi)[0]["env"]["JAX_PLATFORMS"] == "cpu"
    assert read_status(RunDir(path)).state == "finished"
    assert inspect(path).layout == "openpi"
    report = (path / "report.html").read_text()
    assert HEAD[:12] in report
    assert "other sizes in memory" in report
    # Its trainer is the run's own from then on, and the other one is refused.
    assert harness(tmp_path, "train", "--resume", "--backend", "ours", "--name", "a").returncode == 2
    again = harness(tmp_path, "train", "--resume", "--name", "a", "--steps", "6", HARNESS_OPENPI=str(openpi))
    assert again.returncode == 0, again.stderr
    assert "seen again" in again.stderr
    assert "seen again" in (path / "report.html").read_text()
    manifest = RunDir(path).read(Manifest)
    assert manifest is not None
    assert manifest.upstream is not None

    # Its first steps are computed again by itself; and its loader cannot be placed at a later one.
    equal = harness(tmp_path, "verify", str(path), "--steps", "3", "--json", HARNESS_OPENPI=str(openpi))
    verdict = json.loads(equal.stdout)
    assert (verdict["verdict"], verdict["replay"]["steps"], verdict["first_difference"]) == ("equal", 3, None)
    later = json.loads(
        harness(tmp_path, "verify", str(path), "--from", "4", "--json", HARNESS_OPENPI=str(openpi)).stdout
    )
    assert later["verdict"] == "cannot tell"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--set", "data.augment=false"), "upstream-cannot"),
        (("--set", "batchsize=8"), "override-invalid"),
        (("--set", "fsdp=2"), "upstream-cannot"),
    ],
)
def test_options_that_contradict_are_refused_before_anything_is_read(
    tmp_path: Path, words: tuple[str, ...], code: str
) -> None:
    openpi = standin(tmp_path / "openpi")
    done = harness(
        tmp_path,
        "train",
        "--backend",
        "openpi",
        "--recipe",
        "smoke",
        "--device",
        "cpu",
        *words,
        HARNESS_OPENPI=str(openpi),
    )
    assert done.returncode == 2
    assert f"[{code}]" in done.stderr
    assert not (openpi / "started.jsonl").exists()


def test_without_openpi_train_says_how_to_get_it(tmp_path: Path) -> None:
    done = harness(tmp_path, "train", "--backend", "openpi", "--recipe", "smoke")
    assert done.returncode == 2
    assert "[openpi-missing]" in done.stderr
    assert "train-openpi" in done.stderr


def test_the_parity_run_is_skipped_without_openpi() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.parity_openpi"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "HARNESS_OPENPI"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("skipped")
