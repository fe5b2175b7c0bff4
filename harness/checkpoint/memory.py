"""Gives the host's memory back after a save."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def give_back_memory() -> None:
    """Calls malloc_trim: glibc's arenas otherwise keep the copies of a save (2 % of the state each time)."""
    gc.collect()
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
