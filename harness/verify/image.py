"""Comparison of two images by what they hold: the first part that differs is named, not the digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.artifacts.training import Manifest
from harness.artifacts.verdict import Compared
from harness.image.parts import differing, value_of
from harness.image.variables import SET, UNSET

if TYPE_CHECKING:
    from harness.verify.fields import Found

# A part is named below these, for example "image_content.system package libc6".
CONTENT, VARIABLES = "image_content", "image_environment"
# Another base differs in hundreds of parts; the first of them have the cause.
_MOST = 50


def image_rows(manifest: Manifest, found: Found) -> list[Compared]:
    """The rows of an image's variables and contents. A package explains its files, so it stands first."""
    return [*_variables(manifest, found), *_contents(manifest, found)]


def _variables(manifest: Manifest, found: Found) -> list[Compared]:
    was, now = manifest.image_environment, found.image_environment
    if was is None or now is None:
        return [_unknown(VARIABLES, was, now, manifest, found)]
    names = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    as_image = "as the image sets it"
    rows = [
        Compared(
            field=f"{VARIABLES}.{name}",
            status="differs",
            recorded=was.get(name, as_image),
            found=now.get(name, as_image),
            note="" if name in was and name in now else _note(was.get(name, now.get(name, ""))),
        )
        for name in names
    ]
    return rows or [Compared(field=VARIABLES, status="equal", note=f"{len(was)} unlike the image's own")]


def _note(value: str) -> str:
    return {SET: "a variable that the image does not set", UNSET: "a variable of the image's is missing"}.get(
        value, ""
    )


def _contents(manifest: Manifest, found: Found) -> list[Compared]:
    was, now = manifest.image_content, found.image_content
    if was is None or now is None:
        return [_unknown(CONTENT, was, now, manifest, found)]
    if was == now:
        return [Compared(field=CONTENT, status="equal", recorded=was, found=now)]
    before, after = manifest.image_parts or {}, found.image_parts or {}
    names = differing(before, after)
    rows = [
        Compared(
            field=f"{CONTENT}.{label}",
            status="differs",
            recorded=value_of(before.get(label)),
            found=value_of(after.get(label)),
            note=found.image_notes.get(label, ""),
        )
        for label in names[:_MOST]
    ]
    # The digest is over everything, whatever the parts say.
    note = f"{len(names)} parts differ" if names else "no part that was recorded differs"
    return [*rows, Compared(field=CONTENT, status="differs", recorded=was, found=now, note=note)]


def _unknown(name: str, was: object, now: object, manifest: Manifest, found: Found) -> Compared:
    """A row that cannot tell. It raises doubt if the run or this process is in an image."""
    why = manifest.unknown.get(name) if was is None else found.why.get(name)
    return Compared(
        field=name,
        status="cannot tell",
        recorded=None if was is None else "known",
        found=None if now is None else "known",
        matters=manifest.image is not None or found.image is not None,
        note=why or ("the run did not record it" if was is None else "not found here"),
    )
