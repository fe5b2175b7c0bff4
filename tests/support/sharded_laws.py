"""Laws of a run over several devices.

They need four devices, so they run in their own process: `python -m tests.support.sharded_laws [LAW …]`.

It prints one JSON line, law → "ok" or the error; test_train_sharding.py reads the line. The laws share
their compiled steps, so one process runs them all.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable

import jax

from tests.support import sharded_held_out, sharded_memory, sharded_resume, sharded_training

LAWS: dict[str, Callable[[], None]] = {
    name.removeprefix("law_"): law
    for module in (sharded_training, sharded_resume, sharded_memory, sharded_held_out)
    for name, law in vars(module).items()
    if name.startswith("law_")
}


def _verdict(law: Callable[[], None]) -> str:
    try:
        law()
    except Exception:
        return traceback.format_exc()
    return "ok"


if __name__ == "__main__":
    assert len(jax.local_devices()) == 4
    print(json.dumps({name: _verdict(LAWS[name]) for name in sys.argv[1:] or LAWS}))
