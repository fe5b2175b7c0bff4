"""Tests the real nvidia-ml-py against a C stand-in for libnvidia-ml.so.1, and compares with golden JSON.

Each scenario has its own process. After a deliberate change: `HARNESS_WRITE_GOLDEN=1 python -m pytest
tests/test_probe_nvml.py`, then read the difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "nvml"
ROOT = HERE.parent.parent
SCENARIOS = sorted(path.stem for path in HERE.glob("*.txt"))

READ = """
import json, sys
from harness.probe import nvml
reading = nvml.read(processes_hidden=sys.argv[1] or None)
values = reading._asdict() | {"gpus": [gpu.model_dump(mode="json") for gpu in reading.gpus]}
assert "jax" not in sys.modules
print(json.dumps(values))
"""
PROBE = """
from pathlib import Path
from harness.probe.machine import probe
machine = probe([Path(".")])
print(machine.model_dump_json())
"""


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of the stand-in compiled with the given definitions."""
    built: dict[tuple[str, ...], Path] = {}

    def compiled(*defines: str) -> Path:
        if defines not in built:
            folder = tmp_path_factory.mktemp("nvml")
            flags = [f"-D{name}" for name in defines]
            subprocess.run(
                [
                    "cc",
                    "-Wall",
                    "-Werror",
                    "-shared",
                    "-fPIC",
                    *flags,
                    "-o",
                    folder / "libnvidia-ml.so.1",
                    HERE / "stand_in.c",
                ],
                check=True,
            )
            built[defines] = folder
        return built[defines]

    return compiled


def run(code: str, library: Path, scenario: str | Path, *arguments: str, **environment: str) -> Any:
    path = scenario if isinstance(scenario, Path) else HERE / f"{scenario}.txt"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_")}
    settings = (
        inherited
        | {"LD_LIBRARY_PATH": str(library), "NVML_SCENARIO": str(path), "PYTHONPATH": str(ROOT)}
        | environment
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read(library: Path, scenario: str | Path, hidden: str = "") -> Any:
    return run(READ, library, scenario, hidden)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_reading_equals_golden(build: Any, scenario: str) -> None:
    got = read(build(), scenario)
    golden = HERE / f"{scenario}.json"
    if os.environ.get("HARNESS_WRITE_GOLDEN"):
        golden.write_text(json.dumps(got, indent=1) + "\n")
    assert got == json.loads(golden.read_text())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_null_has_a_reason(build: Any, scenario: str) -> None:
    got = read(build(), scenario)
    devices = [*got["gpus"], *(mig for gpu in got["gpus"] for mig in gpu["mig_devices"])]
    for gpu in devices:
        empty = {field for field, value in gpu.items() if value is None} - {"error", "fix"}
        assert empty <= set(gpu["unknown"]), gpu
    if not got["gpus"]:
        assert got["gpu_error"]
    assert got["driver_version"] or got["unknown"]["driver_version"]


def test_library_missing(tmp_path: Path) -> None:
    got = read(tmp_path, "idle_48gb")
    assert got["gpus"] == []
    assert "libnvidia-ml.so.1 cannot be loaded" in got["gpu_error"]


def test_library_is_an_empty_file(tmp_path: Path) -> None:
    # Docker Desktop leaves such files when it injects the driver and there is none.
    (tmp_path / "libnvidia-ml.so.1").touch()
    assert "libnvidia-ml.so.1 cannot be loaded" in read(tmp_path, "idle_48gb")["gpu_error"]


def test_library_from_before_versioned_init(build: Any) -> None:
    got = read(build("VERY_OLD"), "idle_48gb")
    assert got["gpus"] == []
    assert "too old" in got["gpu_error"]


def test_old_library_falls_back_to_older_calls(build: Any) -> None:
    new, old = (read(build(*defines), "two_one_busy")["gpus"] for defines in ((), ("OLD",)))
    assert all(gpu["reserved_bytes"] is None and "reserved_bytes" in gpu["unknown"] for gpu in old)
    for gpu in new + old:
        gpu.pop("reserved_bytes"), gpu["unknown"].pop("reserved_bytes", None)
    assert old == new


def test_empty_process_list_in_a_container_proves_nothing(build: Any) -> None:
    seen, hidden = (read(build(), "two_one_busy", reason)["gpus"] for reason in ("", "a container"))
    assert [gpu["foreign_processes"] is None for gpu in seen] == [False, False]
    assert [gpu["foreign_processes"] is None for gpu in hidden] == [False, True]
    assert hidden[1]["unknown"]["foreign_processes"] == "a container"


def test_nvml_is_shut_down_and_jax_not_imported(build: Any, tmp_path: Path) -> None:
    mark = tmp_path / "shut_down"
    run(READ, build(), "idle_48gb", "", NVML_SHUTDOWN_MARK=str(mark))
    assert mark.exists()


def test_many_gpus_each_answering_differently(build: Any, tmp_path: Path) -> None:
    # The rule, not the examples: any single question may fail with any error, and the others stay answered.
    base = (HERE / "idle_48gb.txt").read_text()
    keys = ("name", "uuid", "architecture", "capability", "memory", "display", "compute", "graphics")
    fields = (
        "name",
        "uuid",
        "architecture",
        "compute_capability",
        "total_bytes",
        "display_active",
        "foreign_processes",
        "foreign_processes",
    )
    for error in (3, 4, 999):
        lines = [line for line in base.splitlines() if not line.startswith(("gpu", "count"))] + [
            f"count {len(keys)}"
        ]
        for index, key in enumerate(keys):
            own = [
                line.replace("gpu 0 ", f"gpu {index} ")
                for line in base.splitlines()
                if line.startswith("gpu 0 ")
            ]
            lines += [
                f"gpu {index} {key} !{error}" if line.startswith(f"gpu {index} {key} ") else line
                for line in own
            ]
        scenario = tmp_path / "scenario.txt"
        scenario.write_text("\n".join(lines))
        for gpu, field in zip(read(build(), scenario)["gpus"], fields, strict=True):
            assert gpu[field] is None
            assert field in gpu["unknown"]
            others = [name for name in fields if name != field]
            assert all(gpu[name] is not None for name in others), gpu
            assert gpu["error"] is None


@pytest.mark.parametrize(
    ("scenario", "setting", "visible"),
    [
        ("two_one_busy", None, [True, True]),
        ("two_one_busy", "1", [False, True]),
        ("two_one_busy", "1,0", [True, True]),
        ("two_one_busy", "", [False, False]),
        ("two_one_busy", "-1", [False, False]),
        ("two_one_busy", "1,-1,0", [False, True]),
        ("two_one_busy", "7,0", [False, False]),
        ("two_one_busy", "GPU-c4fe2290-7d13-8f5a-b2a9-06fc4b3e9d78", [False, True]),
        ("two_one_busy", "GPU-1b7", [True, False]),
        ("two_one_busy", "GPU-", [False, False]),
        ("mig", "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d", [True, False]),
        ("mig", "1", [False, True]),
    ],
)
def test_cuda_visible_devices(build: Any, scenario: str, setting: str | None, visible: list[bool]) -> None:
    environment = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    machine = run(PROBE, build(), scenario, **environment)
    assert [gpu["visible"] for gpu in machine["gpus"]] == visible
    assert machine["visible_devices"] == setting


def test_only_the_named_mig_instance_is_visible(build: Any) -> None:
    machine = run(PROBE, build(), "mig", CUDA_VISIBLE_DEVICES="MIG-a28a")
    assert [mig["visible"] for mig in machine["gpus"][0]["mig_devices"]] == [False, True]


def test_index_order_is_doubted_only_when_cards_differ(build: Any, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.txt"
    mixed.write_text(
        (HERE / "two_one_busy.txt")
        .read_text()
        .replace("gpu 1 name NVIDIA GeForce RTX 3090", "gpu 1 name NVIDIA RTX A6000")
    )
    assert "visible_devices" in run(PROBE, build(), mixed, CUDA_VISIBLE_DEVICES="0")["unknown"]
    assert (
        "visible_devices"
        not in run(PROBE, build(), mixed, CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID")["unknown"]
    )
    assert "visible_devices" not in run(PROBE, build(), "two_one_busy", CUDA_VISIBLE_DEVICES="0")["unknown"]


@pytest.mark.parametrize(
    ("mode", "compute", "says"),
    [
        ("0", "4711:1024", None),
        ("2", "none", "PROHIBITED"),
        ("3", "none", None),
        ("3", "4711:1024", "process 4711 has it for itself"),
        ("!3", "4711:1024", None),
    ],
)
def test_a_card_on_which_nobody_else_may_compute_is_no_usable_one(
    build: Any, tmp_path: Path, mode: str, compute: str, says: str | None
) -> None:
    text = (HERE / "idle_48gb.txt").read_text().replace("compute none", f"compute {compute}")
    scenario = tmp_path / "scenario.txt"
    scenario.write_text(f"{text}gpu 0 compute_mode {mode}\n")
    got = read(build(), scenario)
    error, fix = got["gpus"][0]["error"], got["gpu_fix"]
    assert "compute_mode" not in got["gpus"][0]["unknown"]
    if says is None:
        assert error is fix is None
    else:
        assert says in error
        assert "nvidia-smi -i 0 -c 0" in fix


def test_a_card_that_is_lost_when_its_compute_mode_is_asked_is_lost(build: Any, tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.txt"
    scenario.write_text((HERE / "idle_48gb.txt").read_text() + "gpu 0 compute_mode !15\n")
    [card] = read(build(), scenario)["gpus"]
    assert card["error"]
    assert "does not answer" in card["unknown"]["display_active"]
