"""Writes a LeRobot v2.1 dataset of LIBERO's shape, of any size, the same bytes every time.

    python benchmarks/data_make.py DIR [--episodes 200] [--images parquet|video] [--codec libsvtav1]

Two cameras of 256 × 256, state of 8, actions of 7, 10 frames a second. The pictures are the sample dataset's
real frames, some of them mirrored, so that they compress as real ones do. As LeRobot's writer stores them:
PNG in snappy parquet with 100 rows a row group, or one mp4 an episode and camera with a key frame every
second frame. Episodes have 60 to 100 frames; a real LIBERO episode has 160. Episodes of one length share
their pictures, so that writing takes seconds; a reader cannot tell.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from harness.data.lerobot import open_dataset
from harness.data.sample import sample_dataset_path

CAMERAS = ("image", "wrist_image")
LENGTHS = (60, 100, 80, 70, 90)
FPS, STATE, ACTIONS = 10, 8, 7
# datasets' and LeRobot's own: parquet of images has this many rows a row group.
ROW_GROUP = 100
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def pictures(camera: str) -> list[np.ndarray]:
    """The sample's frames of one camera, 100 of uint8 [256, 256, 3]; every other one mirrored, so that
    neighbours differ.
    """
    data = open_dataset(sample_dataset_path())
    frames = [data.image(i, camera) for i in range(data.frames)]
    return [frame if i % 2 else np.ascontiguousarray(frame[:, ::-1]) for i, frame in enumerate(frames)]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def encode(path: Path, frames: list[np.ndarray], codec: str) -> None:
    """An mp4 with LeRobot's own settings: yuv420p, a key frame every second frame, crf 30."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec,
            rate=FPS,
            options={"g": "2", "crf": "30"} | ({"preset": "10"} if codec == "libsvtav1" else {}),
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def feature(dtype: str, shape: list[int]) -> dict[str, object]:
    return {
        "dtype": dtype,
        "shape": shape,
        "names": ["height", "width", "channel"] if len(shape) == 3 else None,
    }


def huggingface_schema(images: str) -> dict[str, str]:
    """What LeRobot's reader (through datasets) needs to know that a column holds pictures."""
    value = {
        name: {"dtype": "int64", "_type": "Value"}
        for name in ("frame_index", "episode_index", "index", "task_index")
    }
    value["timestamp"] = {"dtype": "float32", "_type": "Value"}
    vectors = {
        name: {"feature": {"dtype": "float32", "_type": "Value"}, "length": n, "_type": "Sequence"}
        for name, n in (("state", STATE), ("actions", ACTIONS))
    }
    cameras = {camera: {"_type": "Image"} for camera in CAMERAS} if images == "parquet" else {}
    return {"huggingface": json.dumps({"info": {"features": cameras | vectors | value}})}


def table(
    episode: int, first: int, length: int, encoded: dict[str, list[bytes]], tasks: int, images: str
) -> pa.Table:
    random = np.random.default_rng(episode)
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        name: pa.array(
            [{"bytes": b, "path": f"frame_{n:06d}.png"} for n, b in enumerate(cells[:length])], cell
        )
        for name, cells in encoded.items()
    }
    # Smooth paths, as a robot's are.
    for name, width in (("state", STATE), ("actions", ACTIONS)):
        values = np.cumsum(random.normal(scale=0.05, size=(length, width)), axis=0).astype(np.float32)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
    columns |= {
        "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
        "frame_index": pa.array(range(length)),
        "episode_index": pa.array([episode] * length),
        "index": pa.array(range(first, first + length)),
        "task_index": pa.array([episode % tasks] * length),
    }
    return pa.table(columns).replace_schema_metadata(huggingface_schema(images))


def write(root: Path, episodes: int, images: str, codec: str) -> int:
    """The number of frames written to `root`."""
    tasks = list(open_dataset(sample_dataset_path()).tasks.values())
    lengths = [LENGTHS[episode % len(LENGTHS)] for episode in range(episodes)]
    encoded: dict[str, list[bytes]] = {}
    clips: dict[tuple[str, int], Path] = {}
    (root / "meta").mkdir(parents=True)
    for camera in CAMERAS:
        if images == "parquet":
            encoded[camera] = [png(picture) for picture in pictures(camera)]
        else:
            frames = pictures(camera)
            for length in sorted(set(lengths)):
                clips[camera, length] = root / VIDEO.format(
                    episode_chunk=0, episode_index=lengths.index(length), video_key=camera
                )
                encode(clips[camera, length], frames[:length], codec)
    first = 0
    for episode, length in enumerate(lengths):
        path = root / DATA.format(episode_chunk=episode // 1000, episode_index=episode)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table(episode, first, length, encoded, len(tasks), images), path, row_group_size=ROW_GROUP
        )
        first += length
        for (camera, of_length), clip in clips.items():
            place = root / VIDEO.format(
                episode_chunk=episode // 1000, episode_index=episode, video_key=camera
            )
            if of_length == length and place != clip:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(clip, place)
    metadata(root, lengths, tasks, images)
    return first


def metadata(root: Path, lengths: list[int], tasks: list[str], images: str) -> None:
    camera = feature("image" if images == "parquet" else "video", [256, 256, 3])
    features = dict.fromkeys(CAMERAS, camera) | {
        "state": feature("float32", [STATE]),
        "actions": feature("float32", [ACTIONS]),
    }
    features |= {"timestamp": feature("float32", [1])} | {
        n: feature("int64", [1]) for n in ("frame_index", "episode_index", "index", "task_index")
    }
    info = {
        "codebase_version": "v2.1",
        "robot_type": "panda",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": len(tasks),
        "total_videos": 0 if images == "parquet" else len(CAMERAS) * len(lengths),
        "total_chunks": -(-len(lengths) // 1000),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": DATA,
        "video_path": VIDEO if images == "video" else None,
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info, indent=2))
    # LeRobot's reader wants statistics of every episode to be there; it does not look at them when frames are
    # read.
    one = {"min": [0.0], "max": [1.0], "mean": [0.5], "std": [0.5]}
    rows = {
        "tasks": [{"task_index": n, "task": task} for n, task in enumerate(tasks)],
        "episodes": [
            {"episode_index": e, "tasks": [tasks[e % len(tasks)]], "length": length}
            for e, length in enumerate(lengths)
        ],
        "episodes_stats": [
            {"episode_index": e, "stats": {"timestamp": one | {"count": [length]}}}
            for e, length in enumerate(lengths)
        ],
    }
    for name, lines in rows.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--images", choices=("parquet", "video"), default="parquet")
    parser.add_argument("--codec", choices=("libsvtav1", "libx264"), default="libsvtav1")
    options = parser.parse_args()
    if options.directory.exists():
        parser.error(f"{options.directory} exists already; name a new directory")
    frames = write(options.directory, options.episodes, options.images, options.codec)
    print(
        f"{options.directory}: {options.episodes} episodes, {frames} frames, LeRobot v2.1, images in"
        f" {options.images}"
    )


if __name__ == "__main__":
    main()
