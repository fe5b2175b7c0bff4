"""`ci/make_sample.py` and `ci/make_tokenizer.py` as modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_sample, make_tokenizer = _script("make_sample"), _script("make_tokenizer")
