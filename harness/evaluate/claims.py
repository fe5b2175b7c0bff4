"""Published success rates that an evaluation is compared with, each with its source."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from harness.artifacts.evaluation import ClaimedSuite
from harness.artifacts.setting import Protocol
from harness.errors import HarnessError
from harness.simulate.protocol import shipped

# The fixed initial states of each task. Source: LIBERO 8f1084e, libero/benchmark.
STATES = 50
OPENPI = "openpi:pi05_libero"


class Claim(NamedTuple):
    """A claim and what its author states of its protocol. What is None is not stated.

    `recipe` is the name of the shipped recipe of the claimed policy.
    """

    name: str
    source: str
    suites: dict[str, ClaimedSuite]
    protocol: Protocol
    versions: dict[str, str]
    action_horizon: int | None
    sampling_steps: int | None
    recipe: str | None
    caveat: str


# The values of the published program. Its author numbers no version of them.
OPENPI_PROTOCOL = Protocol(name="openpi", version=None, values=shipped("openpi").values)

CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            OPENPI,
            "openpi, examples/libero/README.md since 35106c9 (2025-09-03): 98.8, 98.2, 98.0 and 92.4 % of 500"
            " episodes a suite, pi05_libero at 30k steps",
            {
                suite: ClaimedSuite(successes=successes, episodes=500, tasks=10)
                for suite, successes in (
                    ("libero_spatial", 494),
                    ("libero_object", 491),
                    ("libero_goal", 490),
                    ("libero_10", 462),
                )
            },
            OPENPI_PROTOCOL,
            shipped("openpi").versions,
            10,
            10,
            "pi05_libero",
            "one run; its episodes, noise and intervals are not published, so its scenes cannot be paired",
        ),
    )
}


def claim_of(name: str) -> Claim:
    """The claim of that name.

    Raises: HarnessError "claim-unknown".
    """
    if name not in CLAIMS:
        close = (difflib.get_close_matches(name, CLAIMS, n=1, cutoff=0.3) or [OPENPI])[0]
        raise HarnessError(
            "claim-unknown",
            f"there is no published claim {name!r}",
            got=name,
            need=f"one of {', '.join(sorted(CLAIMS))}",
            fix=f"give {close}, or the directory of another evaluation",
        )
    return CLAIMS[name]
