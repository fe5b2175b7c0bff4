"""verdict.json: whether a run is what it says, and can be had again."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.strict import Strict

Status = Literal["equal", "differs", "cannot tell"]


class Compared(Strict):
    """One field of a run's manifest.

    `matters`: a difference here changes what is computed; others are told and explain nothing.
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
    """Which harness gave a verdict, when, and on what.

    A verdict that came with a run says this of itself: it is a claim, not a proof.

    `machine` holds driver, cards, processor and container, no host's name. `source_sha256` is that of the
    harness that verified.
    """

    time: str
    harness: str
    source_sha256: str
    device: str | None
    machine: dict[str, str | list[str] | None] = {}


class Verdict(Artifact):
    """`verdict` is "differs" when a field that matters or the replay differs, "cannot tell" when one of them
    could not be compared.

    `manifest_sha256` is that of the manifest.json that was verified: of another manifest it says nothing.
    Older verdicts have neither that nor `by`.
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
