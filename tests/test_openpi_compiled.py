"""Tests the benchmark that compiles upstream's step.

It reads XLA's buffer assignment, and does nothing without openpi.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import openpi_compiled, openpi_compiled_child
from harness.openpi.table import rows
from harness.plan.cards import CARDS

ROOT = Path(__file__).parents[1]
# The form of jaxlib 0.5.3: an aliased argument is one allocation, counted once.
ASSIGNMENT = """BufferAssignment:
allocation 0: size 67108864, parameter 0, shape |f32[4096,4096]| at ShapeIndex {}, maybe-live-out:
 value: <12 Arg_0.1.0 @0> (size=67108864,offset=0): f32[4096,4096]{1,0}
allocation 1: size 100, parameter 1, shape |f32[25]| at ShapeIndex {}:
allocation 2: size 16, output shape is |(f32[4096,4096], f32[])|, maybe-live-out:
allocation 3: size 4, thread-local:
allocation 7: size 71303184, preallocated-temp:
"""


def test_bytes_are_the_sum_of_the_largest_programs_allocations(tmp_path: Path) -> None:
    (tmp_path / "module_0002.jit_step.gpu_after_optimizations-buffer-assignment.txt").write_text(ASSIGNMENT)
    (tmp_path / "module_0001.jit_key.gpu_after_optimizations-buffer-assignment.txt").write_text(
        "allocation 0: size 8, parameter 0\n"
    )
    found = openpi_compiled.assigned(tmp_path)
    assert found == {
        "bytes": 67108864 + 100 + 16 + 4 + 71303184,
        "arguments": 67108864 + 100,
        "temporary": 71303184,
    }


def test_the_old_compiler_gets_a_target_that_it_can_read() -> None:
    text = openpi_compiled_child.older(CARDS["rtx_a6000"].target())
    assert "device_memory_size: 51041271808" in text
    assert "thread_dim_limit" not in text
    assert text.count("{") == text.count("}")


def test_points_are_said_once_and_rows_are_points() -> None:
    points = openpi_compiled.points()
    said = [json.dumps(point, sort_keys=True) for point in points]
    assert len(said) == len(set(said))
    for row in rows():
        if row.source == "compiled":
            assert any(openpi_compiled.is_of(row.model_dump(), point) for point in points)


def test_without_openpi_nothing_is_done() -> None:
    for name in ("openpi_compiled", "openpi_configs"):
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0
        assert "skipped" in done.stderr
