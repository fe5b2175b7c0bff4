"""Writes tests/golden/intervals.json: intervals and tests as other programs compute them.

    python benchmarks/interval_golden.py FILE

It runs in an environment of its own, with scipy, statsmodels and fieldtrial, and imports nothing of the
harness. Wilson and Newcombe are statsmodels'; McNemar's exact p is scipy's and statsmodels', which must
agree; Tango is fieldtrial's.

statsmodels' score interval of a difference is not taken: its restricted rates do not maximise the likelihood
(0.2838 for 0.2857 at 8/15 against 3/20, difference 0.05), and its search fails at equal rates. The score
interval here is from the definition: the likelihood's derivative is solved for the restricted rate, and the
ends are solved for, both by scipy. Newcombe's paired interval is so too, from statsmodels' Wilson limits.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

LEVELS = (0.9, 0.95, 0.9875)
RATES = ((0, 10), (10, 10), (1, 2), (50, 50), (390, 400), (462, 500), (491, 500), (1937, 2000), (7, 33))
TWO = (
    (8, 15, 3, 20),
    (494, 500, 480, 500),
    (50, 50, 40, 45),
    (1937, 2000, 390, 400),
    (7, 10, 3, 10),
    (3, 10, 7, 10),
    (20, 50, 30, 50),
    (462, 500, 451, 500),
    (1, 40, 5, 30),
)
TABLES = (
    (36, 12, 2, 0),
    (400, 40, 20, 40),
    (450, 0, 0, 50),
    (20, 5, 0, 0),
    (0, 7, 3, 10),
    (1900, 30, 45, 25),
    (10, 1, 9, 30),
    (2, 9, 8, 1),
)


def score(a: int, n: int, b: int, m: int, level: float) -> list[float]:
    """Miettinen's and Nurminen's interval, from its definition."""
    from scipy import optimize, stats

    z, difference = stats.norm.ppf((1 + level) / 2), a / n - b / m

    def restricted(gap: float) -> float:
        """The second rate that maximises the likelihood if the first is larger by `gap`."""
        low, high = max(0.0, -gap), min(1.0, 1 - gap)

        def slope(q: float) -> float:
            p = q + gap
            terms = ((a, p), (-(n - a), 1 - p), (b, q), (-(m - b), 1 - q))
            return sum(count / rate for count, rate in terms if count)

        inside = 1e-15
        if slope(low + inside) <= 0:
            return low
        if slope(high - inside) >= 0:
            return high
        return float(optimize.brentq(slope, low + inside, high - inside, xtol=1e-16, rtol=1e-14))

    def deviate(gap: float) -> float:
        q = restricted(gap)
        p = q + gap
        variance = (p * (1 - p) / n + q * (1 - q) / m) * (n + m) / (n + m - 1)
        return (difference - gap) / math.sqrt(variance)

    ends = (
        optimize.brentq(lambda gap: deviate(gap) - z, -1 + 1e-9, difference - 1e-12, xtol=1e-15),
        optimize.brentq(lambda gap: deviate(gap) + z, difference + 1e-12, 1 - 1e-9, xtol=1e-15),
    )
    return [float(end) for end in ends]


def newcombe_paired(table: tuple[int, ...], level: float) -> list[float]:
    """Newcombe's method 10, with Wilson's limits by statsmodels."""
    from statsmodels.stats.proportion import proportion_confint

    e, f, g, h = table
    n = sum(table)
    p, q = (e + f) / n, (e + g) / n
    (l2, u2), (l3, u3) = (proportion_confint(k, n, alpha=1 - level, method="wilson") for k in (e + f, e + g))
    product = (e + f) * (g + h) * (e + g) * (f + h)
    cross = e * h - f * g
    cross = cross if cross < 0 else max(cross - n / 2, 0)
    phi = cross / math.sqrt(product) if product else 0.0
    low = math.sqrt(max((p - l2) ** 2 - 2 * phi * (p - l2) * (u3 - q) + (u3 - q) ** 2, 0.0))
    high = math.sqrt(max((u2 - p) ** 2 - 2 * phi * (u2 - p) * (q - l3) + (q - l3) ** 2, 0.0))
    return [float(p - q - low), float(p - q + high)]


def golden() -> dict[str, Any]:
    import fieldtrial
    import scipy
    import statsmodels
    from fieldtrial.stats.paired import tango_interval
    from scipy.stats import binomtest
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

    def wilson(k: int, n: int, level: float) -> list[float]:
        return [float(end) for end in proportion_confint(k, n, alpha=1 - level, method="wilson")]

    def newcombe(q: tuple[int, ...], level: float) -> list[float]:
        return [float(end) for end in confint_proportions_2indep(*q, method="newcomb", alpha=1 - level)]

    tests = []
    for a, b, c, d in TABLES:
        one = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
        two = mcnemar([[a, b], [c, d]], exact=True).pvalue if b + c else 1.0
        assert abs(one - two) < 1e-12, (a, b, c, d, one, two)
        tests.append([b, c, float(one)])
    return {
        "made_by": "benchmarks/interval_golden.py",
        "versions": {
            "scipy": scipy.__version__,
            "statsmodels": statsmodels.__version__,
            "fieldtrial": fieldtrial.__version__,
        },
        "wilson": [[k, n, level, *wilson(k, n, level)] for k, n in RATES for level in LEVELS],
        "newcombe": [[*q, level, *newcombe(q, level)] for q in TWO for level in LEVELS],
        "score": [[*q, level, *score(*q, level)] for q in TWO for level in LEVELS],
        "mcnemar": tests,
        "newcombe_paired": [[*t, level, *newcombe_paired(t, level)] for t in TABLES for level in LEVELS],
        "tango": [
            [*t, level, *map(float, tango_interval(t[1], t[2], sum(t), level=level))]
            for t in TABLES
            for level in LEVELS
        ],
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(golden(), indent=1) + "\n")
