"""`ci/make_sample.py` as a module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parents[2] / "ci" / "make_sample.py"
_spec = importlib.util.spec_from_file_location("make_sample", _FILE)
assert _spec is not None
assert _spec.loader is not None
make_sample: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_sample)
