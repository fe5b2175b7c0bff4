"""Checkpoints written by openpi's own code, for tests.

They are `full` (step 4, with EMA) and `lora` (step 2, and step 6 interrupted). They lie in `golden/`. Files
above 1 MiB are cut in parts, and the largest data file of the interrupted save is shortened.
"""

from __future__ import annotations

import shutil
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
STEP = {"full": 4, "lora": 2}


def openpi_checkpoint(kind: str, directory: Path) -> Path:
    """The checkpoint directory `kind` ("full" or "lora"), copied to `directory` and made whole."""
    target = directory / f"openpi_checkpoint_{kind}"
    shutil.copytree(GOLDEN / target.name, target)
    for first in list(target.rglob("*.part0")):
        parts = sorted(first.parent.glob(f"{first.stem}.part*"))
        first.with_suffix("").write_bytes(b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink()
    return target
