"""Parses YAML from outside: only values that JSON has, within limits. Every failure is a ValueError.

Merge keys are refused, because their copies multiply, and keys that are there twice. Dates, sets, bytes, and
keys that are not text are not accepted. An alias counts as many nodes as it stands for.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import yaml

from harness.received.json import check_json

# The most nodes, where an alias counts as what it stands for. A recipe has less than a hundred.
_MOST_NODES = 10_000
_DEEPEST = 50
_LONGEST_NUMBER = 100
_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with fewer types and with limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = self._depth = 0
        # The number of nodes of each complete node, by id. A node that contains itself is not complete yet.
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """PyYAML's `compose_node`, which also counts nodes."""
        is_alias, before = self.check_event(yaml.AliasEvent), self._count
        self._depth += 1
        self._count += 1
        self._check_bounds()
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._sizes:
                raise ValueError("an alias inside the value that it stands for")
            self._count += self._sizes[id(node)]
            self._check_bounds()
        elif node is not None:
            self._sizes[id(node)] = self._count - before
        return node

    def _check_bounds(self) -> None:
        if self._depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} levels deep")
        if self._count > _MOST_NODES:
            raise ValueError(f"more than {_MOST_NODES:,} values")

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """PyYAML's `construct_object`, with a limit on the length of numbers.

        PyYAML multiplies out numbers such as 1:59:59…, in a time that grows as a square.
        """
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(node.value)} characters")
        return super().construct_object(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuses merge keys, which PyYAML would merge."""
        if any(key.tag == f"{_TAG}merge" for key, _ in node.value):
            raise ValueError("a merge key (<<); write out what it stands for")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """PyYAML's `construct_mapping`, which also refuses keys that are not text, or are there twice."""
        found = super().construct_mapping(node, deep=deep)
        if len(found) < len(node.value):
            # YAML has no such mapping; PyYAML would take the last of them and say nothing.
            [(name, _)] = Counter(key.value for key, _ in node.value).most_common(1)
            raise ValueError(f"a key that is there twice: {name[:40]}")
        for key in found:
            if not isinstance(key, str):
                raise ValueError(f"a key that is not text: {str(key)[:40]}")
        return found


# Text that YAML would resolve to another type (a date) stays text. A tag that names another type is refused.
# What is a number in YAML 1.1 alone stays text too: 1:30 was 90 there, and 010 was 8.
_OLD_NUMBER = r"^(?![-+]?0[0-7_]+$)(?![^:]*:)"
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(_OLD_NUMBER + pattern.pattern, pattern.flags) if tag in _NUMBERS else pattern)
        for tag, pattern in resolvers
        if tag.removeprefix(_TAG) in (*_TYPES, "merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _TYPES
}


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, of JSON's types.

    Raises: ValueError, also for the values that the module's docstring excludes, and for integers of more
    than 20 digits. The schema decides whether a number may be infinite.
    """
    try:
        value = _Loader(text).get_single_data()
    # Besides its own errors PyYAML raises those of its types: KeyError for `!!bool x`, IndexError for `!!int
    # ""`.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(str(error)[:300]) from error
    check_json(value)
    return value
