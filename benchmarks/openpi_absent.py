"""Stand-ins for packages that openpi's trainer imports but its JAX step never uses.

These are torch, transformers and lerobot. The stand-ins serve benchmarks that run inside openpi's
environment; a package that is installed there is used. The benchmarks need openpi's pinned jax, flax, optax,
orbax-checkpoint and augmax, and the packages that those import. torch alone would be some gigabytes for the
import statement of a type.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

UNUSED = ("torch", "transformers", "lerobot", "gym_aloha")


class _Nothing(type):
    """A class that has every attribute, as another such class, and whose instances decorate."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing(name)


def _nothing(name: str) -> Any:
    return _Nothing(
        name,
        (),
        {
            "__init__": lambda *_, **__: None,
            "__call__": lambda self, *given, **_: given[0] if given else self,
        },
    )


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True)
            if name.partition(".")[0] in self._packages
            else None
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stand_in() -> list[str]:
    """The packages of `UNUSED` that cannot be imported; importing them gives an empty module from now on."""
    absent = [name for name in UNUSED if not _imports(name)]
    # First, since a package may be there and not fit what it needs.
    sys.meta_path.insert(0, _Finder(absent))
    return absent


def _imports(name: str) -> bool:
    """Whether a package is there and its import ends well. Of one that fails no module is left."""
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(name)
    except Exception:
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[module]
        return False
    return True
