"""openpi's own evaluation of LIBERO, examples/libero/main.py, unchanged, against `harness serve`.

    export HARNESS_SIMULATOR=$PWD/.venv-local/simulator
    python -m benchmarks.openpi_libero STEP --openpi CHECKOUT [--tasks 2]

What main.py imports besides the simulator (openpi-client from docker/lock/client.txt, tyro, imageio, tqdm) is
installed into a directory of its own and seen by PYTHONPATH; the simulator's environment stays as it is.
The server gets a free port. main.py drives one episode a task and is stopped after so many tasks; it prints
what it does. Exit code 1 if it reported an exception, or if an episode has no video.

A smoke checkpoint fails its tasks: what is shown is that the protocol holds. Half a minute an episode on two
idle cores, and a minute to begin.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.simulate.boot import environment, python

ROOT = Path(__file__).parents[1]
MAIN = Path("examples/libero/main.py")
# Of openpi's requirements.in for it, those that the simulator's environment has not, then what tyro and
# openpi-client import. Without requirements: imageio's would bring another numpy.
EXTRAS = (
    *("imageio==2.38.1", "imageio-ffmpeg==0.8.1", "tqdm==4.70.1", "tyro==1.0.17"),
    *("docstring-parser==0.18.0", "typeguard==4.6.1", "websockets==17.4", "msgpack==1.2.4"),
)
_DONE = re.compile(r"# episodes completed so far: (\d+)")
_START_S = 600


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("step", help="what `harness serve` takes")
    parser.add_argument("--openpi", type=Path, required=True, help="a checkout of openpi, at commit 15a9616")
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--tasks", type=int, default=2, help="stop after so many tasks, an episode each")
    parser.add_argument("--scratch", type=Path, help="where packages and videos go (default: thrown away)")
    asked = parser.parse_args()
    if not (asked.openpi / MAIN).is_file():
        parser.error(f"there is no {asked.openpi / MAIN}")
    with tempfile.TemporaryDirectory(prefix="openpi-libero-") as made:
        scratch = asked.scratch or Path(made)
        with served(asked.step) as port:
            return _driven(asked.openpi.resolve() / MAIN, asked.suite, asked.tasks, port, scratch.resolve())


def _packages(into: Path) -> Path:
    """The directory with what main.py imports besides the simulator."""
    if not (into / "tyro").is_dir():
        pip = [str(python()), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        pip += ["--target", str(into), "--upgrade"]
        client = ["--require-hashes", "--no-deps", "--requirement", str(ROOT / "docker/lock/client.txt")]
        subprocess.run([*pip, *client], check=True)
        subprocess.run([*pip, "--no-deps", *EXTRAS], check=True)
    return into


@contextmanager
def served(step: str) -> Iterator[int]:
    """`harness serve` on a free port of the loopback, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "harness.cli", "serve", step, "--port", str(port), "--without-key"]
    began = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    try:
        for line in server.stdout:
            print("serve:", line, end="")
            if line.startswith("serving on"):
                break
            if time.monotonic() - began > _START_S:
                raise SystemExit("the server took too long")
        if server.poll() is not None:
            raise SystemExit(f"the server ended with exit code {server.returncode}")
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        print("serve:", (server.communicate()[0] or "").strip().replace("\n", "\nserve: "))


def _driven(program: Path, suite: str, tasks: int, port: int, scratch: Path) -> int:
    """main.py's exit: 0 when it reported no exception and left a video an episode."""
    videos = scratch / "videos"
    variables = environment() | {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl", "PYTHONUNBUFFERED": "1"}
    variables["PYTHONPATH"] = str(_packages(scratch / "packages"))
    command = [str(python()), str(program), "--args.host", "127.0.0.1", "--args.port", str(port)]
    command += ["--args.num-trials-per-task", "1", "--args.task-suite-name", suite]
    command += ["--args.video-out-path", str(videos)]
    began = time.monotonic()
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables, cwd=scratch
    )
    assert driver.stdout is not None
    exceptions, episodes = 0, 0
    for line in driver.stdout:
        print("main.py:", line, end="")
        exceptions += "Caught exception" in line or line.startswith("Traceback")
        if found := _DONE.search(line):
            episodes = int(found[1])
            if episodes >= tasks:
                driver.send_signal(signal.SIGKILL)
                break
    driver.communicate()
    there = sorted(videos.glob("*.mp4")) if videos.is_dir() else []
    for video in there:
        print(f"{video.name}: {os.path.getsize(video)} bytes")
    print(
        f"{episodes} episodes, {exceptions} exceptions, {len(there)} videos, {time.monotonic() - began:.0f} s"
    )
    return 0 if episodes == tasks == len(there) and not exceptions else 1


if __name__ == "__main__":
    sys.exit(main())
