"""Damages a checkpoint in N ways, one file each, and restores it: how often that is refused, and whether
other data is ever restored.

    python -m benchmarks.damage_checkpoints [--times 10000] [--seed 0]

Prints tables of outcomes by kind of damage and by kind of file. Exit code 1 when other data was restored, a
changed byte of an array was not noticed, or anything but our own error came up.
"as saved": the damage is in bytes that restoring does not read, or swapped a file with itself.
"""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

import tensorstore as ts

from tests.support.mutation import damage
from tests.test_checkpoint_digests import STEP, outcome, save_step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    files: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad = []
    with tempfile.TemporaryDirectory() as scratch:
        saved, copy = Path(scratch) / "saved", Path(scratch) / "copy"
        save_step(saved)
        used = bytes_in_use(saved, str(STEP))
        for number in range(arguments.times):
            shutil.copytree(saved, copy)
            done = damage(copy, chance)
            try:
                result = outcome(copy)
            except Exception as error:
                result = f"crash: {type(error).__name__}"
            table[done.partition(" at ")[0]][result] += 1
            files[kind_of_file(done, used)][result] += 1
            missed = result == "as saved" and kind_of_file(done, used).endswith("in use")
            if missed or result == "other data" or result.startswith("crash"):
                bad.append(f"{done}: {result}")
            shutil.rmtree(copy)
            if (number + 1) % 500 == 0:
                print(f"{number + 1} of {arguments.times}", file=sys.stderr)
    for title, counters in (("damage", table), ("file", files)):
        results = sorted({result for counter in counters.values() for result in counter})
        print(f"| {title} | " + " | ".join(results) + " |\n| --- |" + " --- |" * len(results))
        for kind, counter in sorted(counters.items()):
            print(f"| {kind} | " + " | ".join(str(counter[result]) for result in results) + " |")
        print()
    print("\n".join(bad[:50]) or f"\n{arguments.times} damages: no crash, no other data")
    return 1 if bad else 0


def kind_of_file(done: str, used: dict[str, list[tuple[int, int]]]) -> str:
    """What stands in the file that was damaged; of the files of arrays, whether a byte was changed that the
    checkpoint's newest version refers to.
    """
    what, _, path = done.rpartition(" of ")
    kind, _, at = what.partition(" at ")
    parts = Path(path).parts
    if "d" not in parts[:-1]:
        return "our texts" if {"harness", "assets"} & set(parts) else "Orbax's metadata"
    if kind not in ("flip a bit", "change a byte"):
        return "arrays and their index, other damage"
    inside = any(start <= int(at) < end for start, end in used.get(path, []))
    return (
        "arrays and their index, a byte in use"
        if inside
        else "arrays and their index, a byte that nothing refers to"
    )


def bytes_in_use(root: Path, step: str) -> dict[str, list[tuple[int, int]]]:
    """File → the ranges of the nodes and values of OCDBT that a reader of the newest version meets."""
    used: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    for item in ("params", "train_state"):
        base = ts.KvStore.open(f"file://{root}/{step}/{item}/").result()

        def note(location: str, item: str = item) -> None:
            _, inner, name, offset, length = location.split(":")
            used[f"{step}/{item}/{unquote(inner)}{unquote(name)}"].append(
                (int(offset), int(offset) + int(length))
            )

        newest = max(
            ts.ocdbt.dump(base).result()["versions"], key=lambda version: version["generation_number"]
        )
        nodes = [newest["root"]["location"]]
        while nodes:
            note(nodes[-1])
            for entry in ts.ocdbt.dump(base, nodes.pop()).result()["entries"]:
                if "indirect_value" in entry:
                    note(entry["indirect_value"])
                elif "location" in entry:
                    nodes.append(entry["location"])
    return used


if __name__ == "__main__":
    sys.exit(main())
