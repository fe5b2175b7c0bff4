"""The image that a manifest names: in the engine, or built from the commit. Its digest is always computed."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.artifacts import Manifest
from harness.errors import HarnessError
from harness.image.contents import LIST, SUMMARY, Tree, digest, parse
from harness.image.parts import differing, named, read_summary, some, summary, told, value_of
from harness.image.variables import SET, UNSET
from harness.received.text import one_line, word
from harness.replay.engine import contents, get_image, other_variables, said

# Images of the harness; another is looked at when it is named.
_LABEL = "harness.lock.sha256"
_MADE = re.compile(r"harness:(cpu|cuda|cuda13|openpi|simulator|simulator-cpu) on (\S+)")
_ASK = "ask who made the run for the image"
_COMMIT = re.compile(r"([0-9a-f]{40})\+source\.[0-9a-f]+")


class Looked(NamedTuple):
    """An image that was looked at. `unlike` says what of it is not as the manifest names it."""

    image_id: str
    name: str
    computed: str
    unlike: list[str]
    origin: Literal["found", "built"]


def look(
    client: Any, manifest: Manifest, named: str | None, say: Callable[[str], None]
) -> tuple[Looked | None, list[Looked]]:
    """(the image whose contents are the manifest's, the others that were read).

    An image is read if it says that it is the one, if the manifest has its id, or if it was `named`.
    """
    others: list[Looked] = []
    for image in _candidates(client, manifest, named, say):
        found = read(client, image, manifest, say)
        if not found.unlike:
            return found, others
        others.append(found)
    return None, others


def read(
    client: Any,
    image: Any,
    manifest: Manifest,
    say: Callable[[str], None],
    origin: Literal["found", "built"] = "found",
) -> Looked:
    """What the image holds, compared with the manifest. Takes a while: every byte is read."""
    name = (image.tags or [image.id[:19]])[0]
    say(f"reading {name}, {image.attrs['Size'] / 1e9:.1f} GB")
    tree = contents(client, image.id)
    computed = digest(tree.entries)
    unlike = [
        f"environment variable {key}: {value!r}"
        if value not in (SET, UNSET)
        else f"environment variable {key} is {value}"
        for key, value in other_variables(image, tree).items()
    ]
    if computed != manifest.image_content:
        unlike += _unlike(tree, manifest)
    return Looked(image.id, name, computed, unlike, origin)


def _unlike(tree: Tree, manifest: Manifest) -> list[str]:
    """What of a tree is not as the manifest names it, packages first; with files, where a list has them."""
    files: dict[str, list[str]] = {}
    with suppress(ValueError, KeyError):
        # A derived image still has the list of the one that it was made from.
        if read_summary(tree.texts[SUMMARY].decode()).content == manifest.image_content:
            for label, text in named(tree, parse(tree.texts[LIST].decode())):
                files.setdefault(label, []).append(text)
    if files:
        return [told((label, some(texts))) for label, texts in files.items()]
    now = summary(tree).parts
    was = manifest.image_parts or {}
    rows = [
        f"{label}: recorded {value_of(was.get(label))}, here {value_of(now.get(label))}"
        for label in differing(was, now)
    ]
    return rows or [f"contents: recorded {manifest.image_content}, here {digest(tree.entries)}"]


def _candidates(client: Any, manifest: Manifest, named: str | None, say: Callable[[str], None]) -> list[Any]:
    """The images to read, the likeliest first."""
    if named is not None:
        return [get_image(client, named)]
    first: list[Any] = []
    rest: list[Any] = []
    for image in client.images.list(filters={"label": _LABEL}):
        claim = said(client, image.id)
        if claim is not None and claim.content == manifest.image_content:
            (first if image.tags else rest).append(image)
        elif image.id == manifest.image_id:
            rest.append(image)
    if not first and not rest:
        say("no image here says that it holds what the manifest names")
    return first + rest


def build(client: Any, manifest: Manifest, checkout: Path, say: Callable[[str], None]) -> Any:
    """The image built from the commit that the manifest names, out of `checkout`.

    Raises: HarnessError "image-unbuildable" with the reason, or "image-build-failed".
    """
    target, base, commit = what_to_build(manifest, checkout)
    with tempfile.TemporaryDirectory(prefix="harness-replay-") as scratch:
        clone = Path(scratch) / "clone"
        _git(["clone", "--quiet", "--no-hardlinks", "--no-checkout", str(checkout.absolute()), str(clone)])
        _git(["-C", str(clone), "checkout", "--quiet", "--detach", commit])
        tag = f"harness-replay:{target}-{commit[:12]}"
        say(f"building {tag} from commit {commit[:12]}, on {base}: minutes")
        command = [
            "docker",
            "build",
            "--target",
            target,
            "--build-arg",
            f"BASE_IMAGE={base}",
            "--tag",
            tag,
            str(clone),
        ]
        environ = os.environ | {"DOCKER_BUILDKIT": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if done.returncode != 0:
        raise HarnessError(
            "image-build-failed",
            f"the image of commit {commit[:12]} could not be built",
            got=one_line(done.stderr.strip()[-600:]),
            fix=f"git checkout {commit} && docker compose build, and read its log",
        )
    return client.images.get(tag)


def what_to_build(manifest: Manifest, checkout: Path) -> tuple[str, str, str]:
    """(target, base, commit) of the image that a manifest names.

    Only this checkout's own base is built on, and only a commit that it has: a manifest is a stranger's.
    Raises: HarnessError "image-unbuildable".
    """
    made = _MADE.fullmatch(manifest.image or "")
    commit = _COMMIT.fullmatch(manifest.source_revision or "")
    if made is None or commit is None:
        raise HarnessError(
            "image-unbuildable",
            "the manifest does not say what its image was built from",
            got=one_line(f"image {manifest.image}, source {manifest.source_revision}"),
            need="a base and a commit",
            fix=f"{_ASK}: docker save IMAGE, then docker load here",
        )
    if manifest.source_dirty:
        raise HarnessError(
            "image-unbuildable",
            "the image was built from a commit with changes on top of it",
            got=commit[1],
            need="a commit without changes",
            fix=f"{_ASK}: docker save IMAGE, then docker load here",
        )
    if made[2] not in {os.environ.get("BASE_IMAGE"), _base_of(checkout)}:
        raise HarnessError(
            "image-unbuildable",
            "the image stands on another base than this checkout's",
            got=one_line(made[2]),
            need="a base that you trust",
            fix="BASE_IMAGE=THAT_BASE harness replay RUN --build",
        )
    there = ["git", "-C", str(checkout), "cat-file", "-e", f"{commit[1]}^{{commit}}"]
    if subprocess.run(there, capture_output=True, check=False).returncode != 0:
        raise HarnessError(
            "image-unbuildable",
            f"{checkout} does not have the commit",
            got=commit[1],
            need="a clone with the commit that the manifest names",
            fix=f"git -C {word(checkout)} fetch --all, then replay again; or --checkout CLONE",
        )
    return made[1], made[2], commit[1]


def _base_of(checkout: Path) -> str | None:
    try:
        found = re.search(r"^ARG BASE_IMAGE=(\S+)$", (checkout / "Dockerfile").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _git(arguments: list[str]) -> None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HarnessError(
            "image-build-failed",
            "git cannot give the commit",
            got=one_line(done.stderr.strip()[-300:]),
            fix="git fsck, in the checkout",
        )
