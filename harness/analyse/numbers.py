"""Numbers and times from the bytes of a log, one column at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ABSENT = frozenset((b"", b"null", b"None"))
# No run that still works has a larger value. The square of a larger one overflows.
_LARGEST = 1e100
_UNITS = {b"K": 1e3, b"M": 1e6, b"B": 1e9, b"T": 1e12}


def numbers(raw: tuple[bytes, ...]) -> tuple[Floats, bool]:
    """(the values, NaN where there is none; True if some were written with a decimal comma)."""
    commas = False
    try:
        values = np.array(raw, dtype="S").astype(np.float64)
    except ValueError:
        pairs = [_number(text) for text in raw]
        values, commas = np.array([value for value, _ in pairs]), any(comma for _, comma in pairs)
    return np.where(np.abs(values) > _LARGEST, np.copysign(np.inf, values), values), commas


def counts(raw: tuple[bytes, ...]) -> tuple[Floats, Floats]:
    """(steps or samples, the unit to which they were rounded): 1,000 is (1000, 1); 25K is (25,000, 1,000)."""
    try:
        return np.array(raw, dtype="S").astype(np.float64), np.ones(len(raw))
    except ValueError:
        pairs = [_count(text) for text in raw]
        return np.array([value for value, _ in pairs]), np.array([unit for _, unit in pairs])


def _count(text: bytes) -> tuple[float, float]:
    unit = _UNITS.get(text[-1:], 1.0)
    digits = text.replace(b",", b"")
    try:
        if unit == 1.0:
            return float(digits), 1.0
        return float(digits[:-1]) * unit, max(1.0, unit / 10.0 ** len(digits[:-1].partition(b".")[2]))
    except ValueError:
        return float("nan"), 1.0


def _number(text: bytes) -> tuple[float, bool]:
    """One number as people write it: 0.1146, 0,1146, 1,803.1594, 1.803,1594, nan, null."""
    comma, point = text.rfind(b","), text.rfind(b".")
    try:
        if comma < 0:
            return float(text), False
        if point > comma:
            return float(text.replace(b",", b"")), False
        return float(text.replace(b".", b"").replace(b",", b".")), True
    except ValueError:
        return float("nan"), False


def clock_seconds(dates: tuple[bytes, ...], clocks: tuple[bytes, ...]) -> tuple[Floats, Mask]:
    """(seconds, counted from midnight if a clock has no date; True where a clock has a date)."""
    digits = (
        np.array([clock[:8] for clock in clocks], dtype="S8").view(np.uint8).reshape(-1, 8).astype(np.float64)
        - 48
    )
    seconds = digits @ np.array([36_000, 3600, 0, 600, 60, 0, 10, 1], float)
    seconds += np.array([float(b"0." + clock[9:]) if len(clock) > 9 else 0.0 for clock in clocks])
    dated = np.array([bool(date) for date in dates])
    if dated.any():
        try:
            days = np.array([date.decode() or "1970-01-01" for date in dates], dtype="U10").astype(
                "datetime64[D]"
            )
        except ValueError:
            return np.full(len(seconds), np.nan), dated
        seconds = seconds + days.astype(np.float64) * 86_400
    return np.asarray(seconds), dated


def over_midnight(seconds: Floats) -> Floats:
    """Clocks without a date, in their order, as seconds that continue over midnight."""
    back = np.diff(seconds) < -43_200
    return np.asarray(seconds + 86_400 * np.concatenate([[0], np.cumsum(back)])) if len(seconds) else seconds
