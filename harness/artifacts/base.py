"""The base class of every file of a run."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from harness.strict import Strict

# The version of the files' form. A file of another version may mean something else by the same keys.
VERSION = 1


def _is_known(version: int) -> int:
    if version != VERSION:
        raise ValueError(f"the file is of version {version}, and this harness reads version {VERSION}")
    return version


class Artifact(Strict):
    """A file of a run.

    `inputs` is a hash of everything the file was computed from. If it has not changed, the verb is skipped.
    `RECORDED`: it tells what was, so no verb writes the same file again.
    """

    FILE: ClassVar[str]
    RECORDED: ClassVar[bool] = False
    schema_version: Annotated[int, AfterValidator(_is_known)] = VERSION
    inputs: str = ""
