"""Tests the doctor's checks.

Each finds its own error, is silent if all is well, and hides no other check when it fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import (
    DegenerateDimension,
    Finding,
    GpuProcess,
    InterruptedSave,
    Machine,
    NormStats,
)
from harness.doctor import examine, gpu, host
from harness.doctor.situation import Situation
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.units import GIB, MIB
from tests.support.situations import (
    CARD,
    FITS,
    HOST,
    NO_DATA,
    NUMBERS,
    QUIET,
    UNSEEN,
    card,
    found,
    on,
    plan,
    situation,
)
from tests.support.step_writer import put_step


def test_a_good_machine_has_no_findings(tmp_path: Path) -> None:
    diagnosis = examine.examine(situation(tmp_path), checks=QUIET)
    assert not diagnosis.findings
    assert {*diagnosis.passed} | {*diagnosis.not_needed} == {check.name for check in QUIET}
    assert not {*diagnosis.passed} & {*diagnosis.not_needed}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"machine": Machine(gpus=[CARD], driver_version="520.61.05", host=HOST)}, {"driver": "error"}),
        ({"machine": Machine(gpus=[CARD], driver_version="525.60.13", host=HOST)}, {}),
        (
            {
                "machine": Machine(
                    gpus=[CARD.model_copy(update={"compute_capability": "12.0"})],
                    driver_version="550.1",
                    host=HOST,
                )
            },
            {"driver": "error"},
        ),
        ({"machine": Machine(gpus=[CARD], host=HOST)}, {"driver": "unknown"}),
        ({"machine": card(compute_capability="5.0")}, {"compute capability": "error"}),
        ({"machine": card(compute_capability="7.5")}, {"compute capability": "error"}),
        ({"machine": card(compute_capability=None)}, {"compute capability": "unknown"}),
        (
            {"machine": card(foreign_processes=[GpuProcess(pid=7, used_bytes=GIB)])},
            {"device memory": "warning"},
        ),
        (
            {"plan": plan(None)},
            {"device memory": "error", "host memory": "unknown", "disk": "unknown", "deviation": "unknown"},
        ),
        ({"machine": on(wsl=None)}, {"WSL2": "unknown"}),
        (
            {"machine": on(shm_bytes=None), "environ": {"HARNESS_LOADER_WORKERS": "2"}},
            {"/dev/shm": "unknown"},
        ),
        (NO_DATA, UNSEEN),
        ({"environ": {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}}, {"device memory": "warning"}),
        ({"machine": on(wsl=True)}, {"WSL2": "warning"}),
        ({"machine": on(ram_available_bytes=3 * GIB)}, {"host memory": "warning"}),
        ({"machine": on(ram_available_bytes=3 * GIB, ram_total_bytes=3 * GIB)}, {"host memory": "error"}),
        ({"machine": on(ram_available_bytes=None)}, {"host memory": "unknown"}),
        ({"plan": plan(FITS.model_copy(update={"disk_bytes": 2**60}))}, {"disk": "error"}),
        ({"machine": on(shm_bytes=64 * MIB)}, {}),
        (
            {"machine": on(shm_bytes=64 * MIB), "environ": {"HARNESS_LOADER_WORKERS": "2"}},
            {"/dev/shm": "error"},
        ),
        ({"limits": {"n": 1024}}, {"ulimit": "warning"}),
        ({"limits": {"f": GIB}}, {"ulimit": "warning"}),
        ({"limits": {"u": 100}}, {"ulimit": "warning"}),
        ({"environ": {"WANDB_API_KEY": "a" * 40}}, {}),
        ({"environ": {"WANDB_API_KEY": "wandb_v1_" + "a" * 77}}, {}),
        ({"environ": {"WANDB_API_KEY": "local-" + "a" * 40}}, {}),
        ({"environ": {"WANDB_API_KEY": "a" * 39}}, {"wandb key": "error"}),
        ({"environ": {"WANDB_API_KEY": "a" * 85}}, {"wandb key": "error"}),
        ({"environ": {"WANDB_API_KEY": '"' + "a" * 40 + '"'}}, {"wandb key": "error"}),
        ({"environ": {"WANDB_API_KEY": "a" * 40 + "\n"}}, {"wandb key": "error"}),
        ({"environ": {"WANDB_API_KEY": "a" * 39, "WANDB_MODE": "offline"}}, {}),
        ({"environ": {"WANDB_MODE": "online", "HOME": "/nowhere"}}, {"wandb key": "error"}),
        (
            {"recipe": load_recipe("smoke", ["weights.source=/nowhere/params"])},
            {"weights directory": "error"},
        ),
        ({"recipe": load_recipe("smoke", ["data.tokenizer=/nowhere/x.model"])}, {"tokenizer": "error"}),
        (
            {
                "recipe": load_recipe("smoke", ["data.dataset=some/where"]),
                "environ": {"HF_HUB_OFFLINE": "1"},
                **NO_DATA,
            },
            {"hub": "error"} | UNSEEN,
        ),
        (
            {"recipe": load_recipe("smoke", ["model.paligemma.lora={rank: 4, alpha: 4}"])},
            {"trained": "error"},
        ),
        ({"plan": plan(FITS.model_copy(update={"deviations": ["EMA off"]}))}, {"deviation": "warning"}),
    ],
)
def test_each_check_finds_what_it_is_for(
    changes: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    if "environ" in changes:
        changes = changes | {"environ": {"HOME": str(tmp_path)} | changes["environ"]}
    assert found(situation(tmp_path, **changes)) == expected


@pytest.mark.parametrize(
    ("steps", "save_every", "keep_every", "held", "expected"),
    [
        (30_000, 1_000, 5_000, [], (2, 7)),  # 5,000 … 25,000, and 29,000 while 30,000 is saved
        (30_000, 1_000, 5_000, [5_000, 10_000, 12_000], (1, 4)),
        (10, 100, 100, [], (1, 1)),
        (10, 4, 1, [], (2, 3)),
        (10, 4, 100, [4, 8], (1, 1)),
        (10, 4, 100, [10], (0, 0)),
    ],
)
def test_the_disk_holds_what_is_kept_and_one_more_while_it_is_saved(
    steps: int, save_every: int, keep_every: int, held: list[int], expected: tuple[int, int], tmp_path: Path
) -> None:
    overrides = [
        f"train.steps={steps}",
        f"train.save_every_steps={save_every}",
        f"train.keep_every_steps={keep_every}",
    ]
    recipe = load_recipe("smoke", overrides)
    assert host.more_checkpoints(recipe.train, held) == expected
    for step in held:
        put_step(tmp_path / "checkpoints", step)
    # Of checkpoints of 1 / 3.5 of the free space three fit, of twice that one.
    for one, fit in (
        (2 * shutil.disk_usage(tmp_path).free // 7, 3),
        (4 * shutil.disk_usage(tmp_path).free // 7, 1),
    ):
        case = situation(tmp_path, recipe=recipe, plan=plan(FITS.model_copy(update={"disk_bytes": 2 * one})))
        assert found(case).get("disk") == (
            "error" if expected[0] > fit else "warning" if expected[1] > fit else None
        )


def test_no_part_of_a_key_is_shown(tmp_path: Path) -> None:
    secret = "Sup3rS3cretKey" * 3
    diagnosis = examine.examine(situation(tmp_path, environ={"WANDB_API_KEY": secret}), checks=QUIET)
    assert len(diagnosis.errors) == 1
    assert not re.search("Sup3r|S3cret", diagnosis.model_dump_json())


def test_a_netrc_key_is_looked_at_when_it_would_be_used(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {'a' * 30}\n")
    assert found(situation(tmp_path, environ={"HOME": str(tmp_path), "WANDB_MODE": "online"})) == {
        "wandb key": "error"
    }


def test_degenerate_statistics_stop_the_run_only_when_the_recipe_says_so(tmp_path: Path) -> None:
    bad = DegenerateDimension(
        key="actions",
        dimension=3,
        problem="constant",
        largest_normalized=None,
        fix="--set data.normalization=zscore",
    )
    stats = NormStats(
        norm_stats={"state": NUMBERS, "actions": NUMBERS}, frames=9, action_horizon=2, findings=[bad]
    )
    assert found(situation(tmp_path, stats=stats)) == {"statistics": "warning"}
    strict = load_recipe("smoke", ["data.degenerate_dimensions=error"])
    assert found(situation(tmp_path, stats=stats, recipe=strict)) == {"statistics": "error"}


def test_an_interrupted_save_is_named_with_the_command_that_removes_it(tmp_path: Path) -> None:
    save = InterruptedSave(
        path=f"{tmp_path}/5.orbax-checkpoint-tmp",
        step=5,
        missing=["params"],
        age_s=9,
        bytes=1,
        safe_to_delete=True,
        reason="old",
    )
    [finding] = examine.examine(situation(tmp_path, leftovers=(save,)), checks=QUIET).findings
    assert finding.check == "interrupted save"
    assert "--clean" in finding.fix


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert found(situation(tmp_path, writes=(closed / "runs",))) == {"writable": "error"}


def test_a_clock_behind_the_runs_own_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text("{}")
    os.utime(tmp_path / "machine.json", (time.time() + 86_400,) * 2)
    assert found(situation(tmp_path)) == {"clock": "warning"}


def test_a_clock_of_another_age_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.time, "time", lambda: 0.0)
    assert [finding.severity for finding in host.clock(situation(tmp_path, run=None))] == ["error"]


def test_jax_is_asked_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Here is no GPU: JAX cannot start on one, and says why; this process has not imported it."""
    child = "import sys; from pathlib import Path; from harness.doctor import gpu;"
    child += " from tests.support.situations import situation; c = situation(Path(sys.argv[1]));"
    child += (
        "f = list(gpu.visible(c)); assert [x.severity for x in f] == ['error'] and 'jax' not in"
        " sys.modules, f"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-c", child, str(tmp_path)],
        env=environment,
        cwd=Path(__file__).parents[1],
        check=True,
        timeout=120,
    )


def test_a_gpu_that_is_lost_and_one_that_is_missing(tmp_path: Path) -> None:
    lost = CARD.model_copy(update={"error": "GPU is lost"})
    none = Machine(gpus=[lost], driver_version="570.1", host=HOST)
    assert [finding.severity for finding in gpu.visible(situation(tmp_path, machine=none))] == ["error"]


def test_a_check_that_hangs_or_breaks_hides_no_other(tmp_path: Path) -> None:
    def hangs(case: Situation) -> Iterator[Finding]:
        time.sleep(30)
        yield from host.limits(case)

    def breaks(case: Situation) -> list[Finding]:
        raise OSError(f"no answer from {case.run}")

    checks = (
        examine.Check("hangs", hangs, limit_s=0.2),
        examine.Check("breaks", breaks),
        examine.Check("limits", host.limits),
    )
    diagnosis = examine.examine(situation(tmp_path), checks=checks)
    assert {finding.check: finding.severity for finding in diagnosis.findings} == {
        "hangs": "unknown",
        "breaks": "unknown",
    }
    assert diagnosis.passed == ["limits"]


def test_an_error_can_be_allowed_and_is_recorded(tmp_path: Path) -> None:
    case = situation(tmp_path, environ={"WANDB_API_KEY": "short"})
    diagnosis = examine.examine(case, checks=QUIET, allow=["wandb key"])
    assert not diagnosis.errors
    assert diagnosis.findings[0].severity == "error"
    assert diagnosis.allowed == ["wandb key"]
    with pytest.raises(HarnessError) as caught:
        examine.examine(case, checks=QUIET, allow=["wandb"])
    assert caught.value.code == "check-unknown"


def test_every_finding_names_its_check_and_a_fix(tmp_path: Path) -> None:
    case = situation(
        tmp_path,
        plan=plan(None),
        environ={"WANDB_API_KEY": "x"},
        machine=on(wsl=True),
        limits={"n": 9, "v": 9},
    )
    findings = examine.examine(case, checks=QUIET).findings
    assert len(findings) >= 5
    assert all(finding.fix and finding.check in {check.name for check in QUIET} for finding in findings)
