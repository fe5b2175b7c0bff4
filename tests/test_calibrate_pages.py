"""Tests how calibrations are shown, the files of measured cards, and the pages that have their figures."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import measured_cards as program
from harness.artifacts import Calibration, CalibrationStage
from harness.errors import HarnessError
from harness.plan.cards import CARDS
from harness.plan.measured import measured_cards, name_of
from harness.run.directory import RunDir
from harness.show.calibration import calibration_view
from tests.support.calibrating import calibration, taking, words

ROOT = Path(__file__).parents[1]


def test_a_measured_card_is_shown_with_what_it_lacks() -> None:
    found = measured_cards()["h200"]
    said = words(calibration_view(found))
    assert "256 = 32 x 8, state on the card" in said
    assert "one a call, with its dispatch" in said
    assert "both ways unknown: not recorded" in " ".join(said.split())
    failed = CalibrationStage(name="lora", state="timeout", reason="not done after 240 s")
    said = words(calibration_view(calibration(*taking(1.1), failed)))
    assert "lora: timeout: not done after 240 s" in said


def test_the_page_shows_what_the_shipped_file_says() -> None:
    page = ROOT / "docs/calibrating.md"
    console = Console(file=io.StringIO(), width=110, record=True)
    console.print(calibration_view(measured_cards()["h200"]), crop=False)
    said = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    assert f"```text\n{said}\n```" in page.read_text()


def test_the_readme_has_the_table_of_the_shipped_files(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    assert "\n".join(program.table(program.rows())) in readme
    program.picture(program.rows(), tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_a_calibration_is_taken_among_the_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "SHIPPED", tmp_path)
    made = RunDir(tmp_path / "mine").write(calibration(*taking(1.1), card="NVIDIA H100 80GB HBM3"))
    target_file = program.add(made, "our run, 2026-12-01")
    assert target_file == tmp_path / "h100.json"
    written = Calibration.model_validate_json(target_file.read_text())
    assert (written.origin, written.uuid) == ("our run, 2026-12-01", None)
    assert "GPU-0" not in target_file.read_text()
    nothing = RunDir(tmp_path / "none").write(calibration())
    for path, code in ((nothing, "calibration-empty"), (tmp_path / "gone.json", "artifact-invalid")):
        with pytest.raises(HarnessError) as refused:
            program.add(path, "x")
        assert refused.value.code == code


def test_the_shipped_files_are_what_was_measured_and_say_with_what() -> None:
    found = measured_cards()["h200"]
    assert Calibration.model_validate_json(found.model_dump_json()) == found
    assert (found.jax, found.plugin, found.revision) == ("0.11.2", "CUDA 13", "1c676cc")
    assert "pins jax 0.10.2" in str(found.how)
    full = next(stage for stage in found.stages if stage.name == "full")
    assert full.plan is not None
    assert name_of(full, found.total_bytes) == "256 = 32 x 8, state on the card"
    assert full.plan.planned_bytes is not None
    assert full.plan.peak_bytes is not None
    assert abs(full.plan.planned_bytes / full.plan.peak_bytes - 1) < 0.001
    for key, card in measured_cards().items():
        assert card.card == CARDS[key].device
        assert card.origin


def test_a_run_directory_with_a_calibration_is_read(tmp_path: Path) -> None:
    made = calibration(*taking(1.1))
    RunDir(tmp_path).write(made)
    assert RunDir(tmp_path).read(Calibration) == made
