"""The stage `look`: open loop, what a checkpoint would do at recorded frames that it was not trained on.

The frames go to `harness serve` as a client of the simulator sends them. A picture that is turned, a gripper
whose sign is wrong or other units of the actions show here, in seconds.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.closed_loop.train import harness
from harness.data.lerobot import LeRobotDataset, open_dataset
from harness.serve.client import Client

NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
EVERY, FIRST = 5, 5
WAIT_S = 600


def look(directory: Path, name: str, step: int | None) -> None:
    """Prints, for each number of an action, how the predicted ones follow the recorded ones."""
    run = directory / name
    data = open_dataset(directory / "dataset")
    with served(run if step is None else run / "checkpoints" / str(step)) as uri:
        client = Client(uri)
        for kind, episodes in held_and_trained(run, data).items():
            recorded, predicted, turned = asked(client, data, episodes)
            print(f"{kind}: episodes {', '.join(map(str, episodes))}, {len(recorded)} frames")
            print("number     correlation  error    of the mean  with turned pictures")
            for i, label in enumerate(NAMES):
                true, ours, other = (each[:, :, i] for each in (recorded, predicted, turned))
                error, mean, wrong = (
                    float(np.abs(each - true).mean()) for each in (ours, true.mean(), other)
                )
                both = np.corrcoef(true.ravel(), ours.ravel())[0, 1]
                print(f"{label:10s} {both:10.3f} {error:8.3f} {mean:12.3f} {wrong:12.3f}")
            same = np.sign(predicted[:, :, 6]) == np.sign(recorded[:, :, 6])
            print(f"gripper's sign is the recorded one in {100 * same.mean():.1f} %")


def held_and_trained(run: Path, data: LeRobotDataset) -> dict[str, list[int]]:
    """The episodes that the run kept out of training, and as many that it did not."""
    manifest = json.loads((run / "manifest.json").read_text())
    held = manifest["held_out"] or []
    trained = [i for i in range(len(data.episodes)) if i not in held][: max(3, len(held))]
    return {"held out": held, "trained": trained} if held else {"trained": trained}


def asked(client: Client, data: LeRobotDataset, episodes: list[int]) -> tuple[np.ndarray, ...]:
    """Actions [N, FIRST, 7] of every few frames: recorded, predicted, and predicted from turned pictures."""
    found: tuple[list[np.ndarray], ...] = ([], [], [])
    for episode in episodes:
        first, length = data.episodes[episode].first, data.episodes[episode].length
        for i in range(first, first + length - FIRST, EVERY):
            observation = {
                "observation/image": data.image(i, "image"),
                "observation/wrist_image": data.image(i, "wrist_image"),
                "observation/state": data.state(i).astype(np.float64),
                "prompt": data.tasks[int(data.task_index(i))],
            }
            found[0].append(data.action_chunk(i, FIRST)[0])
            found[1].append(client.infer(observation)["actions"][:FIRST])
            for key in ("observation/image", "observation/wrist_image"):
                observation[key] = np.ascontiguousarray(observation[key][::-1, ::-1])
            found[2].append(client.infer(observation)["actions"][:FIRST])
    return tuple(np.stack(each) for each in found)


@contextmanager
def served(checkpoint: Path) -> Iterator[str]:
    """The address of `harness serve` with this checkpoint, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen(harness("serve", str(checkpoint), "--port", str(port)))
    try:
        end = time.monotonic() + WAIT_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
                break
            except OSError:
                if child.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("the checkpoint is not served") from None
                time.sleep(1)
        yield f"ws://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(60)
