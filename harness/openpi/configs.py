"""The training configurations that openpi ships at the pinned commit: options, defaults, freeze filters.

Source: openpi src/openpi/training/config.py and training/misc, commit 15a9616, read by `python -m
benchmarks.openpi_configs`.
"""

from __future__ import annotations

import difflib
import functools
import json
from importlib import resources
from typing import Any, Literal

from harness.errors import HarnessError
from harness.strict import Strict, parse

REQUIRED = "<required>"
LIST = "harness import openpi --list"
FAMILIES = {"pi05": "π0.5", "pi0": "π0", "pi0_fast": "π0-FAST"}


class Kind(Strict):
    """The kind of value that an option takes. "strings" and "numbers" are any number of values."""

    type: Literal["int", "float", "str", "bool", "choice", "strings", "numbers"]
    choices: list[str] = []
    optional: bool = False


class Config(Strict):
    """One configuration.

    `data` is upstream's class of the dataset's reader. `repack` maps upstream's names to features, where the
    configuration itself says which. `defaults` has every option that this configuration's command line knows.
    """

    family: Literal["pi05", "pi0", "pi0_fast"]
    freezes: bool
    data: str
    repack: dict[str, Any] | None = None
    defaults: dict[str, Any]


class _Table(Strict):
    commit: str
    kinds: dict[str, Kind]
    configs: dict[str, Config]


@functools.cache
def _table() -> _Table:
    data = json.loads(resources.files("harness.openpi").joinpath("configs.json").read_text())
    return parse(
        _Table,
        data,
        where="configs.json",
        code="openpi-table-invalid",
        fix="restore harness/openpi/configs.json from the repository",
    )


def names() -> list[str]:
    """The names of all configurations, in upstream's order."""
    return list(_table().configs)


def find(name: str) -> Config:
    """The configuration called `name`.

    Raises: HarnessError "openpi-config-unknown" with the nearest names.
    """
    config = _table().configs.get(name)
    if config is not None:
        return config
    # Upstream's own parser takes no hyphens here.
    close = difflib.get_close_matches(name.replace("-", "_").lower(), names(), n=3, cutoff=0.4)
    raise HarnessError(
        "openpi-config-unknown",
        f"openpi has no configuration {name!r}",
        got=name,
        need=(
            f"{' or '.join(close) or 'one of its configurations, such as pi05_libero'}; {LIST} prints all"
            f" {len(names())}"
        ),
        fix=f"harness import openpi {close[0]}" if close else LIST,
    )


def kind_of(option: str) -> Kind:
    """The kind of value that `option`, one of a configuration's defaults, takes."""
    return _table().kinds[option]
