"""The base class of every file of a run."""

from __future__ import annotations

import json
from typing import ClassVar

from pydantic_core import PydanticSerializationError

from harness.received.text import all_visible
from harness.strict import Strict


class Artifact(Strict):
    """A file of a run.

    `inputs` is a hash of everything the file was computed from. If it has not changed, the verb is skipped.
    """

    FILE: ClassVar[str]
    schema_version: int = 1
    inputs: str = ""

    def text(self, indent: int | None = None) -> str:
        """The artifact as JSON. Names of files that are not UTF-8 have escapes in place of their bytes."""
        try:
            return self.model_dump_json(indent=indent)
        except PydanticSerializationError:
            return json.dumps(all_visible(self.model_dump(mode="json")), indent=indent)
