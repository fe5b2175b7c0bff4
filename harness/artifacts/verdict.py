"""verdict.json: whether a run is what its manifest says, and can be reproduced."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.strict import Strict

Status = Literal["equal", "differs", "cannot tell"]


class Compared(Strict):
    """One field of a run's manifest.

    `matters`: a difference here changes what is computed. Other differences are reported and explain nothing.
    """

    field: str
    status: Status
    recorded: str | None = None
    found: str | None = None
    matters: bool = True
    note: str = ""


class Replay(Strict):
    """Metrics of `steps` steps from step `start`, computed again.

    `first` is the first value that is not within `tolerance` (0: bit for bit).
    """

    start: int
    steps: int
    device: str
    tolerance: float
    largest_difference: float | None
    status: Status
    first: str | None = None
    note: str = ""


class Verifier(Strict):
    """The harness that gave a verdict, the time, and the machine.

    In a verdict that came with a run, this is a claim, not a proof.

    `machine` holds driver, cards, processor and container, but no host name. `source_sha256` is that of the
    harness that verified.
    """

    time: str
    harness: str
    source_sha256: str
    device: str | None
    machine: dict[str, str | list[str] | None] = {}


class Verdict(Artifact):
    """The verdict on a run.

    `verdict` is "differs" if a field that matters or the replay differs, "cannot tell" if one of them could
    not be compared.

    `manifest_sha256` is that of the verified manifest.json: the verdict says nothing about another manifest.
    Older verdicts have neither `manifest_sha256` nor `by`.
    """

    FILE: ClassVar[str] = "verdict.json"
    run: str
    against: str
    fields: list[Compared]
    replay: Replay | None
    verdict: Status
    first_difference: str | None
    manifest_sha256: str | None = None
    by: Verifier | None = None
