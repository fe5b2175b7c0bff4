"""Tests the job file, and openpi's trainer started from it, with a small package in place of openpi."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.openpi import entry as openpi_entry
from harness.openpi.imported import explain
from harness.openpi.job import job_of
from harness.recipe.load import load_recipe, recipe_from
from harness.recipe.parameters import counts, parameter_shapes
from harness.recipe.schema import Recipe

REPORT = "pi05_libero --model.paligemma-variant gemma_2b_lora --batch-size 8 --overwrite --no-wandb-enabled"

# As upstream's: the model's configuration, and a command line's, are frozen dataclasses; the filter decides
# who is trained.
CONFIG = """
import dataclasses, sys
import jax.numpy as jnp
from flax import nnx

if "openpi.training.checkpoints" not in sys.modules:
    raise SystemExit(139)


class Part(nnx.Module):
    def __init__(self, size):
        self.w = nnx.Param(jnp.zeros((size,)))


class Net(nnx.Module):
    def __init__(self, width):
        self.img, self.llm = Part(3), Part(width)


@dataclasses.dataclass(frozen=True)
class Model:
    width: int = 5

    def create(self, rng):
        return Net(self.width)


@dataclasses.dataclass(frozen=True)
class AssetsConfig:
    assets_dir: str | None = None
    asset_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    repo_id: str = "none"
    assets: AssetsConfig = AssetsConfig()


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    model: Model = Model()
    freeze_filter: object = dataclasses.field(default_factory=nnx.Nothing)
    lr_schedule: object = None
    optimizer: object = None
    weight_loader: object = None
    data: Data = Data()
    exp_name: str = ""
    batch_size: int = 1

    @property
    def trainable_filter(self):
        return nnx.All(nnx.Param, nnx.Not(self.freeze_filter))

    @property
    def checkpoint_dir(self):
        return "checkpoints/" + self.exp_name


def get_config(name):
    return {"pi05_libero": TrainConfig()}[name]
"""
OPTIMIZER = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class CosineDecaySchedule:
    warmup_steps: int

@dataclasses.dataclass(frozen=True)
class AdamW:
    b1: float
"""
LOADERS = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class CheckpointWeightLoader:
    params_path: str

class NoOpWeightLoader:
    pass
"""
TRAIN = """
import json

def main(config):
    said = [config.exp_name, config.batch_size, config.data.repo_id, config.weight_loader.params_path]
    said += [config.lr_schedule.warmup_steps]
    open("trained.json", "w").write(json.dumps(said))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    files = {
        "src/openpi/__init__.py": "",
        "src/openpi/training/__init__.py": "",
        "src/openpi/training/checkpoints.py": "",
        "src/openpi/training/config.py": CONFIG,
        "src/openpi/training/optimizer.py": OPTIMIZER,
        "src/openpi/training/weight_loaders.py": LOADERS,
        "scripts/train.py": TRAIN,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def start(checkout: Path, job: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    file = checkout / "job.json"
    file.write_text(json.dumps(job))
    # No git above the checkout is to be asked, whatever lies there.
    environment = os.environ | {
        "PYTHONPATH": str(checkout / "src"),
        "JAX_PLATFORMS": "cpu",
        "GIT_DIR": str(checkout / "nowhere"),
    }
    command = [sys.executable, str(Path(openpi_entry.__file__)), str(file), *options]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def small_job(**changes: Any) -> dict[str, Any]:
    job = {
        "commit": "15a9616",
        "config": "pi05_libero",
        "parameters_total": 10,
        "parameters_trained": 3,
        "frozen": ["llm/w"],
        "model": {"width": 7},
        "weights": "gs://somewhere/params",
        "repo_id": "me/data",
        "assets": {"assets_dir": None, "asset_id": "me/data"},
        "lr_schedule": {"warmup_steps": 11},
        "optimizer": {"b1": 0.9},
        "train": {"exp_name": "x", "batch_size": 8},
    }
    return job | changes


def test_openpi_is_started_with_the_filter(checkout: Path) -> None:
    done = start(checkout, small_job(), "--any-commit")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[0])
    assert (told["parameters_total"], told["parameters_trained"], told["commit"]) == (10, 3, "unknown")
    assert json.loads((checkout / "trained.json").read_text()) == [
        "x",
        8,
        "me/data",
        "gs://somewhere/params",
        11,
    ]


def test_nothing_is_trained_when_the_count_is_another(checkout: Path) -> None:
    done = start(checkout, small_job(frozen=[]), "--any-commit")
    assert done.returncode == 2
    assert "10 of 10" in done.stderr
    assert not (checkout / "trained.json").exists()


def test_check_ends_before_training(checkout: Path) -> None:
    done = start(checkout, small_job(), "--any-commit", "--check")
    assert done.returncode == 0
    assert json.loads(done.stdout)["parameters_trained"] == 3
    assert not (checkout / "trained.json").exists()


def test_another_commit_is_refused_without_the_flag(checkout: Path) -> None:
    done = start(checkout, small_job(), "--check")
    assert done.returncode == 2
    assert "--any-commit" in done.stderr


@pytest.mark.parametrize("end", [(), ("value",)])
def test_every_parameter_can_be_frozen_by_its_path(end: tuple[str, ...]) -> None:
    paths = list(parameter_shapes(load_recipe("pi05_libero_lora").model))
    assert any("/value/" in path for path in paths)
    frozen = openpi_entry.Frozen(frozenset(paths))
    assert all(frozen((*path.split("/"), *end), None) for path in paths)
    assert not frozen(("PaliGemma", "other", *end), None)


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert openpi_entry.check_commit({"commit": "15a9616"}, tmp_path, any_commit=True) == "unknown"
    with pytest.raises(openpi_entry.Refused):
        openpi_entry.check_commit({"commit": "15a9616"}, tmp_path, any_commit=False)


def job_for(line: str) -> tuple[dict[str, Any], Recipe]:
    found = explain(shlex.split(line), None)
    assert found.recipe is not None
    recipe = recipe_from(found.recipe, where="test")
    return job_of(recipe, found.effective, "named"), recipe


def test_the_job_of_the_report_is_lora() -> None:
    job, recipe = job_for(REPORT)
    assert (
        (job["parameters_total"], job["parameters_trained"])
        == counts(recipe.model, "lora")
        == (3_381_303_056, 872_771_344)
    )
    assert job["model"]["paligemma_variant"] == "gemma_2b_lora"
    assert job["model"]["action_expert_variant"] == "gemma_300m"
    assert job["train"]["ema_decay"] is None
    assert job["train"]["exp_name"] == "named"
    assert (job["train"]["overwrite"], job["train"]["wandb_enabled"]) == (True, False)
    assert "PaliGemma/llm/layers/attn/q_einsum/w" in job["frozen"]
    assert not any(
        "lora" in path or path.startswith("PaliGemma/img/") or "_1" in path for path in job["frozen"]
    )


def test_the_job_of_the_published_command_freezes_nothing() -> None:
    job, recipe = job_for("pi05_libero --exp-name x")
    assert job["frozen"] == []
    assert job["parameters_trained"] == 3_353_433_872
    assert job["train"]["ema_decay"] == recipe.train.ema_decay == 0.999
    assert job["train"]["batch_size"] == 256
    assert job["lr_schedule"] == {
        "warmup_steps": 10_000,
        "peak_lr": 5e-5,
        "decay_steps": 1_000_000,
        "decay_lr": 5e-5,
    }


@pytest.mark.parametrize(
    "override",
    ["train.optimizer.moments=int8", "train.frozen=int8", "model.paligemma.lora={rank: 8, alpha: 8.0}"],
)
def test_a_job_of_what_openpi_has_not_is_refused(override: str) -> None:
    options = explain(["pi05_libero"], None).effective
    with pytest.raises(HarnessError) as caught:
        job_of(load_recipe("pi05_libero_lora", [override]), options, "x")
    assert caught.value.code == "upstream-cannot"
