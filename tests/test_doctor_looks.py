"""Tests that the doctor never passes a check that it could not do.

Examples: a GPU that cannot be used, data that is not here, flags that XLA has dropped.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.doctor import content, examine, gpu
from harness.doctor.situation import CPU_PARAMETERS, NotNeeded
from harness.flow.chain import chain_for
from harness.flow.diagnose import data_here
from harness.plan import place
from harness.recipe.load import load_recipe
from harness.run.xla_flags import refused_flags
from harness.show.doctor import doctor_table
from tests.support.situations import NO_DATA, QUIET, UNSEEN, card, found, on, plan, situation
from tests.test_probe_nvml import HERE, build

__all__ = ["build"]  # the fixture that compiles the stand-in

OVERRIDES = ("data.tokenizer=sample", "weights.source=null", "train.global_batch=32")
REAL = [
    "--recipe",
    "pi05_libero_lora",
    "--dataset",
    "sample",
    *(word for one in OVERRIDES for word in ("--set", one)),
]
DROPPED = "--xla_gpu_enable_triton_softmax_fusion=true"


def harness(*arguments: str, library: Path, scenario: Path, **environment: str) -> tuple[int, str]:
    """(exit code, stdout and stderr) of a verb on the machine of the scenario."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("CUDA_", "JAX_PLATFORMS", "XLA_"))
    }
    settings = kept | {"LD_LIBRARY_PATH": str(library), "NVML_SCENARIO": str(scenario)} | environment
    command = [sys.executable, "-m", "harness.cli", *arguments]
    done = subprocess.run(
        command,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=HERE.parent.parent,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def diagnosis(text: str) -> dict[str, Any]:
    return dict(json.loads(text[text.index("{") :]))


def unknown_error(folder: Path) -> Path:
    path = folder / "unknown999.txt"
    path.write_text("init !999\n")
    return path


@pytest.mark.parametrize(
    ("scenario", "says", "mends"),
    [
        ("no_driver", "Driver Not Loaded", "modprobe nvidia"),
        ("mismatch", "different versions", "restart the machine"),
        ("no_gpu", "reports no GPU", "lspci"),
        ("unknown999", "lost its card", "start the container again"),
    ],
)
@pytest.mark.parametrize("asked", [[], ["--device", "cuda"]], ids=["no device named", "cuda"])
def test_without_a_usable_gpu_the_doctor_says_so_with_the_reason(
    build: Any, scenario: str, says: str, mends: str, asked: list[str], tmp_path: Path
) -> None:
    path = unknown_error(tmp_path) if scenario == "unknown999" else HERE / f"{scenario}.txt"
    code, text = harness("doctor", "--json", *REAL, *asked, library=build(), scenario=path)
    assert code == 1
    answer = diagnosis(text)
    errors = {finding["check"]: finding for finding in answer["findings"] if finding["severity"] == "error"}
    assert list(errors) == ["GPU and JAX"]
    assert says in errors["GPU and JAX"]["got"]
    assert mends in errors["GPU and JAX"]["fix"]
    assert not {"GPU and JAX", "compute capability", "device memory", "host memory", "disk", "plan"} & {
        *answer["passed"]
    }


def test_a_container_that_lost_its_card_is_told_to_start_again_and_not_to_plan_for_another(
    build: Any, tmp_path: Path
) -> None:
    code, text = harness(
        "plan", "--recipe", "pi05_libero_lora", library=build(), scenario=unknown_error(tmp_path)
    )
    assert code == 2
    assert "start the container again" in text
    assert "rtx_4090" not in text


@pytest.mark.parametrize("verb", ["plan", "doctor"])
def test_the_variable_that_hides_the_only_card_is_named(build: Any, verb: str) -> None:
    arguments = [verb, *(REAL if verb == "doctor" else ["--recipe", "pi05_libero_lora"])]
    code, text = harness(
        *arguments, library=build(), scenario=HERE / "idle_48gb.txt", CUDA_VISIBLE_DEVICES="1", COLUMNS="300"
    )
    assert code == (1 if verb == "doctor" else 2)
    assert "CUDA_VISIBLE_DEVICES=1 hides every usable GPU" in text
    assert "unset CUDA_VISIBLE_DEVICES" in text
    assert "rtx_4090" not in text


@pytest.mark.parametrize("verb", ["plan", "doctor"])
def test_a_card_without_bfloat16_is_refused_by_both(build: Any, verb: str, tmp_path: Path) -> None:
    scenario = tmp_path / "t4.txt"
    scenario.write_text(
        (HERE / "idle_48gb.txt")
        .read_text()
        .replace("NVIDIA RTX A6000", "Tesla T4")
        .replace("capability 8.6", "capability 7.5")
    )
    arguments = [verb, *(REAL if verb == "doctor" else ["--recipe", "pi05_libero_lora"])]
    code, text = harness(*arguments, library=build(), scenario=scenario, COLUMNS="300")
    assert code == (1 if verb == "doctor" else 2)
    assert "7.5" in text
    assert "bfloat16" in text


def test_mig_without_an_instance_is_no_device(build: Any, tmp_path: Path) -> None:
    scenario = tmp_path / "mig.txt"
    kept = [
        line
        for line in (HERE / "mig.txt").read_text().splitlines()
        if not line.startswith(("gpu 1 ", "gpu 0 mig "))
    ]
    scenario.write_text("\n".join(kept).replace("count 2", "count 1") + "\n")
    code, text = harness(
        "plan", "--recipe", "pi05_libero_lora", library=build(), scenario=scenario, COLUMNS="300"
    )
    assert code == 2
    assert "MIG is on and no instance has been made" in text
    assert "nvidia-smi -i 0 -mig 0" in text


def test_a_real_model_belongs_on_a_gpu_and_a_tiny_one_may_be_on_the_cpu(tmp_path: Path) -> None:
    assert CPU_PARAMETERS == place.CPU_PARAMETERS
    none = on().model_copy(update={"gpus": [], "gpu_error": "no driver", "gpu_fix": "install it"})
    real = situation(tmp_path, machine=none, plan=None, recipe=load_recipe("pi05_libero"))
    [finding] = gpu.visible(real)
    assert (finding.severity, finding.got, finding.fix) == ("error", "no driver", "install it")
    with pytest.raises(NotNeeded):
        list(gpu.visible(real._replace(recipe=load_recipe("smoke"))))
    with pytest.raises(NotNeeded):
        list(gpu.visible(real._replace(device="cpu")))
    assert list(gpu.visible(real._replace(recipe=load_recipe("smoke"), device="cuda")))


def test_what_was_not_looked_at_is_printed_as_such(tmp_path: Path) -> None:
    made = examine.examine(situation(tmp_path, plan=plan(None), **NO_DATA), checks=QUIET)
    unknown = {finding.check for finding in made.findings if finding.severity == "unknown"}
    assert unknown == {"host memory", "disk", "deviation", *UNSEEN}
    assert not unknown & {*made.passed}
    console = Console(file=io.StringIO(), width=4_000)
    console.print(doctor_table(made))
    title, *rows = console.file.getvalue().splitlines()
    assert f"{len(unknown)} unknown" in title
    assert f"{len(made.passed)} checks well" in title
    # No plan fits; no data here: each once, with the names of the checks.
    assert sum(row.startswith("unknown") for row in rows) == 2
    assert any(row.startswith("not needed") for row in rows)


def test_a_check_that_need_not_look_is_neither_well_nor_a_finding(tmp_path: Path) -> None:
    made = examine.examine(situation(tmp_path, run=None), checks=QUIET)
    assert {"run directory", "interrupted save", "XLA flags", "weights"} <= set(made.not_needed)
    assert not set(made.not_needed) & set(made.passed)
    assert not made.findings


@pytest.mark.parametrize("capability", ["5.0", "7.0", "7.5"])
def test_what_the_plan_refuses_is_an_error_of_the_doctor(capability: str, tmp_path: Path) -> None:
    assert found(situation(tmp_path, machine=card(compute_capability=capability))) == {
        "compute capability": "error"
    }


@pytest.mark.parametrize(
    ("flags", "named", "kept"),
    [
        (DROPPED, DROPPED, "unset XLA_FLAGS"),
        (
            f"--xla_gpu_deterministic_ops=true {DROPPED}",
            DROPPED,
            "export XLA_FLAGS='--xla_gpu_deterministic_ops=true'",
        ),
        ("--xla_gpu_autotune_level=much", "--xla_gpu_autotune_level=much", "unset XLA_FLAGS"),
        ("nonsense", "nonsense", "unset XLA_FLAGS"),
    ],
)
def test_a_flag_that_xla_does_not_take_is_named(flags: str, named: str, kept: str) -> None:
    refused = refused_flags(dict(os.environ) | {"XLA_FLAGS": flags})
    assert refused is not None
    assert named in refused.got
    assert kept in refused.fix


def test_flags_that_xla_takes_are_no_finding() -> None:
    assert refused_flags(dict(os.environ) | {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}) is None
    assert refused_flags({}) is None


def test_doctor_and_train_name_the_dropped_flag(tmp_path: Path) -> None:
    own = {
        "HARNESS_CACHE": str(tmp_path / "cache"),
        "HARNESS_RUNS": str(tmp_path / "runs"),
        "XLA_FLAGS": DROPPED,
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "300",
    }
    for arguments, expected in (
        (["doctor", "--recipe", "smoke"], 1),
        (["train", "--recipe", "smoke", "--name", "x", "--steps", "1"], 2),
    ):
        code, text = harness(*arguments, library=tmp_path, scenario=tmp_path, **own)
        assert code == expected
        assert DROPPED in text
        assert "unset XLA_FLAGS" in text
        assert "no message" not in text


@pytest.mark.parametrize("library", ["", "/usr/local/cuda/lib64"])
@pytest.mark.parametrize(
    ("last", "got"),
    [
        ("AssertionError", "JAX found no CUDA backend"),
        ("RuntimeError: no supported devices", "RuntimeError: no supported devices"),
    ],
)
def test_a_jax_without_its_cuda_plugin_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, got: str, library: str
) -> None:
    """JAX ends with a bare assert then."""
    done = subprocess.CompletedProcess([], 1, "", f"Traceback\n    assert backend\n{last}\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: done)
    [finding] = gpu.visible(situation(tmp_path, environ={"LD_LIBRARY_PATH": library}))
    assert finding.got.startswith(got)
    assert ("LD_LIBRARY_PATH" in finding.fix) == bool(library)
    assert "docker compose build train" in finding.fix


def test_one_lost_card_of_two_is_told_with_its_own_fix(
    build: Any,
) -> None:
    code, text = harness(
        "doctor", "--json", *REAL, library=build(), scenario=HERE / "lost_beside_healthy.txt"
    )
    assert code == 1
    warned = [
        one for one in diagnosis(text)["findings"] if one["check"] == "GPU and JAX" and "bus" in one["got"]
    ]
    finding = warned[0]
    assert finding["severity"] == "warning"
    assert finding["fix"].startswith("dmesg | grep -i xid")
    assert finding["fix"] not in finding["got"]


@pytest.mark.parametrize("newer", [False, True])
def test_another_gpu_is_advised_where_there_is_one(tmp_path: Path, newer: bool) -> None:
    old = card(compute_capability="7.5").gpus[0]
    other = old.model_copy(update={"index": 1, "uuid": "GPU-2", "compute_capability": "8.6"})
    machine = card().model_copy(update={"gpus": [old, other] if newer else [old]})
    [finding] = gpu.capability(situation(tmp_path, machine=machine))
    assert ("CUDA_VISIBLE_DEVICES=GPU-2" in finding.fix) == newer
    assert "another machine" in finding.fix


def test_a_dataset_in_the_home_of_nobody_is_not_here() -> None:
    chain = chain_for(None, "smoke", ["data.dataset=~nobody-of-this-name/data"])
    assert data_here(chain) is None
    (finding,) = content.dataset(situation(Path(), recipe=chain.recipe, dataset=None))
    assert "~nobody-of-this-name/data is not on this machine" in finding.got
