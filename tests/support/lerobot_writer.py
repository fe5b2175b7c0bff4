"""Writes small LeRobot datasets of every supported form.

This writer is independent of the reader that it tests.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

STATE, ACTIONS, SIZE, FPS = 3, 2, (48, 64), 10
TASKS = ["put the bowl on the stove", "open the drawer"]


def frame(i: int) -> np.ndarray:
    """The picture of global frame i: a grey level that tells i, and an orientation (red left, blue right).
    uint8 [48, 64, 3].
    """
    image = np.full((*SIZE, 3), 20 + 8 * (i % 28), np.uint8)
    image[:12, :16] = (250, 10, 10)
    image[:12, 48:] = (10, 10, 250)
    return image


def numbers(frames: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    return generator.normal(size=(frames, STATE)).astype(np.float32), generator.normal(
        size=(frames, ACTIONS)
    ).astype(np.float32)


def write(
    root: Path,
    *,
    version: str = "v2.1",
    lengths: tuple[int, ...] = (7, 5, 4),
    images: str = "parquet",
    codec: str = "libx264",
) -> Path:
    """A dataset with one camera `cam`.

    `images`: "parquet", "files" (no column), "paths" (a column of paths) or "video".
    """
    frames = sum(lengths)
    state, actions = numbers(frames)
    firsts = np.cumsum((0, *lengths[:-1]))
    tables = []
    for episode, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        rows = range(first, first + length)
        columns = {
            "observation.state": pa.FixedSizeListArray.from_arrays(
                pa.array(state[first : first + length].reshape(-1)), STATE
            ),
            # v2.0 files hold lists of no fixed length, and doubles.
            "action": (
                pa.array(actions[first : first + length].astype(np.float64).tolist())
                if version == "v2.0"
                else pa.FixedSizeListArray.from_arrays(
                    pa.array(actions[first : first + length].reshape(-1)), ACTIONS
                )
            ),
            "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
            "frame_index": pa.array(range(length)),
            "episode_index": pa.array([episode] * length),
            "index": pa.array(rows),
            "task_index": pa.array([episode % len(TASKS)] * length),
        }
        cells = _images(root, version, images, episode, list(rows))
        tables.append(pa.table(({"cam": cells} if cells is not None else {}) | columns))
    if version == "v3.0":
        _write_v3(root, tables, lengths, firsts, images)
    else:
        _write_v2(root, version, tables, lengths, images)
    if images == "video":
        _videos(root, version, lengths, firsts, codec)
    return root


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _images(root: Path, version: str, images: str, episode: int, rows: list[int]) -> pa.Array | None:
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if images == "parquet":
        return pa.array(
            [{"bytes": png(frame(i)), "path": f"frame_{n:06d}.png"} for n, i in enumerate(rows)], type=cell
        )
    if images == "video":
        return None
    dash = "-" if version == "v3.0" else "_"
    names = [f"images/cam/episode{dash}{episode:06d}/frame{dash}{n:06d}.png" for n in range(len(rows))]
    for name, i in zip(names, rows, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(frame(i)))
    return (
        None
        if images == "files"
        else pa.array([{"bytes": None, "path": f"/home/somebody/set/{name}"} for name in names], type=cell)
    )


def _info(
    root: Path, version: str, lengths: tuple[int, ...], images: str, data_path: str, video_path: str
) -> None:
    number = {"dtype": "int64", "shape": [1], "names": None}
    features = {
        "cam": {
            "dtype": "video" if images == "video" else "image",
            "shape": [*SIZE, 3],
            "names": ["height", "width", "channel"],
        },
        "observation.state": {"dtype": "float32", "shape": [STATE], "names": None},
        "action": {"dtype": "float32", "shape": [ACTIONS], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    } | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), number)
    info = {
        "codebase_version": version,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": FPS,
        "data_path": data_path,
        "video_path": video_path if images == "video" else None,
        "features": features,
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))


def _write_v2(
    root: Path, version: str, tables: list[pa.Table], lengths: tuple[int, ...], images: str
) -> None:
    for name in ("data/chunk-000", "meta"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for episode, table in enumerate(tables):
        pq.write_table(table, root / f"data/chunk-000/episode_{episode:06d}.parquet")
    (root / "meta/tasks.jsonl").write_text(
        "".join(json.dumps({"task_index": i, "task": task}) + "\n" for i, task in enumerate(TASKS))
    )
    rows = [
        {"episode_index": e, "tasks": [TASKS[e % 2]], "length": length} for e, length in enumerate(lengths)
    ]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    _info(
        root,
        version,
        lengths,
        images,
        data,
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )


def _write_v3(
    root: Path, tables: list[pa.Table], lengths: tuple[int, ...], firsts: np.ndarray, images: str
) -> None:
    """The last episode lies in a file of its own, the others share one, with a row group each."""
    for name in ("data/chunk-000", "meta/episodes/chunk-000"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for file, group in ((0, tables[:-1]), (1, tables[-1:])):
        if group:
            with pq.ParquetWriter(
                root / f"data/chunk-000/file-{file:03d}.parquet", group[0].schema
            ) as writer:
                for table in group:
                    writer.write_table(table)
    last = len(lengths) - 1
    episodes = {
        "episode_index": list(range(len(lengths))),
        "length": list(lengths),
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [int(e == last) for e in range(len(lengths))],
        "dataset_from_index": [int(f) for f in firsts],
        "videos/cam/chunk_index": [0] * len(lengths),
        "videos/cam/file_index": [0] * len(lengths),
        "videos/cam/from_timestamp": [float(f) / FPS for f in firsts],
        "stats/action/min": [[0.0]] * len(lengths),
    }
    pq.write_table(pa.table(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(
        pa.table({"task_index": range(len(TASKS)), "__index_level_0__": TASKS}), root / "meta/tasks.parquet"
    )
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    _info(
        root,
        "v3.0",
        lengths,
        images,
        data,
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )


def _videos(root: Path, version: str, lengths: tuple[int, ...], firsts: np.ndarray, codec: str) -> None:
    if version == "v3.0":
        encode(root / "videos/cam/chunk-000/file-000.mp4", range(sum(lengths)), codec)
    else:
        for episode, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
            encode(
                root / f"videos/chunk-000/cam/episode_{episode:06d}.mp4", range(first, first + length), codec
            )


def encode(path: Path, frames: range, codec: str, options: dict[str, str] | None = None) -> None:
    """An mp4 with one key frame at its start, so that every other frame needs its predecessors.

    `options` are the encoder's, in place of those.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = options or {"g": "40", "crf": "10"} | (
            {"preset": "10", "svtav1-params": "logical-processors=1"} if codec == "libsvtav1" else {}
        )
        for i in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(i), format="rgb24")))
        container.mux(stream.encode(None))
