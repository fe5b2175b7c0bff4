"""Describes a root filesystem from outside of it: the last step of an image's build.

    python -m harness.image.describe TREE OUT --name cpu --base BASE --lock docker/lock/cpu.txt
        [--beside opt/simulator=docker/lock/simulator.txt …]

Writes into OUT what the image carries of itself: its list, its summary with the digest, its bill of
materials. `--lock` is of the harness's own environment; `--beside` names another and one of its locks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.image.bom import bill, lacks, read_copyrights, read_locks
from harness.image.contents import BOM, LIST, LISTS, SUMMARY, listing, of_directory
from harness.image.owners import HOME, system_packages
from harness.image.parts import summary


def describe(
    root: Path, out: Path, *, name: str, base: str, lock: Path, beside: Sequence[tuple[str, Path]] = ()
) -> list[str]:
    """Writes the three files, and returns the lines for the build's log.

    `beside` are other environments of the tree, each with one of its locks: ("opt/simulator", the file).
    """
    tree = of_directory(root)
    system = system_packages(tree.texts.get("var/lib/dpkg/status", b"").decode(errors="replace"))
    texts: dict[str, str] = {}
    for home, each in ((HOME, lock), *beside):
        texts[home] = texts.get(home, "") + each.read_text()
    apt = "\n".join(path.read_text() for path in sorted(lock.parent.glob("apt-*.txt")))
    locks = read_locks(texts, apt)
    text = bill(tree, read_copyrights(root, system), locks, name=name, base=base)
    tree = tree.with_file(BOM, text.encode())
    found = summary(tree)
    out.mkdir(parents=True, exist_ok=True)
    for path, content in ((BOM, text), (LIST, listing(tree.entries)), (SUMMARY, found.text())):
        (out / path.removeprefix(f"{LISTS}/")).write_text(content)
    outside = lacks(text)
    return [
        f"content {found.content}: {len(tree.entries)} entries, {len(found.parts)} parts",
        f"licences not on the stated list, or not known: {len(outside)}",
        *(f"  {line}" for line in outside),
    ]


def main(arguments: list[str]) -> int:
    """Reads the command line of a build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--beside", type=_beside, action="append", default=[])
    told = parser.parse_args(arguments)
    lines = describe(told.root, told.out, name=told.name, base=told.base, lock=told.lock, beside=told.beside)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _beside(text: str) -> tuple[str, Path]:
    home, _, lock = text.partition("=")
    return home, Path(lock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
