"""YAML as people read it: comments above, texts of several lines as blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as a block, where YAML allows it."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def documents(head: Iterable[str], *parts: dict[str, Any]) -> str:
    """The text of a file with these documents, below a comment of these lines."""
    comment = "".join(f"# {line}\n" for line in head)
    return comment + yaml.dump_all(
        parts,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=10_000,
        explicit_start=len(parts) > 1,
    )
