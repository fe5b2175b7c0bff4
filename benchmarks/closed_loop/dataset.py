"""Writes a LeRobot v2.1 dataset of LIBERO's shape, an episode at a time. It is whole after each episode.

Pictures stand in the parquet files as JPEG. Nothing of torch or LeRobot is needed.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CAMERAS, QUALITY = ("image", "wrist_image"), 95
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
CHUNK = 1000


def write_episode(
    root: Path, index: int, first: int, task: int, arrays: dict[str, np.ndarray], fps: int
) -> None:
    """The file of episode `index`, whose first frame is the dataset's frame `first`.

    Arrays: image, wrist_image uint8 [T, H, W, 3]; state float32 [T, S]; actions float32 [T, A].
    """
    length = len(arrays["actions"])
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {
        name: pa.array(
            [{"bytes": _jpeg(image), "path": f"frame_{i:06d}.jpg"} for i, image in enumerate(arrays[name])],
            cell,
        )
        for name in CAMERAS
    }
    for name in ("state", "actions"):
        values = np.ascontiguousarray(arrays[name], np.float32)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    columns |= {
        "timestamp": pa.array((np.arange(length) / fps).astype(np.float32)),
        "frame_index": pa.array(range(length)),
        "episode_index": pa.array([index] * length),
        "index": pa.array(range(first, first + length)),
        "task_index": pa.array([task] * length),
    }
    table = pa.table(columns).replace_schema_metadata(
        _schema({n: arrays[n].shape[1] for n in ("state", "actions")})
    )
    path = root / DATA.format(episode_chunk=index // CHUNK, episode_index=index)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    pq.write_table(table, part, row_group_size=100)
    os.replace(part, path)


def write_meta(root: Path, lengths: list[int], prompts: list[str], tasks: list[str], fps: int) -> None:
    """The tables of a dataset whose episodes have these lengths and prompts."""
    meta = root / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    episodes = [
        {"episode_index": i, "tasks": [prompt], "length": length}
        for i, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
    ]
    _replace(meta / "episodes.jsonl", "".join(json.dumps(row) + "\n" for row in episodes))
    _replace(
        meta / "tasks.jsonl",
        "".join(json.dumps({"task_index": i, "task": task}) + "\n" for i, task in enumerate(tasks)),
    )
    camera = {"dtype": "image", "shape": [256, 256, 3], "names": ["height", "width", "channel"]}
    features: dict[str, Any] = dict.fromkeys(CAMERAS, camera) | {
        "state": {"dtype": "float32", "shape": [8], "names": ["state"]},
        "actions": {"dtype": "float32", "shape": [7], "names": ["actions"]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    features |= {
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    }
    info = {
        "codebase_version": "v2.1",
        "robot_type": "panda",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": len(tasks),
        "total_videos": 0,
        "total_chunks": -(-len(lengths) // CHUNK),
        "chunks_size": CHUNK,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": DATA,
        "video_path": None,
        "features": features,
    }
    _replace(meta / "info.json", json.dumps(info, indent=4) + "\n")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def _schema(widths: dict[str, int]) -> dict[str, str]:
    """What Hugging Face datasets, through which LeRobot reads, needs to know of the columns."""
    features: dict[str, Any] = {camera: {"_type": "Image"} for camera in CAMERAS}
    features |= {
        name: {"feature": {"dtype": "float32", "_type": "Value"}, "length": n, "_type": "Sequence"}
        for name, n in widths.items()
    }
    features["timestamp"] = {"dtype": "float32", "_type": "Value"}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "_type": "Value"}
    return {"huggingface": json.dumps({"info": {"features": features}})}
