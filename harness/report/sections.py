"""The contents of the report's sections, taken from the artifacts: no prose, no HTML."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

from harness.artifacts import Manifest
from harness.errors import HarnessError
from harness.received.files import PICTURE_BYTES, read_received, there
from harness.received.names import is_commit
from harness.received.text import word
from harness.recipe.parameters import group_of, is_trained, parameter_shapes
from harness.recipe.schema import Recipe
from harness.run.directory import RECIPE
from harness.strict import parse

# The whole page stays under 2 MB. base64 adds a third.
MAX_IMAGE_BYTES = 900_000
# 4096 × 4096, the limit of a dataset's pictures: 48 MiB when decoded.
MAX_PIXELS = 1 << 24


class Share(NamedTuple):
    """One part of a bar."""

    name: str
    value: int
    of: int
    trained: int = 0

    @property
    def percent(self) -> float:
        return 100 * self.value / self.of if self.of else 0.0


def recipe_of(manifest: Manifest | None) -> Recipe | None:
    """The recipe in the manifest. None if this version of the harness does not understand it."""
    if manifest is None:
        return None
    try:
        return parse(
            Recipe,
            manifest.recipe,
            where="the manifest's recipe",
            code="artifact-invalid",
            fix="use the harness that made the run",
        )
    except HarnessError:
        return None


def parameter_shares(recipe: Recipe) -> list[Share]:
    """Parameters of each group of the network, and the number that the recipe trains; largest first."""
    total: dict[str, int] = {}
    trained: dict[str, int] = {}
    for path, shape in parameter_shapes(recipe.model).items():
        group, size = group_of(path), 1
        for n in shape:
            size *= n
        total[group] = total.get(group, 0) + size
        trained[group] = trained.get(group, 0) + size * is_trained(path, recipe.model, recipe.train.trained)
    everything = sum(total.values())
    return sorted(
        (Share(group, n, everything, trained[group]) for group, n in total.items()),
        key=lambda share: -share.value,
    )


def memory_shares(breakdown: dict[str, int]) -> list[Share]:
    """The parts of the plan's memory, largest first."""
    total = sum(breakdown.values())
    return sorted(
        (Share(name, n, total) for name, n in breakdown.items() if n > 0), key=lambda share: -share.value
    )


def picture(path: Path, limit_bytes: int = MAX_IMAGE_BYTES) -> str | None:
    """The run's PNG as a data URI, made smaller if it exceeds the limit. None if there is none.

    Raises: HarnessError "artifact-invalid" for a file that is no PNG, or one of more pixels than a camera
    gives; UnsafeFile.
    """
    if not there(path):
        return None
    from PIL import Image

    fix = f"remove it, and the verb that wrote it writes it again: rm {word(path)}"
    try:
        data = read_received(path, path.parent, PICTURE_BYTES)
        # Without `formats` Pillow accepts any of fifty. One of them is a program that Ghostscript runs.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                got = f"{image.width} × {image.height}"
                raise HarnessError(
                    "artifact-invalid",
                    f"{path.name} is too large a picture",
                    got=got,
                    need=f"{MAX_PIXELS} pixels",
                    fix=fix,
                )
            image.load()
            kind = "png"
            if len(data) > limit_bytes:
                kind, data = "jpeg", _smaller(image, limit_bytes)
    except HarnessError:
        raise
    # Pillow's decoders raise almost any exception on damaged input.
    except Exception as error:
        raise HarnessError("artifact-invalid", f"{path.name} is not a picture: {error}", fix=fix) from error
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _smaller(image: Any, limit_bytes: int) -> bytes:
    picture = image.convert("RGB")
    for width in (1600, 1200, 800, 400):
        picture.thumbnail((width, width * 4))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        if buffer.tell() <= limit_bytes:
            break
    return buffer.getvalue()


class Command(NamedTuple):
    what: str
    line: str


def commands(
    directory: Path, manifest: Manifest | None, recipe: Recipe | None, others: list[Path]
) -> list[Command]:
    """The commands that reproduce this run, resume it, inspect it and check it."""
    run = word(directory)
    found = []
    # "<commit>+source.<hash>" means that the tree differed from the commit.
    commit, _, changed = ((manifest.source_revision if manifest else None) or "").partition("+")
    # Anything but a commit's whole name could be someone's branch or an option of git.
    if is_commit(commit):
        what = (
            f"The commit of this run (its source had changes on top of it: {changed})"
            if changed
            else "The code of this run"
        )
        found.append(Command(what, f"git checkout {commit}"))
    if there(directory / RECIPE):
        found.append(
            Command(
                "Reproduce: the same recipe in a new run",
                f"harness train --recipe {word(directory / RECIPE)}",
            )
        )
    found.append(
        Command("Resume: go on from the last whole checkpoint", f"harness train --resume --run {run}")
    )
    found.append(
        Command(
            "Verify: every field against this machine, and the first steps again, bit for bit",
            f"harness verify {run} --steps 3",
        )
    )
    against = " --against base" if recipe and recipe.weights.source else ""
    found.append(
        Command(
            f"Inspect the checkpoints, every number in them{', and what moved' if against else ''}",
            f"harness inspect --run {run} --deep{against}",
        )
    )
    found.append(Command("Analyse the curve: learning, or noise", f"harness analyse {run}"))
    found.append(
        Command("Predict: what the last checkpoint would do at a frame", f"harness predict {run} --run {run}")
    )
    again = " ".join([run, *(word(path) for path in others)])
    found.append(
        Command(
            "Write this page again", f"harness report {again}" if others else f"harness report --run {run}"
        )
    )
    return found


class Beside(NamedTuple):
    """One run beside others. None where its files do not tell."""

    name: str
    state: str
    steps: int
    loss: float | None
    median_step_s: float | None
    parameters_trained: int | None
    device: str | None
    deviations: list[str]
