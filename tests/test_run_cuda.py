"""Tests which CUDA is found here, and what is advised for drivers and cards that it does not take."""

from __future__ import annotations

import io
import re
import subprocess
from importlib.metadata import EntryPoint, files
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from harness.artifacts import Gpu, Machine
from harness.doctor import gpu
from harness.doctor.situation import Situation
from harness.plan.cards import CARDS
from harness.plan.more_cards import OTHERS
from harness.probe import nvml
from harness.run import cuda
from harness.show import machine
from tests.support.situations import CARD, HOST, situation
from tests.test_repo_locks import on

ROOT = Path(__file__).parents[1]
THOR = CARD.model_copy(update={"name": "NVIDIA Thor", "compute_capability": "11.0"})
BLACKWELL = CARD.model_copy(update={"name": "NVIDIA GeForce RTX 5090", "compute_capability": "12.0"})


@pytest.mark.parametrize("name", ["xla_cuda12", "xla_cuda13"])
def test_any_cuda_plugin_of_jax_serves(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda _: None)
    found = [EntryPoint(each, f"jax_plugins.{each}", "jax_plugins") for each in ("xla_rocm7", name, "libtpu")]
    monkeypatch.setattr(cuda.metadata, "entry_points", lambda **_: found)
    assert cuda.cuda_plugins() == [name]
    assert cuda.cuda_here() == int(name[-2:])
    monkeypatch.setattr(cuda.metadata, "entry_points", lambda **_: found[:1])
    assert cuda.cuda_plugins() == []
    assert cuda.cuda_here() == 12
    # A plugin that nobody has installed, only put where Python looks.
    (tmp_path / "jax_plugins" / name).mkdir(parents=True)
    (tmp_path / "jax_plugins" / name / "__init__.py").touch()
    places = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "jax_plugins")]})
    monkeypatch.setattr(cuda, "find_spec", lambda _: places)
    assert cuda.cuda_plugins() == [name]


def test_the_plugin_that_is_installed_here_is_found() -> None:
    assert cuda.cuda_plugins()


def test_the_families_of_cuda_12_are_those_of_the_compiler_in_its_lock() -> None:
    (ptxas,) = [file for file in files("nvidia-cuda-nvcc-cu12") or [] if file.name == "ptxas"]
    said = subprocess.run([ptxas.locate(), "--help"], capture_output=True, text=True, check=True).stdout
    capabilities = {int(number) for number in re.findall(r"'compute_(\d+)'", said)}
    assert {number // 10 for number in capabilities if number >= 80} == cuda.CUDA[12].families


@pytest.mark.parametrize("version", cuda.CUDA)
def test_each_cuda_has_its_lock_and_its_image(version: int) -> None:
    name = f"cuda{cuda.CUDA[version].setting}"
    assert f"jax-cuda{version}-plugin" in on(name, "3.12")
    assert f" AS {name}\n" in (ROOT / "Dockerfile").read_text()
    train = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["train"]
    assert (train["image"], train["build"]["target"]) == (
        "harness:cuda${HARNESS_CUDA:-}",
        "cuda${HARNESS_CUDA:-}",
    )


def test_every_card_that_is_planned_for_has_a_cuda() -> None:
    for card in (*CARDS.values(), *OTHERS.values()):
        assert any(cuda.knows(version, card.capability) for version in cuda.CUDA) or card.capability < (8, 0)


@pytest.mark.parametrize(
    ("version", "driver", "old"),
    [
        *((12, "525.60.12", True), (12, "525.60.13", False), (12, "525", False), (12, "580.65.06", False)),
        *((13, "575.57.08", True), (13, "580", False), (13, "580.65.06", False), (13, "615.71", False)),
    ],
)
def test_a_driver_is_new_enough_or_not(version: int, driver: str, old: bool) -> None:
    assert cuda.drives(cuda.numbers(driver), version) is not old


def tell(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    for room in (gpu, nvml):
        monkeypatch.setattr(room, "cuda_here", lambda: version)


def at(base: Situation, driver: str, card: Gpu) -> Situation:
    return base._replace(machine=Machine(gpus=[card], driver_version=driver, host=HOST))


@pytest.mark.parametrize(
    ("version", "driver", "card", "fix"),
    [
        (13, "575.57.08", CARD, "HARNESS_CUDA= docker compose run --rm --build train (CUDA 12 takes"),
        (13, "575.57.08", BLACKWELL, "HARNESS_CUDA= docker compose run --rm --build train (CUDA 12 takes"),
        # Neither CUDA has anything for these with such a driver.
        (13, "550.54.14", BLACKWELL, "install 580 or newer on the host"),
        (13, "575.57.08", THOR, "install 580 or newer on the host"),
        (13, "520.61.05", CARD, "install 580 or newer on the host"),
        (12, "520.61.05", CARD, "install 525.60.13 or newer on the host"),
    ],
)
def test_a_driver_that_is_too_old_gets_a_fix_that_helps(
    version: int, driver: str, card: Gpu, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(monkeypatch, version)
    first = next(iter(gpu.driver(at(situation(tmp_path), driver, card))))
    assert (first.severity, first.got) == ("error", driver)
    assert first.need.endswith(f"for CUDA {version}")
    assert first.fix.startswith(fix)


def test_the_probe_names_the_cuda_and_the_fix_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, 13)
    error, fix = nvml._too_old("570.86.10")
    assert error == "the NVIDIA driver 570.86.10 is too old for CUDA 13"
    assert fix == (
        "HARNESS_CUDA= docker compose run --rm --build train (CUDA 12 takes this driver), or install 580 or"
        " newer on the host"
    )
    assert nvml._too_old("580.65.06") == nvml._too_old(None) == (None, None)


@pytest.mark.parametrize(
    ("version", "driver", "capability", "severity", "fix"),
    [
        (12, "580.65.06", "11.0", "error", "HARNESS_CUDA=13 docker compose run --rm --build train"),
        (12, "575.57.08", "11.0", "error", "install driver 580 or newer on the host, then HARNESS_CUDA=13 "),
        (12, "580.65.06", "12.1", None, ""),
        (13, "580.65.06", "11.0", None, ""),
        (13, "580.65.06", "9.0", None, ""),
        (13, "650.10", "14.0", "warning", "ci/lock cuda13 --upgrade"),
        (12, "650.10", "14.0", "warning", "ci/lock cuda13 --upgrade"),
    ],
)
def test_a_card_that_is_newer_than_the_cuda_gets_the_one_that_knows_it(
    version: int,
    driver: str,
    capability: str,
    severity: str | None,
    fix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tell(monkeypatch, version)
    card = CARD.model_copy(update={"compute_capability": capability})
    findings = [*gpu.capability(at(situation(tmp_path), driver, card))]
    assert [finding.severity for finding in findings] == ([severity] if severity else [])
    assert all(finding.fix.startswith(fix) for finding in findings)


@pytest.mark.parametrize(
    ("version", "card", "shown"), [(12, THOR, True), (13, THOR, False), (12, CARD, False)]
)
def test_the_probe_shows_which_image_knows_the_card(
    version: int, card: Gpu, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cuda_here", lambda: version)
    drawn = io.StringIO()
    table = machine.machine_table(Machine(gpus=[card], driver_version="580.65.06", host=HOST))
    Console(file=drawn, width=200).print(table)
    fix = "CUDA 12 makes no code for it: HARNESS_CUDA=13 docker compose run --rm --build train"
    assert (fix in drawn.getvalue()) is shown
