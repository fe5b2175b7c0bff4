"""Tests two of the real faults of `benchmarks/chaos.py` in real containers.

To run all of them: `python3 -m benchmarks.chaos`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos import FAULTS, Stage
from benchmarks.containers import Image
from tests.container.engine import CPU_IMAGE, FAST, LABEL, Engine

# A fault trains, resumes and reads every checkpoint, on whatever machine this is.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def stage(engine: Engine, scratch: Path) -> Stage:
    """Where faults happen, with the run that nothing has disturbed."""
    label = f"{LABEL}={engine.session}"
    made = Stage(Image(engine.image(CPU_IMAGE), None, labels=[label], environment=FAST), scratch)
    made.reference()
    return made


@pytest.mark.parametrize("fault", ["disk full during a save", "two runs on one directory"])
def test_a_fault_is_told_leaves_the_checkpoint_whole_and_the_run_resumes_bit_for_bit(
    engine: Engine, stage: Stage, fault: str
) -> None:
    verdict = FAULTS[fault](stage)
    print(f"{fault}: exit code {verdict.ended}; {verdict.words}")
    assert verdict.problems == []
    mine = {"label": f"{LABEL}={engine.session}"}
    assert engine.client.containers.list(all=True, filters=mine, ignore_removed=True) == []
