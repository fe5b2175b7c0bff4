"""What tests ask of an engine, and what a batch script would start."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from harness.launch.asked import Asked, validated

DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = f"registry.example/lab/harness@{DIGEST}"
# Nothing in it may reach a shell, YAML, sbatch or Python as anything but text.
ODD = """a b'c"d$HOME$(id)`id`#;&|*%j{x}:é\\t"""
_STUB = """#!/bin/bash
printf '%s\\0' "$@" >"$STUBS/$(basename "$0").$(ls "$STUBS" | wc -l)"
case $(basename "$0") in
  srun) exit "${SRUN_CODE:-0}" ;;
  squeue) echo "${ENDS:-N/A}" ;;
esac
"""


def asked(engine: str, **more: Any) -> Asked:
    """Two hosts of eight GPUs, whatever is not said otherwise."""
    data: dict[str, Any] = {
        "engine": engine,
        "hosts": 2,
        "name": "pi05_libero-001",
        "recipe": "pi05_libero",
        "options": ["--set=train.seed=7"],
        "gpus": 8,
        "program": ["/opt/venv/bin/python", "-m", "harness.cli"],
        "out": "/shared/launch/pi05_libero-001",
        "runs": "/shared/runs",
        "cache": "/shared/cache",
        "datasets": "/shared/datasets",
    }
    if engine in ("kubernetes", "compose"):
        data["image"] = IMAGE
    if engine == "kubernetes":
        data["claim"] = "lab"
    return validated(data | more)


def run_script(script: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a batch script with programs in the place of Slurm's, which write down what they are given."""
    programs, stubs = directory / "programs", directory / "stubs"
    programs.mkdir(exist_ok=True)
    stubs.mkdir(exist_ok=True)
    for name in ("srun", "squeue", "scontrol"):
        (programs / name).write_text(_STUB)
        (programs / name).chmod(0o755)
    (directory / "job.sbatch").write_text(script)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "STUBS": str(stubs)}
    job["PATH"] = f"{programs}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(directory / "job.sbatch")],
        env={"HOME": str(directory), **job, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def given(directory: Path, program: str) -> list[list[str]]:
    """The words that each call of a program was given, in their order."""
    paths = sorted((directory / "stubs").glob(f"{program}.*"), key=lambda path: int(path.suffix[1:]))
    return [path.read_text().split("\0")[:-1] for path in paths]
