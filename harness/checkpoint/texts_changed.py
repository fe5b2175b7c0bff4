"""Compares the text files of a step with the digests that were taken when it was saved. Needs no JAX."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from harness.checkpoint.format import DAMAGE, outside
from harness.received.files import ARTIFACT_BYTES, UnsafeFile, read_received, there
from harness.received.json import read_json
from harness.run.steps import DIGESTS


class Change(NamedTuple):
    """What is wrong with a text file, and its sha256 now and when it was saved, if both are known."""

    why: str
    got: str | None = None
    need: str | None = None


def text_digest(text: str | bytes) -> str:
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


def changes(step: Path, files: Mapping[str, str]) -> Iterator[Change]:
    """What is wrong with each of `files` (path below the step → sha256) that is not as it was saved.

    Raises: UnsafeFile; PermissionError.
    """
    for name, expected in files.items():
        # The sidecar may be a stranger's. A file that it names is compared only if it lies in the step.
        if outside(name):
            yield Change(f"{DIGESTS} names {name!r}, which is no file of the step")
            continue
        try:
            text = read_received(step / name, step, ARTIFACT_BYTES)
        except PermissionError:
            raise
        except OSError as error:
            yield Change(f"{name} cannot be read: {error.strerror}")
            continue
        found = text_digest(text)
        # A copy that took it for text of Windows (git, ftp, unzip) has changed its line ends alone.
        if expected not in (found, text_digest(text.replace(b"\r\n", b"\n"))):
            yield Change(f"{name} has changed since it was saved", found, expected)


def texts_changed(step: Path) -> list[str]:
    """What is wrong with the text files of a step; empty for a step without a sidecar.

    Raises: PermissionError.
    """
    if not there(step / DIGESTS):
        return []
    try:
        files = read_json(step / DIGESTS, step, ARTIFACT_BYTES)["files"]
        return [change.why for change in changes(step, {str(name): str(files[name]) for name in files})]
    except PermissionError:
        raise
    except UnsafeFile as error:
        return [error.what]
    except (OSError, *DAMAGE) as error:
        return [f"{DIGESTS} is damaged ({type(error).__name__})"]
