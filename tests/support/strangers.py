"""What tests of a stranger's files share: a step, a bound of memory, the code of a refusal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import HarnessError
from tests.support.item_writer import write_item

# Far above what any of these takes; without its bound each never ends.
HANG_S = 30
SECRET = b"the private key of the person who looks"


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(HarnessError) as caught:
        call()
    return caught.value.code


def a_step(tmp_path: Path, *, ocdbt: bool = False) -> Path:
    write_item(
        tmp_path / "7/params",
        {"params/action_in_proj/bias/value": np.arange(40, dtype=np.uint8)},
        ocdbt=ocdbt,
    )
    return tmp_path / "7"


def limited(code: str, limit_gib: float = 1.5) -> subprocess.CompletedProcess[str]:
    """A program that has so much address space, in a process of its own."""
    limit = int(limit_gib * 2**30)
    start = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, timeout=120, check=False
    )
