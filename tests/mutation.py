"""Damage to a checkpoint on disk, as disks, networks and people do it: one file changed in one way."""

from __future__ import annotations

import random
from pathlib import Path


def damage(directory: Path, chance: random.Random) -> str:
    """What was done, in words, to one file below `directory`."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    victim = chance.choice(files)
    data = bytearray(victim.read_bytes())
    kind = chance.choice(("flip a bit", "flip a bit", "change a byte", "zero a block", "cut short", "lengthen", "empty", "remove", "swap with another"))
    at = chance.randrange(max(len(data), 1))
    if kind == "flip a bit" and data:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == "change a byte" and data:
        data[at] = (data[at] + chance.randrange(1, 256)) % 256
    elif kind == "zero a block":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "cut short":
        del data[at:]
    elif kind == "lengthen":
        data += chance.randbytes(chance.randrange(1, 64))
    elif kind == "empty":
        data.clear()
    elif kind == "swap with another":
        other = chance.choice(files)
        there = other.read_bytes()
        other.write_bytes(bytes(data))
        data = bytearray(there)
    if kind == "remove":
        victim.unlink()
    else:
        victim.write_bytes(bytes(data))
    return f"{kind} at {at} of {victim.relative_to(directory)}"
