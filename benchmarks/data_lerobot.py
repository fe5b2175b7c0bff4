"""The other side of data_loader.py and data_stats.py: LeRobot's reader behind torch, as openpi uses it.

Needs only its environment.

    PYTHON data_lerobot.py loader|stats DIR [--seconds 20] [--resize] [--backend pyav|torchcodec]

PYTHON is of an environment with lerobot 0.3.3. Prints one line of JSON. `loader` shuffles and counts samples
a second, after the first batches. `stats` goes through the frames in order, as openpi's statistics do, and
gives each batch to running sums and histograms.
Source: openpi src/openpi/training/data_loader.py, src/openpi/policies/libero_policy.py,
scripts/compute_norm_stats.py, src/openpi/shared/normalize.py, commit 15a9616.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image

HORIZON, BATCH, WORKERS, SIZE, BINS = 10, 32, 2, 224, 5000
CAMERAS = ("image", "wrist_image")


class AsOpenpi(torch.utils.data.Dataset):
    """LeRobot's item, images back as uint8 [H, W, 3] and, for training, resized as the model needs them."""

    def __init__(self, inner: LeRobotDataset, resize: bool) -> None:
        self.inner, self.resize = inner, resize

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        item = self.inner[i]
        images = {}
        for camera in CAMERAS:
            image = np.ascontiguousarray((255 * item[camera].numpy()).astype(np.uint8).transpose(1, 2, 0))
            images[camera] = (
                np.asarray(Image.fromarray(image).resize((SIZE, SIZE), resample=Image.BILINEAR))
                if self.resize
                else image
            )
        return images | {"state": item["state"].numpy(), "actions": item["actions"].numpy()}


class Running:
    """Sums and a histogram of fixed bins for each dimension; the range is widened as values come."""

    def __init__(self) -> None:
        self.count, self.edges = 0, None

    def update(self, batch: np.ndarray) -> None:
        values = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
        if self.edges is None:
            self.mean, self.squares = values.mean(axis=0), (values**2).mean(axis=0)
            self.low, self.high = values.min(axis=0), values.max(axis=0)
            self.edges = [
                np.linspace(a - 1e-10, b + 1e-10, BINS + 1) for a, b in zip(self.low, self.high, strict=True)
            ]
            self.counts = [np.zeros(BINS) for _ in self.edges]
        low, high = np.minimum(self.low, values.min(axis=0)), np.maximum(self.high, values.max(axis=0))
        if (low < self.low).any() or (high > self.high).any():
            for d, edges in enumerate(self.edges):
                wider = np.linspace(low[d], high[d], BINS + 1)
                self.counts[d], _ = np.histogram(edges[:-1], bins=wider, weights=self.counts[d])
                self.edges[d] = wider
            self.low, self.high = low, high
        self.count += len(values)
        self.mean += (values.mean(axis=0) - self.mean) * (len(values) / self.count)
        self.squares += ((values**2).mean(axis=0) - self.squares) * (len(values) / self.count)
        for d, edges in enumerate(self.edges):
            self.counts[d] += np.histogram(values[:, d], bins=edges)[0]


def cpu_seconds() -> float:
    """Processor time of this process and of its workers so far."""
    total = 0.0
    for pid in ["self", *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def identity(items: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.stack([item[key] for item in items]) for key in items[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("loader", "stats"))
    parser.add_argument("directory")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--resize", action="store_true")
    parser.add_argument("--backend", choices=("pyav", "torchcodec"), default=None)
    options = parser.parse_args()
    start = time.perf_counter()
    inner = LeRobotDataset(
        "local/data",
        root=options.directory,
        delta_timestamps={"actions": [t / 10 for t in range(HORIZON)]},
        video_backend=options.backend,
    )
    opened_s = time.perf_counter() - start
    plain = options.what == "loader" and not options.resize
    loader = torch.utils.data.DataLoader(
        inner if plain else AsOpenpi(inner, options.resize),
        batch_size=BATCH,
        shuffle=options.what == "loader",
        num_workers=WORKERS,
        multiprocessing_context="spawn",
        persistent_workers=True,
        drop_last=True,
        collate_fn=None if plain else identity,
        generator=torch.Generator().manual_seed(0),
    )
    running = {key: Running() for key in ("state", "actions")}
    frames, begun, cpu = 0, 0.0, 0.0
    batches = iter(loader)
    for n, batch in enumerate(batches):
        if options.what == "stats":
            for key, one in running.items():
                one.update(np.asarray(batch[key]))
        # The first batches wait for the workers to start and fill the queue.
        if n == 2 * WORKERS - 1:
            begun, cpu = time.perf_counter(), cpu_seconds()
        elif n >= 2 * WORKERS:
            frames += BATCH
            if time.perf_counter() - begun >= options.seconds:
                break
    found = {"frames": frames, "seconds": time.perf_counter() - begun, "cpu_s": cpu_seconds() - cpu}
    print(
        json.dumps(found | {"opened_s": opened_s, "total": len(inner), "backend": inner.video_backend}),
        flush=True,
    )
    # They hold batches that nobody will take, and would wait with them.
    for worker in batches._workers:
        worker.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
