"""Tests our model against numbers made by openpi's own code.

tests/support/parity.py does the work, and can be run by hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.parity import Golden, check, kinds, main

GOLDEN = Path(__file__).parent / "golden" / "pi05_tiny.npz"


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_figure_is_within_the_golden_tolerance(kind: str) -> None:
    figures = check(Golden(GOLDEN), kind)
    assert len(figures) == 6
    assert all(figure.passes for figure in figures), figures


def test_the_file_holds_both_kinds() -> None:
    assert kinds(GOLDEN) == ["full", "lora"]


def test_by_hand_exits_1_when_a_figure_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = dict(np.load(GOLDEN))
    wrong = {key: value for key, value in stored.items() if key.startswith("full/")}
    wrong["full/loss"] = wrong["full/loss"] * 1.001
    np.savez(tmp_path / "wrong.npz", **wrong)
    monkeypatch.setattr(sys, "argv", ["parity", str(tmp_path / "wrong.npz")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in printed if line.startswith("FAIL")] == [
        ["FAIL", "full", "loss"],
        ["FAIL", "full", "loss,"],
    ]


def test_by_hand_its_process_exits_1_when_a_file_holds_no_figures(tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz")
    command = [sys.executable, "-m", "tests.support.parity", str(tmp_path / "empty.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (1, "FAIL")
