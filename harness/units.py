"""Bytes, seconds and counts as a person reads them. Everywhere else bytes are `int` and times are seconds."""

from __future__ import annotations

import math

KIB = 2**10
MIB = 2**20
GIB = 2**30


def format_bytes(n: int | None) -> str:
    """`"12.5 GiB"`; `"unknown"` for None."""
    if n is None:
        return "unknown"
    for size, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(n) >= size:
            return f"{n / size:.1f} {name}"
    return f"{n} B"


def format_seconds(s: float | None) -> str:
    """`"3.2 s"`, `"4 min 07 s"`, `"2 h 05 min"`; `"unknown"` for None, NaN and infinity."""
    if s is None or not math.isfinite(s):
        return "unknown"
    if s < 60:
        return f"{s:.2g} s" if s < 1 else f"{s:.1f} s"
    minutes, seconds = divmod(round(s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_count(n: int | None) -> str:
    """`"3.35 B"`, `"467.0 M"`, `"12,345"`; `"unknown"` for None."""
    if n is None:
        return "unknown"
    if n >= 10**9:
        return f"{n / 10**9:.2f} B"
    if n >= 10**6:
        return f"{n / 10**6:.1f} M"
    return f"{n:,}"
