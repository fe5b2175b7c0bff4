"""Checks that every image and every video of the cameras is complete. Decodes nothing.

- The files of every episode are there.
- PNG: the claimed size, the chunks and their checksums.
- Other images: the header and the end.
- mp4: one packet for every row of the table, each with all of its bytes.
"""

from __future__ import annotations

import glob
import itertools
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.data.columns import open_parquet, rows_mismatch
from harness.data.images import check_image
from harness.data.lerobot import LeRobotDataset
from harness.data.mending import correct, missing
from harness.data.metadata import Episode
from harness.data.paths import EPISODES, INFO
from harness.data.video import packet_times, too_short, turn_of
from harness.data.videotimes import (
    check_even,
    check_offsets,
    check_rate,
    check_start,
    check_table,
    lacks,
    nearest,
)
from harness.errors import HarnessError

_THREADS = 4
# Videos of a camera of which a frame is decoded.
_LOOKED_AT = 16
# Frames that a recorder may leave after an episode's last row: so many, or one in so many rows.
_LEFT, _LEFT_SHARE = 2, 20
Size = tuple[int, int]


def check_files_there(dataset: LeRobotDataset, names: Iterable[str]) -> None:
    """Refuses a dataset that lacks tables, or videos of the features `names`; names all of their episodes.

    Whoever downloads some episodes of a dataset has the metadata of all.

    Raises: HarnessError "dataset-file-missing", "dataset-feature-invalid", "dataset-rows-mismatch" or
    "dataset-path-unsafe".
    """
    for name in sorted(names):
        _check_kind(dataset, name)
    videos = [name for name in sorted(names) if dataset.features[name].dtype == "video"]
    for name in videos:
        _check_listed(dataset, name)
    files: dict[str, list[Episode]] = {}
    for episode in dataset.episodes:
        for file in [episode.file, *(episode.videos[name].file for name in videos)]:
            files.setdefault(file, []).append(episode)
    _check_empty(dataset)
    lacking = [file for file in files if not _is_there(dataset.path_of(file))]
    if lacking:
        more = f", and {len(lacking) - 1:,} more of {len(files):,} files" if len(lacking) > 1 else ""
        of_them = {episode.index: episode for file in lacking for episode in files[file]}
        with dataset.naming(list(of_them.values())):
            first = dataset.path_of(lacking[0])
            raise missing(first, f"the dataset lacks {first}{more}")


def _check_listed(dataset: LeRobotDataset, name: str) -> None:
    """Refuses episodes of which the metadata list no part of a video of the camera `name`.

    Raises: HarnessError "dataset-file-missing".
    """
    without = [episode for episode in dataset.episodes if name not in episode.videos]
    if without:
        with dataset.naming(without):
            raise HarnessError(
                "dataset-file-missing",
                f"{dataset.path / EPISODES}: episode {without[0].index} has no video of {name}, which is"
                " mapped to a camera",
                got=f"{len(without):,} of {len(dataset.episodes):,} episodes without one",
                need=f"videos/{name}/chunk_index, /file_index and /from_timestamp",
                fix="map another camera (data.cameras)",
            )


def _check_empty(dataset: LeRobotDataset) -> None:
    """Refuses a table with rows whose episode the metadata list without frames.

    Of version 3 its reader finds such rows.

    Raises: HarnessError "dataset-rows-mismatch", and those of `open_parquet`.
    """
    for episode in dataset.empty if dataset.version != "v3.0" else []:
        path = dataset.path_of(episode.file)
        if _is_there(path):
            with dataset.naming([episode]), open_parquet(dataset.path, path) as (table, _):
                if table.metadata.num_rows:
                    raise rows_mismatch(path, table.metadata.num_rows, 0)


def _check_kind(dataset: LeRobotDataset, name: str) -> None:
    """Refuses a video that is declared an image, and the reverse. Else its files would be told as missing.

    Raises: HarnessError "dataset-feature-invalid".
    """
    dtype, first = dataset.features[name].dtype, dataset.episodes[0]
    table = dataset.path_of(first.file)
    try:
        if ".." in name or (dtype == "image") == dataset.in_table(first, name):
            return
    except HarnessError:
        # Its reader tells what is wrong, and which episodes lie in it.
        return
    usual = (f"videos/*/{glob.escape(name)}/*.mp4", f"videos/{glob.escape(name)}/*/*.mp4")
    film = next(itertools.chain.from_iterable(map(dataset.path.glob, usual)), None)
    # Pictures may lie beside a table that does not name them.
    if (film is None) == (dtype == "image") or (film and _is_there(dataset.path / "images" / name)):
        return
    is_, found = ("image", f"pictures in {table}") if film is None else ("video", film)
    raise HarnessError(
        "dataset-feature-invalid",
        f"{dataset.path / INFO} declares {name} as {dtype}, and the dataset has it as {is_}",
        got=found,
        need=f'"dtype": "{is_}"',
        fix=correct(dataset.path / INFO, f'in a copy of the dataset, set its dtype to "{is_}" there'),
    )


def _is_there(path: Path) -> bool:
    """False if there is no such file. What else is wrong with it is told by whoever opens it."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass
    return True


def check_cameras(dataset: LeRobotDataset, names: Iterable[str]) -> list[str]:
    """Findings on the features `names`: images whose sizes differ from the metadata, videos of which two
    episodes show the same frames.

    Raises an error if an image or a video is not complete.

    Raises: HarnessError "image-corrupt", "image-too-large", "image-missing", "video-corrupt" or
    "video-too-short", with file and row; "dataset-file-missing", "dataset-file-corrupt" and
    "dataset-path-unsafe".
    """
    findings = []
    for name in sorted(names):
        if dataset.features[name].dtype == "video":
            findings += _check_videos(dataset, name)
        else:
            findings += _other_sizes(dataset, name, _check_images(dataset, name))
        # Decodes one image: an unsupported codec is better found now than in training.
        dataset.image(0, name)
    return findings


def _check_images(dataset: LeRobotDataset, name: str) -> Counter[Size]:
    """Number of images of each (height, width)."""

    def episode_sizes(episode: Episode) -> Counter[Size]:
        frames = range(episode.first, episode.first + episode.length)
        with dataset.naming([episode]):
            return Counter(check_image(*dataset.encoded(i, name)) for i in frames)

    with ThreadPoolExecutor(_THREADS) as pool:
        return sum(pool.map(episode_sizes, dataset.episodes), Counter[Size]())


def _other_sizes(dataset: LeRobotDataset, name: str, sizes: Counter[Size]) -> list[str]:
    shape = dataset.features[name].shape
    # Some writers put the channels first in the metadata; the images have no such order.
    declared = {tuple(shape[:2]), tuple(shape[1:])}
    others = {size: count for size, count in sizes.items() if size not in declared}
    if not others or not shape:
        return []
    (height, width), most = max(others.items(), key=lambda item: item[1])
    return [
        f"{name}: {sum(others.values())} of {sizes.total()} images are not of the metadata's shape {shape};"
        f" {most} are {height} × {width}"
    ]


def _check_videos(dataset: LeRobotDataset, name: str) -> list[str]:
    """Findings on files of which two episodes show the same frames, or that go on after an episode's rows."""
    files: dict[str, list[Episode]] = {}
    for episode in dataset.episodes:
        files.setdefault(episode.videos[name].file, []).append(episode)
    starts: dict[str, list[float]] = {}
    for episode in dataset.listed:
        if name in episode.videos:
            starts.setdefault(episode.videos[name].file, []).append(episode.videos[name].start_s)
    timestamps = dataset.columns.timestamp
    with ThreadPoolExecutor(_THREADS) as pool:
        shown = list(
            pool.map(
                lambda file: _check_video(dataset, name, files[file], timestamps, sorted(starts[file])), files
            )
        )
    both = [f"{one} and {other} in {file}" for file, pairs, _ in shown for one, other in pairs]
    findings = _turned(dataset, name, list(files)) + _longer(
        name, [each for *_, rest in shown for each in rest]
    )
    if both:
        more = f", and {len(both) - 1:,} more pairs" if len(both) > 1 else ""
        findings.append(
            f"{name}: episodes {both[0]}{more} show the same frames of a video; a start time in meta/ or"
            " the timestamps of the tables are wrong, unless it was meant so"
        )
    return findings


def _longer(name: str, rests: list[tuple[int, int]]) -> list[str]:
    """A finding on videos with frames after the last row of their episode: (frames, episode) of each."""
    if not rests:
        return []
    frames, episode = max(rests)
    videos = "the video of one episode goes"
    if len(rests) > 1:
        videos = f"the videos of {len(rests):,} episodes go"
    return [
        f"{name}: {videos} on after the last row, that of episode {episode} for {frames:,}"
        " frames; if rows were taken out before it and numbered anew, those after them show earlier pictures"
    ]


def _turned(dataset: LeRobotDataset, name: str, files: list[str]) -> list[str]:
    """A finding on videos that players turn, of some that are looked at.

    Source: meta-pytorch/torchcodec pull request 1173, which turns them from 0.11 on.
    """
    for file in files[:: -(-len(files) // _LOOKED_AT)]:
        turn = turn_of(dataset.path, dataset.path_of(file))
        if turn:
            return [
                f"{name}: players turn the pictures of {file} by {turn}° (its display matrix); they are read"
                " as they are stored, as PyAV and torchcodec before 0.11 give them to LeRobot; ffmpeg -i IN"
                " OUT writes them turned"
            ]
    return []


class _Shown(NamedTuple):
    """Of a video: the pairs of episodes that show the same frames, and frames after the last row of episodes.

    `rests` has (frames, episode) where there are more than a recorder leaves.
    """

    file: str
    pairs: list[tuple[int, int]]
    rests: list[tuple[int, int]]


def _check_video(
    dataset: LeRobotDataset, name: str, episodes: list[Episode], timestamps: np.ndarray, starts: list[float]
) -> _Shown:
    """What the rows of `episodes`, all of one file, show of it. `starts` are those of all its episodes.

    Raises: HarnessError for the first row that has no packet at its time. The code is "video-too-short", or
    that of the cause: "timestamps-wrong", "video-other-rate" or "video-offset-wrong".
    """
    file, half = episodes[0].videos[name].file, 0.5 / dataset.fps
    path = dataset.path_of(file)
    with dataset.naming(episodes):
        there = packet_times(dataset.path, path)
    spans, rests = [], []
    for episode in episodes:
        wanted = episode.videos[name].start_s + timestamps[episode.first : episode.first + episode.length]
        lacking = lacks(there, wanted, dataset.fps)
        if lacking.any():
            row = int(np.argmax(lacking))
            table = f"{dataset.path_of(episode.file)} row {episode.row + row}"
            listed = [one for one in dataset.listed if name in one.videos and one.videos[name].file == file]
            with dataset.naming([episode]):
                check_table(dataset, name, there, episode)
                check_rate(path, there, wanted, episode)
                check_offsets(dataset, name, path, there, listed)
                check_start(dataset, name, path, there, episode)
                check_even(dataset, path, there, sum(one.length for one in listed))
                at, closest = float(wanted[row]), float(nearest(there, wanted)[row])
                raise too_short(path, at, closest, table, _end_alone(there, listed, lacking))
        first, last = float(wanted.min()), float(wanted.max())
        spans.append((first, last, episode.index))
        until = next(iter(starts[bisect_right(starts, first + half) :]), np.inf)
        rest = int(np.searchsorted(there, until - half) - np.searchsorted(there, last + half, side="right"))
        if rest > max(_LEFT, episode.length // _LEFT_SHARE):
            rests.append((rest, episode.index))
    spans.sort()
    pairs = [
        (one, other) for (_, end, one), (start, _, other) in itertools.pairwise(spans) if start < end + half
    ]
    return _Shown(file, pairs, rests)


def _end_alone(there: np.ndarray, episodes: list[Episode], lacking: np.ndarray) -> int | None:
    """Number of frames missing at the end of the file, if nothing else is wrong; else None.

    Nothing else is wrong if only the last rows of the episode lack frames and the file's other frames are all
    there.
    """
    count = int(lacking.sum())
    return (
        count
        if lacking[-count:].all()
        and count < len(lacking)
        and len(there) == sum(e.length for e in episodes) - count
        else None
    )
