"""A LeRobot dataset of version 2.0, 2.1 or 3.0: numbers from its columns, images one at a time.

Frames are numbered as LeRobot numbers them: episode after episode, from 0.

Source: huggingface/lerobot src/lerobot/datasets/lerobot_dataset.py (releases 0.3.3 and 0.4.4).
"""

from __future__ import annotations

import difflib
import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifacts import Feature
from harness.data.columns import read_columns
from harness.data.images import EncodedColumn, decode, encoded_bytes
from harness.data.metadata import Episode, read_metadata
from harness.data.paths import inside
from harness.data.video import VideoReader
from harness.errors import HarnessError

_BOOKKEEPING = ["timestamp", "frame_index", "episode_index", "index", "task_index"]


@dataclass(frozen=True)
class Block:
    """Consecutive whole episodes, from the columns of one file, checked.

    Shapes: state [N, S] and actions [N, A] float32; timestamp [N] float64; task_index [N] int64.
    """

    episodes: list[Episode]
    state: np.ndarray
    actions: np.ndarray
    timestamp: np.ndarray
    task_index: np.ndarray


class LeRobotDataset:
    """Made by `open_dataset`. Safe to use from several threads, and cheap to send to another process."""

    def __init__(self, path: Path, state: str, actions: str) -> None:
        self.path = path
        self._names = (state, actions)
        self._metadata = read_metadata(path)
        self._firsts = [episode.first for episode in self._metadata.episodes]
        self._encoded = EncodedColumn()
        self._video = VideoReader()
        self._places: dict[str, Path] = {}
        self._columns: Block | None = None
        self._lock = threading.Lock()

    @property
    def version(self) -> str:
        return self._metadata.version

    @property
    def fps(self) -> float:
        return self._metadata.fps

    @property
    def features(self) -> dict[str, Feature]:
        return self._metadata.features

    @property
    def episodes(self) -> list[Episode]:
        return self._metadata.episodes

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return self._metadata.frames

    @property
    def tasks(self) -> dict[int, str]:
        """The instruction of every task index."""
        return self._metadata.tasks

    def feature(self, name: str, kinds: tuple[str, ...], key: str) -> Feature:
        """The feature `name`, whose dtype starts with one of `kinds`.

        Raises: HarnessError "dataset-feature-missing" with the nearest names, or "dataset-feature-invalid".
        """
        fitting = [other for other, feature in self.features.items() if feature.dtype.startswith(kinds) and other not in _BOOKKEEPING]
        if name not in self.features:
            nearest = difflib.get_close_matches(name, fitting, n=3, cutoff=0.3)
            raise HarnessError(
                "dataset-feature-missing",
                f"the dataset {self.path} has no feature {name!r}",
                got=", ".join(fitting) or "no feature of that kind",
                need=name,
                fix=f"--set {key}={(nearest or fitting or ['FEATURE'])[0]}",
            )
        if name not in fitting:
            feature = self.features[name]
            raise HarnessError(
                "dataset-feature-invalid",
                f"feature {name!r} cannot be {key}",
                got=f"{feature.dtype} {feature.shape}",
                need=" or ".join(kinds),
                fix=f"--set {key}={(fitting or ['FEATURE'])[0]}",
            )
        return self.features[name]

    def blocks(self) -> Iterator[Block]:
        """The columns, file by file in the order of the frames. No image is read.

        Raises: HarnessError "dataset-rows-mismatch", "dataset-index-invalid", "dataset-not-finite", and those of `read_columns`.
        """
        for file, group in itertools.groupby(self.episodes, key=lambda episode: episode.file):
            yield self._block(file, list(group))

    def state(self, i: int) -> np.ndarray:
        """[S] float32."""
        row: np.ndarray = self.columns.state[self._frame(i)]
        return row

    def action_chunk(self, i: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Actions [H, A] float32 from frame i on, and [H] bool: past the episode's end, where its last action repeats."""
        episode = self.episode_of(i)
        wanted = np.arange(i, i + horizon)
        last = episode.first + episode.length - 1
        return self.columns.actions[np.minimum(wanted, last)], wanted > last

    def task_index(self, i: int) -> int:
        return int(self.columns.task_index[self._frame(i)])

    def task(self, i: int) -> str:
        return self.tasks[self.task_index(i)]

    def image(self, i: int, feature: str) -> np.ndarray:
        """uint8 [H, W, 3].

        Raises: HarnessError "image-corrupt", "image-too-large", "image-missing", "video-corrupt", "video-too-short" or "dataset-feature-missing".
        """
        if feature not in self.features or self.features[feature].dtype not in ("image", "video"):
            self.feature(feature, ("image", "video"), "data.cameras")
        episode = self.episode_of(i)
        row = i - episode.first
        if self.features[feature].dtype == "video":
            span = episode.videos[feature]
            return self._video.frame(self._place(span.file), span.start_s + float(self.columns.timestamp[i]), self.fps)
        path = self._place(episode.file)
        where = f"{path} row {episode.row + row}, {feature}"
        dash = "-" if self.version == "v3.0" else "_"
        standard = f"images/{feature}/episode{dash}{episode.index:06d}/frame{dash}{row:06d}.png"
        value = self._encoded.get(path, feature, episode.row + row)
        return decode(encoded_bytes(self.path, value, standard, where), where)

    def episode_of(self, i: int) -> Episode:
        return self.episodes[bisect_right(self._firsts, self._frame(i)) - 1]

    @property
    def columns(self) -> Block:
        """All blocks as one, kept in memory after the first use: 4 · (S + A) + 16 bytes a frame."""
        with self._lock:
            if self._columns is None:
                blocks = list(self.blocks())
                joined = [np.concatenate([getattr(b, name) for b in blocks]) for name in ("state", "actions", "timestamp", "task_index")]
                self._columns = Block(self.episodes, *joined)
            return self._columns

    def _place(self, file: str) -> Path:
        """Checked once: following links costs more than a small image."""
        if file not in self._places:
            self._places[file] = inside(self.path, file)
        return self._places[file]

    def _frame(self, i: int) -> int:
        if not 0 <= i < self.frames:
            raise IndexError(f"frame {i} of {self.frames}")
        return i

    def _block(self, file: str, episodes: list[Episode]) -> Block:
        path = inside(self.path, file)
        numbers = read_columns(path, [*self._names, *_BOOKKEEPING])
        rows = episodes[-1].row + episodes[-1].length
        found = len(numbers["index"])
        if found != rows or episodes[0].row != 0:
            raise self._rows_mismatch(path, found, rows)
        self._check_bookkeeping(path, episodes, numbers)
        state, actions = (self._vectors(path, name, numbers[name]) for name in self._names)
        return Block(episodes, state, actions, numbers["timestamp"].astype(np.float64), numbers["task_index"].astype(np.int64))

    def _rows_mismatch(self, path: Path, found: int, rows: int) -> HarnessError:
        fix = f"delete {path} and download the dataset again: table and metadata are of different states"
        return HarnessError("dataset-rows-mismatch", f"{path} has other rows than the metadata says", got=found, need=rows, fix=fix)

    def _check_bookkeeping(self, path: Path, episodes: list[Episode], numbers: dict[str, np.ndarray]) -> None:
        first = episodes[0].first
        expected = {
            "index": np.arange(first, first + len(numbers["index"])),
            "episode_index": np.repeat([e.index for e in episodes], [e.length for e in episodes]),
            "frame_index": np.concatenate([np.arange(e.length) for e in episodes]),
        }
        for name, want in expected.items():
            got = numbers[name].reshape(-1)
            wrong = got != want if got.shape == want.shape else np.ones(1, bool)
            if wrong.any():
                row = int(np.argmax(wrong))
                raise _bad_index(path, row, name, got[row] if row < len(got) else None, want[row])
        timestamp = numbers["timestamp"]
        if timestamp.shape != (len(numbers["index"]),) or not np.isfinite(timestamp).all():
            raise _bad_index(path, int(np.argmin(np.isfinite(timestamp))) if timestamp.ndim == 1 else 0, "timestamp", "not a finite number", "seconds")
        unknown = ~np.isin(numbers["task_index"], list(self.tasks))
        if unknown.any():
            row = int(np.argmax(unknown.reshape(-1)))
            raise _bad_index(path, row, "task_index", numbers["task_index"].reshape(-1)[row], f"one of the {len(self.tasks)} tasks of meta/")

    def _vectors(self, path: Path, name: str, values: np.ndarray) -> np.ndarray:
        shape = self.features[name].shape if name in self.features else []
        # [N, D]; a feature of one number a row is a vector of length 1.
        values = values.reshape(len(values), -1)
        if [values.shape[1]] != shape:
            raise HarnessError(
                "dataset-feature-invalid",
                f"{path}: feature {name!r} differs from meta/info.json",
                got=[values.shape[1]],
                need=shape,
                fix="download the dataset again, or correct the feature's shape in meta/info.json",
            )
        with np.errstate(over="ignore"):
            vectors = values.astype(np.float32)
        bad = ~np.isfinite(vectors)
        if bad.any():
            row, dimension = (int(n) for n in np.argwhere(bad)[0])
            raise HarnessError(
                "dataset-not-finite",
                f"{path} row {row}: {name}[{dimension}] is not a finite number",
                got=values[row, dimension],
                need="finite numbers",
                fix="repair that row, or leave its episode out of the dataset",
            )
        return vectors

    def share_memory_with(self, processes: int) -> None:
        """So many processes read this dataset: each keeps its part of what one would keep."""
        self._encoded.processes = max(1, processes)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "names": self._names, "processes": self._encoded.processes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], *state["names"])  # type: ignore[misc]
        self.share_memory_with(state["processes"])


def open_dataset(path: Path | str, *, state: str = "state", actions: str = "actions") -> LeRobotDataset:
    """The dataset in `path`. Only its metadata is read here; columns and images when they are asked for.

    Raises: HarnessError, see `read_metadata`.
    """
    return LeRobotDataset(Path(path), state, actions)


def _bad_index(path: Path, row: int, name: str, got: object, need: object) -> HarnessError:
    fix = f"delete {path} and download the dataset again, or rewrite it with LeRobot's own writer"
    return HarnessError("dataset-index-invalid", f"{path} row {row}: {name} is not what its place says", got=got, need=need, fix=fix)
