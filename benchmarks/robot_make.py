"""Writes a small made LeRobot dataset of a robot's shape, the same bytes every time; for docs/my-robot.md.

    python -m benchmarks.robot_make DIR [--robot so100|aloha|droid|libero]

The numbers are smooth, as a robot's are; the pictures are coloured fields. No robot has recorded them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.support import robots

ROBOTS = {
    "so100": robots.so100,
    "aloha": robots.aloha,
    "droid": lambda: robots.droid(positions=True),
    "libero": robots.libero,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="a new directory")
    parser.add_argument("--robot", choices=ROBOTS, default="so100")
    options = parser.parse_args()
    if options.directory.exists():
        raise SystemExit(f"{options.directory} exists already: name a new directory")
    made = ROBOTS[options.robot]()
    robots.write(options.directory, made)
    print(
        f"{options.directory}: {len(made.lengths)} episodes, {sum(made.lengths)} frames, {made.fps} a second"
    )


if __name__ == "__main__":
    main()
