"""A step of one array for tests of checkpoints that a stranger made, and the code of a refusal."""

from __future__ import annotations

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
