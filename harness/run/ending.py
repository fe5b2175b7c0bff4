"""How a process of ours ends."""

from __future__ import annotations

import atexit
import gc


def end_quickly() -> None:
    """Leaves out the search for cycles at the end of this process.

    The interpreter walks all objects that are left before it ends, twice. After an import of JAX and Flax
    this takes 0.4 s, and the process gives its memory back anyway. Files that are still open are flushed as
    before: by the with-statement that opened them, or as the modules are taken down.
    """
    atexit.register(gc.freeze)
