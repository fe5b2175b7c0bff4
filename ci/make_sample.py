"""Cuts the dataset and trains the tokenizer that ship inside the package.

    python ci/make_sample.py SOURCE [--out harness/data]

SOURCE is a LeRobot v2.x dataset of LIBERO with videos. The same source gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece
from PIL import Image

from harness.data.lerobot import LeRobotDataset, open_dataset

# (episode, first row, rows): one clip a task, each around the moment when the gripper closes (0, 4, 8) or
# opens (2, 11).
CLIPS = ((0, 24, 20), (2, 88, 20), (4, 29, 20), (8, 36, 20), (11, 103, 20))
CAMERAS = ("image", "wrist_image")
JPEG_QUALITY = 85
VOCABULARY = 512

# The instructions of LIBERO's four suites (spatial, object, goal, 10). Source:
# Lifelong-Robot-Learning/LIBERO, libero/libero/benchmark/libero_suite_task_map.py.
_SPATIAL = (
    "between the plate and the ramekin", "next to the ramekin", "from table center", "on the cookie box",
    "in the top drawer of the wooden cabinet",
    "on the ramekin", "next to the cookie box", "on the stove", "next to the plate", "on the wooden cabinet",
)  # fmt: skip
_OBJECT = (
    "alphabet soup", "cream cheese", "salad dressing", "bbq sauce", "ketchup", "tomato sauce", "butter",
    "milk", "chocolate pudding", "orange juice",
)  # fmt: skip
_GOAL_AND_10 = (
    "open the middle drawer of the cabinet",
    "put the bowl on the stove",
    "put the wine bottle on top of the cabinet",
    "open the top drawer and put the bowl inside",
    "put the bowl on top of the cabinet",
    "push the plate to the front of the stove",
    "put the cream cheese in the bowl",
    "turn on the stove",
    "put the bowl on the plate",
    "put the wine bottle on the rack",
    "put both the alphabet soup and the tomato sauce in the basket",
    "put both the cream cheese box and the butter in the basket",
    "turn on the stove and put the moka pot on it",
    "put the black bowl in the bottom drawer of the cabinet and close it",
    "put the white mug on the left plate and put the yellow and white mug on the right plate",
    "pick up the book and place it in the back compartment of the caddy",
    "put the white mug on the plate and put the chocolate pudding to the right of the plate",
    "put both the alphabet soup and the cream cheese box in the basket",
    "put both moka pots on the stove",
    "put the yellow and white mug in the microwave and close it",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "harness" / "data")
    arguments = parser.parse_args()
    cut_dataset(arguments.source, arguments.out / "sample_dataset")
    train_tokenizer(arguments.out / "sample_tokenizer.model")


def cut_dataset(source: Path, out: Path) -> None:
    """Writes the clips of `source` to `out`, which is replaced."""
    dataset = open_dataset(source)
    shutil.rmtree(out, ignore_errors=True)
    (out / "data" / "chunk-000").mkdir(parents=True)
    (out / "meta").mkdir()
    tasks: list[str] = []
    episodes, statistics, total = [], [], 0
    for index, (episode, first, length) in enumerate(CLIPS):
        start = dataset.episodes[episode].first + first
        if first + length > dataset.episodes[episode].length:
            raise SystemExit(f"episode {episode} of {source} has no rows {first} to {first + length}")
        task = dataset.task(start)
        tasks += [task] if task not in tasks else []
        columns, images = _columns(dataset, start, length, episode=index, first=total, task=tasks.index(task))
        pq.write_table(
            _table(columns),
            out / "data" / "chunk-000" / f"episode_{index:06d}.parquet",
            compression="zstd",
            use_dictionary=False,
        )
        episodes.append({"episode_index": index, "tasks": [task], "length": length})
        statistics.append({"episode_index": index, "stats": _statistics(columns, images)})
        total += length
    _lines(out / "meta" / "episodes.jsonl", episodes)
    _lines(out / "meta" / "episodes_stats.jsonl", statistics)
    _lines(out / "meta" / "tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(tasks)])
    (out / "meta" / "info.json").write_text(
        json.dumps(_info(dataset, len(CLIPS), total, len(tasks)), indent=4) + "\n"
    )
    (out / "README.md").write_text(_readme(dataset, episodes))


def _columns(
    dataset: LeRobotDataset, start: int, length: int, *, episode: int, first: int, task: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    frames = range(start, start + length)
    images = {name: np.stack([dataset.image(i, name) for i in frames]) for name in CAMERAS}
    columns: dict[str, Any] = {
        name: [
            {"bytes": _jpeg(image), "path": f"frame_{row:06d}.jpg"} for row, image in enumerate(images[name])
        ]
        for name in CAMERAS
    }
    columns |= {
        "state": np.stack([dataset.state(i) for i in frames]),
        "actions": np.stack([dataset.action_chunk(i, 1)[0][0] for i in frames]),
        "timestamp": (np.arange(length) / dataset.fps).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": np.arange(first, first + length),
        "task_index": np.full(length, task),
    }
    return columns, images


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def _table(columns: dict[str, Any]) -> pa.Table:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays, features = {}, {}
    for name, values in columns.items():
        if name in CAMERAS:
            arrays[name] = pa.array(values, type=image)
            features[name] = {"_type": "Image"}
        elif values.ndim == 2:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
            features[name] = {
                "feature": {"dtype": "float32", "_type": "Value"},
                "length": values.shape[1],
                "_type": "Sequence",
            }
        else:
            arrays[name] = pa.array(values)
            features[name] = {"dtype": str(values.dtype), "_type": "Value"}
    # LeRobot opens the files with Hugging Face datasets, which learns from this that `image` holds images.
    return pa.table(arrays).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def _statistics(columns: dict[str, Any], images: dict[str, np.ndarray]) -> dict[str, Any]:
    found = {}
    for name, values in columns.items():
        if name in CAMERAS:
            # One value a channel, of the range [0, 1], in the shape [3, 1, 1].
            pixels = images[name].reshape(-1, 3).astype(np.float64) / 255
            found[name] = {
                key: getattr(pixels, key)(axis=0).reshape(3, 1, 1).tolist()
                for key in ("min", "max", "mean", "std")
            }
        else:
            numbers = values.reshape(len(values), -1).astype(np.float64)
            found[name] = {
                key: getattr(numbers, key)(axis=0).tolist() for key in ("min", "max", "mean", "std")
            }
        found[name]["count"] = [len(values)]
    return found


def _info(dataset: LeRobotDataset, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    camera = {"dtype": "image", "shape": [256, 256, 3], "names": ["height", "width", "channel"]}
    vectors = {
        name: {"dtype": "float32", "shape": dataset.features[name].shape, "names": [name]}
        for name in ("state", "actions")
    }
    numbers: dict[str, Any] = {"timestamp": {"dtype": "float32", "shape": [1], "names": None}}
    numbers |= {
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    }
    return {
        "codebase_version": "v2.1",
        "robot_type": "panda",
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "total_videos": 0,
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": int(dataset.fps),
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": dict.fromkeys(CAMERAS, camera) | vectors | numbers,
    }


def _readme(dataset: LeRobotDataset, episodes: list[dict[str, Any]]) -> str:
    rows = [
        f"| {index} | {source} | {first} to {first + length - 1} | {episodes[index]['tasks'][0]} |"
        for index, (source, first, length) in enumerate(CLIPS)
    ]
    return f"""# Sample dataset

{sum(length for _, _, length in CLIPS)} frames of the LIBERO benchmark's own simulator (MuJoCo 3.3.7, robosuite 1.4.0, LIBERO at 8f1084e).
LeRobot v2.1, images in parquet. Camera images, states, actions and instructions are real outputs of the simulator. The actions come from a scripted
pick-and-place policy that reads object poses, in episodes that the benchmark counted as successes: they are not LIBERO's
human demonstrations, and this is not the published `physical-intelligence/libero` set.

| episode | source episode | source frames | instruction |
| --- | --- | --- | --- |
{chr(10).join(rows)}

Each clip is contiguous, {dataset.fps:g} frames a second, with one action a frame. Images went through AV1 video, then JPEG
at quality {JPEG_QUALITY}; both cameras are rotated by 180 degrees, as openpi's LIBERO client does.
Made by `ci/make_sample.py`. LIBERO is MIT licensed (https://github.com/Lifelong-Robot-Learning/LIBERO).
"""  # noqa: E501


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_tokenizer(out: Path) -> None:
    """Writes a byte-fallback BPE model with PaliGemma's special tokens in PaliGemma's order."""
    sentences = [f"pick up the black bowl {where} and place it on the plate" for where in _SPATIAL]
    sentences += [f"pick up the {what} and place it in the basket" for what in _OBJECT]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences, *_GOAL_AND_10]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        hard_vocab_limit=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=["\n"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        num_threads=1,
        minloglevel=2,
    )
    out.write_bytes(model.getvalue())


if __name__ == "__main__":
    main()
