"""Made recordings of three robots, and a writer of them as LeRobot v2.1 datasets.

The numbers are smooth, as a robot's are. The same call makes the same frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.lerobot_writer import png

LENGTHS = (34, 13, 5)
_ARM = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]


@dataclass(frozen=True)
class Made:
    """A recording: uint8 [N, H, W, 3] of each camera, float32 [N, D] of each vector, and episodes' tasks."""

    fps: int
    cameras: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]
    tasks: list[str]
    lengths: tuple[int, ...] = LENGTHS
    names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """A hash of all numbers and pixels."""
        digest = hashlib.sha256()
        for value in (*self.cameras.values(), *self.vectors.values()):
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def chunk(self, i: int, horizon: int, feature: str) -> np.ndarray:
        """The rows [horizon, D] of a vector from frame `i` on; the episode's last one repeats."""
        ends = np.cumsum(self.lengths)
        last = ends[np.searchsorted(ends, i, side="right")] - 1
        return self.vectors[feature][np.minimum(np.arange(i, i + horizon), last)]

    def episodes(self) -> Iterator[tuple[int, int, int]]:
        """Number, first frame and length of each episode."""
        first = 0
        for number, length in enumerate(self.lengths):
            yield number, first, length
            first += length

    def task_of(self, i: int) -> str:
        return self.tasks[int(np.searchsorted(np.cumsum(self.lengths), i, side="right"))]


def libero() -> Made:
    """One arm whose actions are differences: 8 numbers of state, 7 of actions, two cameras."""
    random = np.random.default_rng(1)
    frames = sum(LENGTHS)
    actions = np.clip(random.normal(scale=0.4, size=(frames, 7)), -1, 1)
    actions[:, 6] = np.where(np.arange(frames) % 17 < 9, -1, 1)
    return Made(
        fps=10,
        cameras={name: _pictures(random, frames, (64, 64)) for name in ("image", "wrist_image")},
        vectors={"state": _path(random, frames, 8), "actions": actions.astype(np.float32)},
        tasks=["put the bowl on the stove", "open_the drawer\nand close it ", "turn on the stove"],
    )


def aloha() -> Made:
    """Two arms of six joints and a gripper, joint targets, 50 frames a second, four cameras."""
    random = np.random.default_rng(2)
    frames = sum(LENGTHS)
    state = _path(random, frames, 14)
    state[:, [6, 13]] = 0.5 + 0.5 * np.sin(np.arange(frames)[:, None] / 4 + np.array([0, 2]))
    targets = np.vstack([state[1:], state[-1:]]) + random.normal(scale=0.01, size=state.shape)
    names = [f"{side}_{joint}" for side in ("left", "right") for joint in _ARM]
    views = ("cam_high", "cam_left_wrist", "cam_right_wrist", "top")
    return Made(
        fps=50,
        cameras={f"observation.images.{view}": _pictures(random, frames, (48, 64)) for view in views},
        vectors={
            "observation.state": state.astype(np.float32),
            "action": targets.astype(np.float32),
        },
        tasks=["uncap the pen", "uncap the pen", "uncap the pen"],
        names={"observation.state": names, "action": names},
    )


def so100(lengths: tuple[int, ...] = (240, 180, 300, 210)) -> Made:
    """One arm of five joints and a gripper, joint targets in degrees, 30 frames a second, two cameras.

    Each episode reaches, closes the gripper, and comes back.
    """
    random = np.random.default_rng(4)
    parts, frames = [], sum(lengths)
    for length in lengths:
        phase = np.linspace(0, np.pi, length)[:, None]
        reach = np.sin(phase) * (np.array([40, -50, 60, 25, 15]) + random.normal(scale=6, size=5))
        joints = np.array([0, -90, 80, 60, 0]) + reach
        closed = 30 - 28 / (1 + np.exp(-20 * (phase / np.pi - 0.5)))
        parts.append(np.hstack([joints, closed]))
    state = np.vstack(parts) + random.normal(scale=0.15, size=(frames, 6))
    # The leader arm is three frames ahead, and its gripper goes past the object.
    ends = np.repeat(np.cumsum(lengths) - 1, lengths)
    targets = np.vstack(parts)[np.minimum(np.arange(frames) + 3, ends)]
    targets[:, 5] -= 2
    joints = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    names = [f"{joint}.pos" for joint in joints]
    views = ("observation.images.front", "observation.images.wrist")
    return Made(
        fps=30,
        cameras={view: _pictures(random, frames, (48, 64)) for view in views},
        vectors={"observation.state": state.astype(np.float32), "action": targets.astype(np.float32)},
        tasks=["put the cube into the box", "put the cube into the box", "take the cube out", "put it back"][
            : len(lengths)
        ],
        lengths=lengths,
        names={"observation.state": names, "action": names},
    )


def droid(*, positions: bool) -> Made:
    """One arm of seven joints and a gripper, whose actions are joint positions or velocities; 15 a second."""
    random = np.random.default_rng(3)
    frames = sum(LENGTHS)
    joints = _path(random, frames, 7)
    gripper = (0.5 + 0.5 * np.sin(np.arange(frames) / 5))[:, None]
    ahead = np.vstack([joints[1:], joints[-1:]])
    actions = np.hstack([ahead if positions else 15 * (ahead - joints), np.round(gripper)])
    views = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
    return Made(
        fps=15,
        cameras={view: _pictures(random, frames, (36, 64)) for view in views},
        vectors={
            "joint_position": joints.astype(np.float32),
            "gripper_position": gripper.astype(np.float32),
            "actions": actions.astype(np.float32),
        },
        tasks=["put the marker in the cup", "close the drawer", "Fold_the towel"],
    )


def _path(random: np.random.Generator, frames: int, width: int) -> np.ndarray:
    """A smooth path [frames, width] of some tenths, in float32."""
    steps = random.normal(scale=0.05, size=(frames, width))
    offsets = random.uniform(-0.8, 0.8, size=width)
    path: np.ndarray = (np.cumsum(steps, axis=0) + offsets).astype(np.float32)
    return path


def _pictures(random: np.random.Generator, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Pictures uint8 [frames, H, W, 3] of four by four coloured fields, others in each frame."""
    fields = random.integers(0, 256, size=(frames, 4, 4, 3), dtype=np.uint8)
    return fields.repeat(size[0] // 4, axis=1).repeat(size[1] // 4, axis=2)


def write(root: Path, made: Made) -> Path:
    """The dataset's directory, LeRobot v2.1 with PNG pictures in parquet."""
    for name in ("data/chunk-000", "meta"):
        (root / name).mkdir(parents=True, exist_ok=True)
    texts = list(dict.fromkeys(made.tasks))
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number, first, length in made.episodes():
        rows = slice(first, first + length)
        columns: dict[str, pa.Array] = {
            name: pa.array(
                [{"bytes": png(image), "path": f"frame_{n:06d}.png"} for n, image in enumerate(images[rows])],
                cell,
            )
            for name, images in made.cameras.items()
        }
        for name, values in made.vectors.items():
            flat = pa.array(values[rows].reshape(-1))
            # LeRobot stores a vector of one number as a number.
            width = values.shape[1]
            columns[name] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
        columns |= {
            "timestamp": pa.array((np.arange(length) / made.fps).astype(np.float32)),
            "frame_index": pa.array(range(length)),
            "episode_index": pa.array([number] * length),
            "index": pa.array(range(first, first + length)),
            "task_index": pa.array([texts.index(made.tasks[number])] * length),
        }
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{number:06d}.parquet")
    _meta(root, made, texts)
    return root


def _meta(root: Path, made: Made, texts: list[str]) -> None:
    features: dict[str, dict[str, object]] = {
        name: {"dtype": "image", "shape": list(images.shape[1:]), "names": ["height", "width", "channel"]}
        for name, images in made.cameras.items()
    }
    features |= {
        name: {"dtype": "float32", "shape": [values.shape[1]], "names": made.names.get(name)}
        for name, values in made.vectors.items()
    }
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    features |= {
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    }
    info = {
        "codebase_version": "v2.1",
        "total_episodes": len(made.lengths),
        "total_frames": sum(made.lengths),
        "total_tasks": len(texts),
        "chunks_size": 1000,
        "fps": made.fps,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(
        "".join(json.dumps({"task_index": n, "task": text}) + "\n" for n, text in enumerate(texts))
    )
    rows = [
        {"episode_index": number, "tasks": [made.tasks[number]], "length": length}
        for number, _, length in made.episodes()
    ]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
