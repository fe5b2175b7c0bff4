"""replayed.json: whether a run can be had again in the image it was made in."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.artifacts.base import Artifact
from harness.artifacts.verdict import Status, Verdict


class Replayed(Artifact):
    """The verdict on a run, given inside of its own image.

    `content` is the image that the manifest names, `computed` what the image that was used really holds; both
    are content digests. `origin` is where that image came from: found in the engine, or built from the
    commit. `reason` says why nothing can be told. `differences` names what is not as it should be in the
    image that comes closest. `inside` is the verdict that the image's own `harness verify` gave.
    """

    FILE: ClassVar[str] = "replayed.json"
    run: str
    manifest_sha256: str | None
    content: str | None
    image: str | None = None
    image_id: str | None = None
    computed: str | None = None
    origin: Literal["found", "built"] | None = None
    verdict: Status
    reason: str | None = None
    first_difference: str | None = None
    differences: list[str] = []
    inside: Verdict | None = None
