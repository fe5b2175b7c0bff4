"""A LeRobot dataset of version 2.0, 2.1 or 3.0: numbers from its columns, images one at a time.

Frames are numbered as in LeRobot: episode after episode, from 0.

Source: huggingface/lerobot src/lerobot/datasets/lerobot_dataset.py (releases 0.3.3 and 0.4.4).
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifacts import Feature
from harness.data.encoded import EncodedColumn, encoded_bytes
from harness.data.episodes import ALL, Selection, naming
from harness.data.images import decode
from harness.data.mapping import IMAGES, Wanted, check_features
from harness.data.metadata import Episode, read_metadata
from harness.data.paths import INFO, fill, inside
from harness.data.rows import Block, read_blocks
from harness.data.video import VideoReader
from harness.errors import HarnessError
from harness.recipe.schema import Data


class LeRobotDataset:
    """A dataset opened by `open_dataset`. Thread-safe, and cheap to send to another process."""

    def __init__(self, path: Path, state: tuple[str, ...], actions: str, selection: Selection) -> None:
        self.path = path
        self._names = (state, actions)
        self._metadata = read_metadata(path, selection)
        self._firsts = [episode.first for episode in self._metadata.episodes]
        self._encoded = EncodedColumn()
        self._video = VideoReader()
        self._paths: dict[str, Path] = {}
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
        """The episodes that are read."""
        return self._metadata.episodes

    @property
    def listed(self) -> list[Episode]:
        """All episodes of the metadata, also those that are left out."""
        return self._metadata.listed

    @property
    def empty(self) -> list[Episode]:
        """The episodes that are not read because they have no frames."""
        return self._metadata.empty

    @property
    def odd(self) -> list[str]:
        """Findings on the metadata."""
        return self._metadata.odd

    @property
    def frames(self) -> int:
        """Number of frames that are read."""
        return self._metadata.frames

    @property
    def depth(self) -> frozenset[str]:
        """Names of the features that the metadata mark as depth."""
        return self._metadata.depth

    @property
    def names(self) -> dict[str, list[str]]:
        """The names of a vector's dimensions, of the features that have one for each."""
        return self._metadata.names

    @property
    def tasks(self) -> dict[int, str]:
        """The instruction of every task index."""
        return self._metadata.tasks

    def check_features(self, wanted: list[Wanted]) -> None:
        """Refuses all missing features and all features of a wrong type in one error.

        The fix is one line that maps suitable features instead.

        Raises: HarnessError "dataset-feature-missing" or "dataset-feature-invalid".
        """
        check_features(self.path, self.features, wanted)

    def blocks(self) -> Iterator[Block]:
        """The columns in the order of the frames: one file, or one part of a large file, at a time.

        No image is read.

        Raises: HarnessError "dataset-rows-mismatch", "dataset-index-invalid", "dataset-not-finite", and those
        of `read_columns`.
        """
        read = {episode.index: episode for episode in self.episodes}
        for file, listed in itertools.groupby(self.listed, key=lambda episode: episode.file):
            group = [read.get(episode.index, episode) for episode in listed]
            if any(episode.index in read for episode in group):
                yield from read_blocks(self._metadata, self._names, file, group, read)

    def state(self, i: int) -> np.ndarray:
        """State [S] float32 of frame `i`; S is 0 without a state."""
        row: np.ndarray = self.columns.state[self._frame(i)]
        return row

    def action_chunk(self, i: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Actions [H, A] float32 from frame `i` on, and a padding mask [H] bool.

        The mask is true past the episode's end. There the episode's last action repeats.
        """
        episode = self.episode_of(i)
        wanted = np.arange(i, i + horizon)
        last = episode.first + episode.length - 1
        return self.columns.actions[np.minimum(wanted, last)], wanted > last

    def task_index(self, i: int) -> int:
        return int(self.columns.task_index[self._frame(i)])

    def task(self, i: int) -> str:
        return self.tasks[self.task_index(i)]

    def image(self, i: int, feature: str) -> np.ndarray:
        """The image of frame `i`: uint8 [H, W, 3].

        Raises: HarnessError "image-corrupt", "image-too-large", "image-missing", "video-corrupt",
        "video-too-short" or "dataset-feature-missing".
        """
        if feature not in self.features or self.features[feature].dtype not in ("image", "video"):
            self.check_features([Wanted("data.cameras", feature, IMAGES)])
        episode = self.episode_of(i)
        if self.features[feature].dtype != "video":
            with self.naming([episode]):
                return decode(*self.encoded(i, feature))
        span = episode.videos[feature]
        at = span.start_s + float(self.columns.timestamp[i])
        with self.naming([episode]):
            return self._video.frame(self.path, self.path_of(span.file), at, self.fps)

    def naming(self, episodes: list[Episode]) -> AbstractContextManager[None]:
        """A context in which a broken file's error names the way to do without these episodes."""
        return naming(self._metadata.selection, [episode.index for episode in episodes], len(self.episodes))

    def encoded(self, i: int, feature: str) -> tuple[bytes, str]:
        """The encoded image as stored in the table or in a file, and its location: file and row.

        Raises: HarnessError "image-missing", "dataset-path-unsafe", "dataset-file-missing" or
        "dataset-file-corrupt".
        """
        episode = self.episode_of(i)
        row = i - episode.first
        path = self.path_of(episode.file)
        where = f"{path} row {episode.row + row}, {feature}"
        value = self._encoded.get(self.path, path, feature, episode.row + row)
        if not isinstance(value, bytes) and not (isinstance(value, dict) and value.get("bytes")):
            # Its file has the frame's own number, which differs where frames were taken out before it.
            own = self._encoded.get(self.path, path, "frame_index", episode.row + row)
            row = int(np.ravel(row if own is None else own)[0])
        at: dict[str, int | str] = {
            "episode_index": episode.index,
            "frame_index": row,
            "image_key": feature,
        }
        standard = fill(self._metadata.image, at, where=str(self.path / INFO))
        return encoded_bytes(self.path, value, standard, where), where

    def in_table(self, episode: Episode, feature: str) -> bool:
        """True if the episode's table has a column of the feature.

        Raises: HarnessError "dataset-path-unsafe", "dataset-file-missing" or "dataset-file-corrupt".
        """
        return self._encoded.has(self.path, self.path_of(episode.file), feature)

    def episode_of(self, i: int) -> Episode:
        return self.episodes[bisect_right(self._firsts, self._frame(i)) - 1]

    @property
    def columns(self) -> Block:
        """All blocks as one, kept in memory after the first use: 4 · (S + A) + 16 bytes per frame."""
        with self._lock:
            if self._columns is None:
                self._columns = self._all_blocks()
            return self._columns

    def _all_blocks(self) -> Block:
        """All blocks as one. Its arrays are filled in place, so that two copies are never in memory."""
        blocks = self.blocks()
        first = next(blocks)
        names = ("state", "actions", "timestamp", "task_index")
        try:
            whole: dict[str, Any] = {
                name: np.empty((self.frames, *getattr(first, name).shape[1:]), getattr(first, name).dtype)
                for name in names
            }
        except (MemoryError, ValueError) as error:
            need = "numbers that fit into memory"
            fix = "correct the lengths of the episodes in meta/, or use a machine with more memory"
            raise HarnessError(
                "dataset-too-large",
                f"{self.path} claims {self.frames:,} frames",
                got=str(error),
                need=need,
                fix=fix,
            ) from error
        at = 0
        for block in itertools.chain([first], blocks):
            for name, values in whole.items():
                values[at : at + len(block.state)] = getattr(block, name)
            at += len(block.state)
        return Block(self.episodes, **whole)

    def path_of(self, file: str) -> Path:
        """The path of `file` inside the dataset.

        Each file is checked once, because following links costs more than reading a small image.

        Raises: HarnessError "dataset-path-unsafe".
        """
        if file not in self._paths:
            self._paths[file] = inside(self.path, file)
        return self._paths[file]

    def _frame(self, i: int) -> int:
        if not 0 <= i < self.frames:
            raise IndexError(f"frame {i} of {self.frames}")
        return i

    def share_memory_with(self, processes: int) -> None:
        """Divides the memory for encoded images among the `processes` that read this dataset."""
        self._encoded.processes = max(1, processes)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "names": self._names,
            "selection": self._metadata.selection,
            "processes": self._encoded.processes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], *state["names"], state["selection"])  # type: ignore[misc]
        self.share_memory_with(state["processes"])


def open_data(data: Data, path: Path | str) -> LeRobotDataset:
    """The dataset in `path` with the features and episodes that a recipe's `data` names.

    Raises: HarnessError as `open_dataset`.
    """
    selection = Selection(data.episodes, f"{data.key}.episodes")
    return open_dataset(path, state=data.state, actions=data.actions, selection=selection)


def open_dataset(
    path: Path | str,
    *,
    state: str | Sequence[str] | None = "state",
    actions: str = "actions",
    selection: Selection = ALL,
) -> LeRobotDataset:
    """The dataset in `path`. Only its metadata are read here; columns and images are read on demand.

    `state` names the feature of the state, several that are put one after the other, or none.

    Raises: HarnessError, see `read_metadata`.
    """
    features = () if state is None else (state,) if isinstance(state, str) else tuple(state)
    return LeRobotDataset(Path(path), features, actions, selection)
