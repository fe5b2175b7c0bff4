"""Mutates files of PyTorch weights, reads each, and counts crashes and silent successes.

    python benchmarks/fuzz_weights.py [COUNT] [SEED]

Of each mutated file `weights.source`'s reader must say what is wrong in a HarnessError, or give the very
numbers of the file before the mutation (a changed remark in a header harms nothing). Anything else that is
raised is a crash; other numbers without a word are a silent success. `inspect --deep` must end on each too.
Values themselves are not changed: a number may be any number, and only a digest tells.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.fuzz_weights_mutations import MUTATIONS, WHOLE, shapes, tensors, write
from harness.checkpoint.inspect import inspect
from harness.checkpoint.merge import read_leaf
from harness.checkpoint.source import find_params
from harness.checkpoint.weights import parameter_leaves
from harness.errors import HarnessError


def read(folder: Path) -> dict[str, np.ndarray]:
    """Every parameter, as an export of the folder would read it."""
    leaves = parameter_leaves(find_params(folder), shapes())
    return {path: read_leaf(folder, leaves, path) for path in leaves}


def same(found: dict[str, np.ndarray], before: list[dict[str, np.ndarray]]) -> bool:
    return any(all(np.array_equal(found[path], one[path]) for path in one) for one in before)


def main() -> int:
    count, seed = map(int, (sys.argv[1:3] + ["5000", "0"][len(sys.argv) - 1 :])[:2])
    outcomes: Counter[str] = Counter()
    scratch = Path(tempfile.mkdtemp())
    bad = 0
    try:
        before = []
        for kind in (0, 1):
            folder = scratch / str(kind)
            folder.mkdir()
            write(folder / WHOLE, tensors(kind))
            before.append(read(folder))
        for number in range(count):
            rng = random.Random(f"{seed}-{number}")
            mutation = MUTATIONS[number % len(MUTATIONS)]
            folder = scratch / "case"
            shutil.copytree(scratch / str(rng.randrange(2)), folder)
            mutation(folder / WHOLE, rng)
            outcome = judge(folder, before)
            outcomes[outcome] += 1
            if outcome in ("crash", "silent"):
                bad += 1
                print(f"{number} {mutation.__name__}: {outcome}")
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(scratch)
    print(f"{count} files: {dict(sorted(outcomes.items()))}")
    return 1 if bad else 0


def judge(folder: Path, before: list[dict[str, np.ndarray]]) -> str:
    """The error's code; "the same numbers"; or "crash" or "silent"."""
    try:
        found = read(folder)
        outcome = "the same numbers" if same(found, before) else "silent"
    except HarnessError as error:
        outcome = error.code
    except Exception:
        traceback.print_exc()
        return "crash"
    try:
        inspect(folder, deep=True)
    except HarnessError:
        pass
    except Exception:
        traceback.print_exc()
        return "crash"
    return outcome


if __name__ == "__main__":
    sys.exit(main())
