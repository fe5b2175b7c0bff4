"""Whose each file of an image is: a system package's, a Python package's, our source, or nobody's."""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from harness.image.contents import LISTS, Entry, Tree

SYSTEM, PYTHON, SOURCE, FILE = "system package", "Python package", "our source", "file"
# The order in which differences explain one another: a package's files follow from the package.
_ORDER = (SYSTEM, PYTHON, SOURCE, FILE)
# The harness itself, in an image: its start, its revision, and in the test image the whole checkout.
_OURS = "opt/harness/"
# The environment of the images. A package elsewhere is named with its directory.
HOME = "opt/venv"
_INFO = "var/lib/dpkg/info/"
_MOST_LINKS = 8


class System(NamedTuple):
    """An installed system package, from dpkg's status."""

    name: str
    version: str
    architecture: str


class Python(NamedTuple):
    """An installed Python package: its environment, its directory of metadata, and the fields of METADATA."""

    name: str
    version: str
    home: str
    directory: str
    fields: dict[str, list[str]]

    @property
    def label(self) -> str:
        return f"{PYTHON} {self.name}" + ("" if self.home == HOME else f" in /{self.home}")


def system_packages(status: str) -> list[System]:
    """The installed packages of dpkg's status file, by name."""
    found = []
    for block in status.split("\n\n"):
        fields: dict[str, str] = dict(re.findall(r"^([A-Za-z-]+): (.*)$", block, re.MULTILINE))
        if "Package" in fields and fields.get("Status", "").endswith(" installed"):
            found.append(
                System(fields["Package"], fields.get("Version", "?"), fields.get("Architecture", "?"))
            )
    return sorted(found)


def python_packages(texts: Mapping[str, bytes]) -> list[Python]:
    """The installed Python packages of every environment of a tree."""
    found = []
    for path, content in texts.items():
        folder, _, name = path.rpartition("/")
        if name != "METADATA" or not folder.endswith(".dist-info"):
            continue
        fields: dict[str, list[str]] = {}
        for line in content.decode(errors="replace").split("\n\n", 1)[0].splitlines():
            key, colon, value = line.partition(": ")
            if colon and not line.startswith(" "):
                fields.setdefault(key.lower(), []).append(value.strip())
        home = folder.partition("/lib/python")[0]
        title = fields.get("name", [folder.rpartition("/")[2].partition("-")[0]])[0]
        found.append(Python(title, fields.get("version", ["?"])[0], home, folder, fields))
    return sorted(found, key=lambda each: (each.home, each.name.lower()))


class Owners:
    """Path → whose it is, of one tree."""

    def __init__(self, tree: Tree) -> None:
        self._entries = tree.entries
        self.system = system_packages(tree.texts.get("var/lib/dpkg/status", b"").decode(errors="replace"))
        self.python = python_packages(tree.texts)
        self._versions = {f"{SYSTEM} {each.name}": each.version for each in self.system}
        self._versions |= {each.label: each.version for each in self.python}
        self._of: dict[str, str] = {}
        for path in sorted(tree.texts):
            if path.startswith(_INFO):
                name = path.rpartition("/")[2].removesuffix(".list").partition(":")[0]
                for line in tree.texts[path].decode(errors="surrogateescape").splitlines():
                    self._of.setdefault(self._real(line.lstrip("/")), f"{SYSTEM} {name}")
        for package in self.python:
            record = tree.texts.get(f"{package.directory}/RECORD", b"").decode(errors="replace")
            for path in _recorded(package.directory, record):
                self._of.setdefault(
                    path, SOURCE if package.name == "harness" and package.home == HOME else package.label
                )

    def of(self, path: str) -> str:
        """Whose the file is, for example "system package libc6". Of nobody's file its own name.

        A link that no package has is of the package whose file it leads to, as an alternative is.
        """
        own = self._own(path)
        entry = self._entries.get(path)
        hops = 0
        while own.startswith(FILE) and entry is not None and entry.kind == "l" and hops < _MOST_LINKS:
            there = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), entry.target)).lstrip("/")
            path, hops = self._real(there), hops + 1
            entry = self._entries.get(path)
            found = self._own(path)
            own = own if found.startswith(FILE) else found
        return own

    def _own(self, path: str) -> str:
        folder, _, name = path.rpartition("/")
        if path.startswith(_INFO) and "." in name:
            # NAME.list or NAME:ARCHITECTURE.list; a name may have dots of its own.
            return f"{SYSTEM} {name.rpartition('.')[0].partition(':')[0]}"
        # Bytecode is its source's; a record's neighbours are the package's.
        near = [path]
        if folder.endswith(".dist-info") or name == "__pycache__":
            near.append(folder)
        if folder.endswith("/__pycache__") and name.endswith(".pyc"):
            near.append(f"{folder.removesuffix('__pycache__')}{name.partition('.cpython')[0]}.py")
        found = next((self._of[each] for each in near if each in self._of), None)
        if found is None and path.startswith(_OURS) and not f"{path}/".startswith(f"{LISTS}/"):
            return SOURCE
        return found or f"{FILE} /{path}"

    def version(self, label: str) -> str | None:
        """The version of the package that a label names. None for files and our source."""
        return self._versions.get(label)

    def _real(self, path: str) -> str:
        """The path with links among its directories followed, as /bin is one to /usr/bin."""
        for _ in range(_MOST_LINKS):
            head, slash, rest = path.partition("/")
            entry = self._entries.get(head)
            if not slash or entry is None or entry.kind != "l":
                return path
            path = f"{entry.target.lstrip('/')}/{rest}"
        return path


def _recorded(directory: str, record: str) -> Iterable[str]:
    """The paths that a RECORD names, and the directories of the package itself."""
    base = directory.rpartition("/")[0].split("/")
    yield directory
    for row in csv.reader(record.splitlines()):
        if not row or row[0].startswith("/"):
            continue
        parts = list(base)
        for part in row[0].split("/"):
            if part == "..":
                parts = parts[:-1]
            elif part != ".":
                parts.append(part)
        path = "/".join(parts)
        yield path
        while len(parts) > len(base) + 1 and parts[: len(base)] == base:
            parts = parts[:-1]
            yield "/".join(parts)


def rank(label: str) -> tuple[int, str]:
    """The rank of a label among differences: packages of the system, of Python, our source, then files."""
    position = next((at for at, kind in enumerate(_ORDER) if label.startswith(kind)), len(_ORDER))
    return position, label


def grouped(entries: Mapping[str, Entry], owners: Owners) -> dict[str, list[Entry]]:
    """Label → the entries that are its, in the order of their paths."""
    found: dict[str, list[Entry]] = {}
    for path in sorted(entries):
        found.setdefault(owners.of(path), []).append(entries[path])
    return found
