"""openpi's own model inputs on made frames, for its configurations of π0.5; writes their golden file.

    python -m benchmarks.openpi_inputs --openpi CHECKOUT --python ENV/bin/python

ENV holds what openpi's training/config.py imports, torch included; where lerobot is not installed, an empty
module stands in for it. The frames are those of tests/support/robots.py. Upstream's side
(openpi_inputs_upstream.py) builds each configuration's own transforms, gives them the frames in the form that
LeRobot's reader has (or the reader of DROID's RLDS), and the sample tokenizer in PaliGemma's place. Kept in
tests/golden/openpi_inputs.npz are tokens, masks, state and actions, a hash of each image, and the statistics
of the frames. Without both options it says so, and nothing is done. tests/test_openpi_inputs.py compares our
loader with the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.openpi_configs import COMMIT
from harness.data.sample import sample_tokenizer_path
from tests.support import robots

GOLDEN = Path(__file__).parent.parent / "tests/golden/openpi_inputs.npz"
# Frames at the start of an episode, inside it, and where the chunk goes past its end.
INDEX = (0, 3, 33, 34, 40, 46, 47, 51)


def made(name: str) -> robots.Made:
    """The made recording of a robot."""
    if name.startswith("droid"):
        return robots.droid(positions=name == "droid_positions")
    return robots.aloha() if name == "aloha" else robots.libero()


# Case → (the recording, openpi's configuration, options as on its command line).
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "libero": ("libero", "pi05_libero", ()),
    "libero_relative_state": (
        "libero",
        "pi05_libero",
        ("--data.extra-delta-transform", "--model.discrete-state-input"),
    ),
    "aloha_pen_uncap": ("aloha", "pi05_aloha_pen_uncap", ()),
    "aloha_not_adapted": ("aloha", "pi05_aloha_pen_uncap", ("--data.no-adapt-to-pi",)),
    "aloha_absolute": ("aloha", "pi05_aloha_pen_uncap", ("--data.no-use-delta-joint-actions",)),
    "aloha_one_camera": (
        "aloha",
        "pi05_aloha",
        ("--data.repo-id", "me/arms", "--data.default-prompt", "fold_the towel"),
    ),
    "droid_finetune": ("droid_velocities", "pi05_droid_finetune", ()),
    "full_droid_finetune": ("droid_positions", "pi05_full_droid_finetune", ()),
    "droid_jointpos_polaris": ("droid_positions", "pi05_droid_jointpos_polaris", ("--data.repo-id", "droid")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--openpi", type=Path, help=f"a checkout of openpi at {COMMIT}")
    parser.add_argument("--python", type=Path, help="the python of its environment")
    options = parser.parse_args()
    if options.openpi is None or options.python is None:
        print("skipped: needs --openpi CHECKOUT and --python ENV/bin/python (see the top)", file=sys.stderr)
        return
    head = subprocess.run(
        ["git", "-C", str(options.openpi), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not head.startswith(COMMIT):
        raise SystemExit(f"{options.openpi} is at {head[:7] or 'no commit'}; the golden file is of {COMMIT}")
    with tempfile.TemporaryDirectory(prefix="openpi-inputs-") as scratch:
        found = upstream(options.openpi.resolve(), options.python, Path(scratch))
    for name in {robot for robot, _, _ in CASES.values()}:
        found[f"{name}/sha256"] = np.array(made(name).sha256)
    np.savez_compressed(GOLDEN, **found)
    print(f"{len(CASES)} cases of {len(INDEX)} frames, {GOLDEN.stat().st_size:,} bytes")


def upstream(checkout: Path, python: Path, scratch: Path) -> dict[str, Any]:
    """What openpi's transforms make of the frames."""
    for name in {robot for robot, _, _ in CASES.values()}:
        one = made(name)
        np.savez(
            scratch / f"{name}.npz",
            **{f"camera/{camera}": images for camera, images in one.cameras.items()},
            **{f"vector/{vector}": values for vector, values in one.vectors.items()},
            lengths=np.array(one.lengths),
            tasks=np.array(one.tasks),
        )
    job = {"cases": CASES, "index": INDEX, "tokenizer": str(sample_tokenizer_path())}
    (scratch / "job.json").write_text(json.dumps(job))
    paths = [checkout / "src", checkout / "packages/openpi-client/src"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).resolve().with_name("openpi_inputs_upstream.py")
    subprocess.run([str(python), str(script), str(scratch)], env=environment, check=True)
    return dict(np.load(scratch / "found.npz"))


if __name__ == "__main__":
    main()
