"""Makes the table of scenes that ships inside the package, from openpi's serial loop.

    $HARNESS_SIMULATOR/bin/python ci/make_scenes.py WORK [--only SUITE/TASK …] [--renderer]

WORK keeps one file a task; a task that is there is not made again. With all of them there, the table is
written. All 40 tasks take about an hour on one core. --renderer makes them with a renderer, as openpi does,
which changes no number.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from harness.simulate import environment, scenes  # noqa: E402
from harness.simulate.protocol import check, shipped  # noqa: E402

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
RESETS = 50


def make(work: Path, suite: str, task: int, seed: int, *, renderer: bool) -> None:
    """Write the poses of one task's resets."""
    path = work / f"{suite}_{task}.json"
    if path.exists():
        return
    env = environment.make(suite, task, resolution=256, renderer=renderer)
    rows = [
        {name: pose.tolist() for name, pose in found.items()}
        for found in itertools.islice(scenes.serial(env, seed), RESETS)
    ]
    env.close()
    part = path.with_suffix(".part")
    part.write_text(json.dumps(rows))
    part.rename(path)
    sys.stderr.write(f"{suite}/{task}\n")


def table(work: Path, seed: int) -> str:
    """The table's text from the files of all tasks."""
    found = {}
    for suite, task in itertools.product(SUITES, range(10)):
        rows = json.loads((work / f"{suite}_{task}.json").read_text())
        if len(rows) != RESETS:
            raise SystemExit(f"{suite}/{task} has {len(rows)} resets, not {RESETS}")
        found[f"{suite}/{task}"] = scenes.packed(rows)
    head = {
        "what": "fixture poses of openpi's loop (15a9616, examples/libero/main.py), by ci/make_scenes.py",
        "seed": seed,
        "resets": RESETS,
        "versions": environment.versions(),
    }
    lines = ",\n".join(f'  "{name}": {json.dumps(rows)}' for name, rows in found.items())
    return json.dumps(head, indent=1)[:-2] + ',\n "scenes": {\n' + lines + "\n }\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--renderer", action="store_true")
    given = parser.parse_args()
    seed = check(shipped("openpi").values).seed
    given.work.mkdir(parents=True, exist_ok=True)
    every = [f"{suite}/{task}" for suite, task in itertools.product(SUITES, range(10))]
    for name in given.only or every:
        suite, _, task = name.partition("/")
        make(given.work, suite, int(task), seed, renderer=given.renderer)
    if not given.only:
        scenes.TABLE.write_text(table(given.work, seed))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
