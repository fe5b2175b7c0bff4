"""Makes the golden frames that ship inside the package, in the simulator's own Python.

    MUJOCO_GL=osmesa $HARNESS_SIMULATOR/bin/python ci/make_golden.py [--add]

With --add only the digests of this renderer are added, and the pictures stay llvmpipe's. Run ci/simulate
first: the frames of a simulator that does not certify are not golden.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from harness.simulate import certify, environment, gl, protocol  # noqa: E402


def main() -> None:
    gl.choose()
    values = protocol.check(protocol.shipped("openpi").values)
    digests, pictures = {}, {}
    for suite, (task, number) in certify.FRAMES.items():
        env = environment.Environment(suite, task, values)
        image, wrist = certify.frame(env, number)
        env.close()
        digests[suite] = certify.digest(image, wrist)
        pictures[f"{suite}/image"], pictures[f"{suite}/wrist_image"] = map(certify.small, (image, wrist))
    name = gl.renderer()["name"]
    adds = "--add" in sys.argv
    renderers = {**(certify.golden() if adds else {}), name: digests}
    known = {"versions": environment.versions(), "renderers": renderers}
    certify.GOLDEN.write_text(json.dumps(known, indent=1) + "\n")
    if not adds:
        np.savez_compressed(certify.PICTURES, **pictures)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
