"""The base class of every file of a run."""

from __future__ import annotations

import json
from typing import Annotated, ClassVar

from pydantic import AfterValidator
from pydantic_core import PydanticSerializationError

from harness.received.text import all_visible
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

    def text(self, indent: int | None = None) -> str:
        """The artifact as JSON. Names of files that are not UTF-8 have escapes in place of their bytes."""
        try:
            return self.model_dump_json(indent=indent)
        except PydanticSerializationError:
            return json.dumps(all_visible(self.model_dump(mode="json")), indent=indent)
