"""Damages a checkpoint in N ways, one file each, and restores it: how often that is refused, and whether other data is ever restored.

    python -m benchmarks.damage_checkpoints [--times 10000] [--seed 0]

Prints a table of outcomes by kind of damage. Exit code 1 when other data was restored, or anything but our own error came up.
"as saved": the damage is in a file that restoring does not read, or swapped a file with itself.
"""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import sys
import tempfile
from pathlib import Path

from harness.checkpoint.store import Store
from tests.mutation import damage
from tests.test_checkpoint_digests import PARAMS, STATE, STEP, outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad = []
    with tempfile.TemporaryDirectory() as scratch:
        saved, copy = Path(scratch) / "saved", Path(scratch) / "copy"
        store = Store(saved, keep_every_steps=1)
        store.save(STEP, params=PARAMS, train_state=STATE, norm_stats_json='{"norm_stats": {}}', asset_id="lab/libero", record={"position": 17})
        store.close()
        for number in range(arguments.times):
            shutil.copytree(saved, copy)
            done = damage(copy, chance)
            try:
                result = outcome(copy)
            except Exception as error:
                result = f"crash: {type(error).__name__}"
            table[done.partition(" at ")[0]][result] += 1
            if result == "other data" or result.startswith("crash"):
                bad.append(f"{done}: {result}")
            shutil.rmtree(copy)
            if (number + 1) % 500 == 0:
                print(f"{number + 1} of {arguments.times}", file=sys.stderr)
    results = sorted({result for counter in table.values() for result in counter})
    print("| damage | " + " | ".join(results) + " |\n| --- |" + " --- |" * len(results))
    for kind, counter in sorted(table.items()):
        print(f"| {kind} | " + " | ".join(str(counter[result]) for result in results) + " |")
    print("\n".join(bad[:50]) or f"\n{arguments.times} damages: no crash, no other data")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
