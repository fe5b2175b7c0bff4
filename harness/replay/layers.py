"""Two images of the engine, entry by entry, and the step of the build that made what differs."""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Collection
from typing import IO, Any, NamedTuple, cast

from harness.image.contents import Tree, digest
from harness.image.owners import FILE, Owners
from harness.image.parts import changed
from harness.image.variables import DECLARED, declared
from harness.replay.engine import Pieces, contents, get_image, variables

_LONGEST = 160


class Difference(NamedTuple):
    """One entry that differs: whose it is, what differs, and the step that made it in the second image."""

    owner: str
    what: str
    step: str

    def text(self) -> str:
        whose = "" if self.owner.startswith(FILE) else f" ({self.owner})"
        return f"{self.what}{whose}\n    made by: {self.step}"


class Pair(NamedTuple):
    """Two images: digest and number of entries of each, and all that differs between them."""

    digests: tuple[str, str]
    entries: tuple[int, int]
    differences: list[Difference]


def compare_layers(client: Any, first: str, second: str) -> Pair:
    """What differs between two images, by path; variables stand first.

    Raises: HarnessError "no-such-image".
    """
    images = [get_image(client, name) for name in (first, second)]
    trees = [contents(client, image.id) for image in images]
    a, b = trees
    texts = changed(a.entries, b.entries)
    paths = {text[1:].partition(": ")[0] for text in texts}
    steps = _steps(images[1], paths)
    gone = _steps(images[0], paths - steps.keys())
    owners = Owners(Tree(a.entries | b.entries, a.texts | b.texts))
    found = [
        Difference(owners.of(path), text, steps.get(path) or gone.get(path) or "the base image, or none")
        for text in texts
        for path in (text[1:].partition(": ")[0],)
    ]
    variables = _variables(images)
    return Pair(
        (digest(a.entries), digest(b.entries)), (len(a.entries), len(b.entries)), [*variables, *found]
    )


def _steps(image: Any, paths: Collection[str]) -> dict[str, str]:
    # The engine writes the whole image to its disk first.
    return made_by(image.save(), image.history(), paths) if paths else {}


def _variables(images: list[Any]) -> list[Difference]:
    a, b = (declared(variables(image)) for image in images)
    return [
        Difference(
            f"{FILE} {DECLARED}", f"environment variable {name}: {a.get(name)!r}, {b.get(name)!r}", "ENV"
        )
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]


def made_by(saved: Any, history: list[dict[str, Any]], paths: Collection[str]) -> dict[str, str]:
    """Path → the step whose layer has it last, of an image as `docker save` writes it.

    `history` is the engine's, the newest step first.
    """
    holding: dict[str, set[str]] = {}
    order: list[str] = []
    with tarfile.open(fileobj=cast(IO[bytes], io.BufferedReader(Pieces(saved))), mode="r|") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is None:
                continue
            if member.name == "manifest.json":
                order = json.load(file)[0]["Layers"]
            elif member.name.endswith(".tar") or member.name.startswith("blobs/"):
                holding[member.name] = _held(file, paths)
            elif member.name.endswith(".json"):
                continue
    # An old engine writes a layer that occurs twice as a link to the first.
    steps = [_step(each["CreatedBy"]) for each in reversed(history) if each.get("Size") or _writes(each)]
    found: dict[str, str] = {}
    for number, layer in enumerate(order):
        for path in holding.get(layer, set()):
            found[path] = f"layer {number + 1} of {len(order)}" + (
                f": {steps[number]}" if len(steps) == len(order) else ""
            )
    return found


def _held(file: IO[bytes], paths: Collection[str]) -> set[str]:
    """Which of the paths are in a layer. Empty for a blob that is no layer."""
    try:
        with tarfile.open(fileobj=file, mode="r|*") as layer:
            return {name for member in layer if (name := posixpath.normpath(member.name)) in paths}
    except tarfile.TarError:
        return set()


def _writes(step: dict[str, Any]) -> bool:
    """True for a step that has a layer, although it may be an empty one."""
    said = step.get("CreatedBy", "")
    return said.startswith(("RUN ", "COPY ", "ADD ", "WORKDIR ")) or "|" in said[:2] or not said


def _step(said: str) -> str:
    return " ".join(said.split())[:_LONGEST] or "the base image"
