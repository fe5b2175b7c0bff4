"""benchmarks/fuzz_logs.py, which makes a log of every form."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def fuzz_logs() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "benchmark_fuzz_logs", Path(__file__).parents[1] / "benchmarks/fuzz_logs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
