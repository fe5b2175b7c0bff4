"""An image in parts, and the first parts in which two images differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.image.contents import Entry, Tree, digest
from harness.image.owners import FILE, Owners, grouped, rank

# The digits of a part's hash. It names what differs; the digest over everything decides. Fewer than 16, and
# before the version: a longer word behind a name like /etc/passwd would be redacted as a secret.
_DIGITS = 12
_MOST_NAMED = 3


class Summary(NamedTuple):
    """What the image says of itself, beside its list: the digest, and a value for each part.

    A part's value is a hash over its entries and, behind it, its version, where it has one.
    """

    content: str
    parts: dict[str, str]

    def text(self) -> str:
        return json.dumps(self._asdict(), indent=1, sort_keys=True) + "\n"


def summary(tree: Tree) -> Summary:
    """The summary of a tree."""
    owners = Owners(tree)
    parts = {}
    for label, entries in grouped(tree.entries, owners).items():
        lines = "".join(f"{entry.line}\n" for entry in entries)
        version = owners.version(label)
        value = hashlib.sha256(lines.encode()).hexdigest()[:_DIGITS]
        parts[label] = f"{value} {version}" if version else value
    return Summary(digest(tree.entries), parts)


def read_summary(text: str) -> Summary:
    """The summary of a text.

    Raises: ValueError for what is none.
    """
    body: Any = json.loads(text)
    if not (isinstance(body, dict) and isinstance(body.get("content"), str)):
        raise ValueError("no summary of an image's contents")
    parts = body.get("parts")
    if not (isinstance(parts, dict) and all(isinstance(value, str) for value in parts.values())):
        raise ValueError("no summary of an image's contents")
    return Summary(body["content"], parts)


def value_of(part: str | None) -> str:
    """A part's value for people: the version first."""
    value, _, version = (part or "").partition(" ")
    return f"{version} ({value})" if version else value or "not there"


def changed(was: Mapping[str, Entry], now: Mapping[str, Entry]) -> list[str]:
    """What differs between two lists, a text each path: added, removed, or what changed of it."""
    found = []
    for path in sorted(was.keys() | now.keys()):
        before, after = was.get(path), now.get(path)
        if before is None or after is None:
            found.append(f"/{path}: {'added' if before is None else 'removed'}")
        elif before.line != after.line:
            found.append(f"/{path}: {_what(before, after)}")
    return found


def _what(before: Entry, after: Entry) -> str:
    said = []
    if before.kind != after.kind:
        said.append(f"type {before.kind} is now {after.kind}")
    if before.mode != after.mode:
        said.append(f"mode {before.mode:04o} is now {after.mode:04o}")
    if before.owner != after.owner:
        said.append(f"owner {before.owner} is now {after.owner}")
    if before.target != after.target:
        said.append(f"link to {before.target or 'nothing'} is now to {after.target or 'nothing'}")
    if before.sha256 != after.sha256:
        said.append(f"sha256 {before.sha256[:12]} is now {after.sha256[:12]}")
    return ", ".join(said)


def differing(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts that differ, those that explain others first."""
    names = {name for name in was.keys() | now.keys() if was.get(name) != now.get(name)}
    # A package that came or went takes its record in dpkg's status along; nobody's file explains nothing.
    return sorted(names, key=rank)


def named(tree: Tree, was: Mapping[str, Entry]) -> list[tuple[str, str]]:
    """(whose it is, what differs) for all of a tree that is not as the list says, packages first."""
    owners = Owners(tree)
    rows = [(owners.of(text[1:].partition(": ")[0]), text) for text in changed(was, tree.entries)]
    return sorted(rows, key=lambda row: (rank(row[0]), row[1]))


def told(row: tuple[str, str]) -> str:
    """A row of `named` as one text."""
    label, text = row
    return f"{FILE} {text}" if label.startswith(FILE) else f"{label}: {text}"


def some(texts: list[str]) -> str:
    """The first few of the texts, and how many more there are."""
    more = len(texts) - _MOST_NAMED
    return "; ".join(texts[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
