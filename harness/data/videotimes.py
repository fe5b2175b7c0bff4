"""The causes for which a complete video has no frame for a row.

The table has other times than its rows, the video was recorded at another rate or begins late, or the
metadata give a wrong start time for the episode.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.data.lerobot import LeRobotDataset
from harness.data.mending import correct
from harness.data.metadata import Episode
from harness.data.paths import EPISODES
from harness.data.video import remuxed
from harness.errors import HarnessError
from harness.received.text import word

# 29.97 frames per second are not 30: after 8 seconds they are a quarter of a frame apart.
_SHARE = 5e-4


def nearest(there: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each of the times `wanted` the closest of the times `there`, which are sorted, at least one."""
    right = np.clip(np.searchsorted(there, wanted), 0, len(there) - 1)
    found: np.ndarray = np.where(
        np.abs(there[right] - wanted) < np.abs(there[right - 1] - wanted), there[right], there[right - 1]
    )
    return found


def lacks(there: np.ndarray, wanted: np.ndarray, fps: float) -> np.ndarray:
    """Which of the times `wanted` no frame has: one of the times `there` within a quarter of a frame."""
    lacking: np.ndarray = np.abs(nearest(there, wanted) - wanted) > 0.25 / fps
    return lacking


def check_table(dataset: LeRobotDataset, name: str, there: np.ndarray, episode: Episode) -> None:
    """Refuses timestamps that are the cause: the video has a frame for each row at frame_index / fps.

    LeRobot's writer counts each episode's timestamps so, from 0. Others write the robot's own clock.

    Raises: HarnessError "timestamps-wrong".
    """
    own = np.arange(episode.length) / dataset.fps
    if lacks(there, episode.videos[name].start_s + own, dataset.fps).any():
        return
    table = dataset.path_of(episode.file)
    said = dataset.columns.timestamp[episode.first : episode.first + episode.length]
    raise HarnessError(
        "timestamps-wrong",
        f"{table}: the timestamps of episode {episode.index} are not those of its video, which has a frame"
        " for every row",
        got=f"{said[0]:.3f} s to {said[-1]:.3f} s",
        need=f"frame_index / fps: 0 s to {own[-1]:.3f} s",
        fix=(
            f"in a copy of the dataset, write frame_index / {dataset.fps:g} into the column timestamp of"
            f" {table.name}"
        ),
    )


def check_start(dataset: LeRobotDataset, name: str, path: Path, there: np.ndarray, episode: Episode) -> None:
    """Refuses a video that begins late and has a frame for each row of the episode from there on.

    Raises: HarnessError "video-offset-wrong".
    """
    own = episode.videos[name].start_s + np.arange(episode.length) / dataset.fps
    if lacks(there, there[0] + own, dataset.fps).any():
        return
    raise HarnessError(
        "video-offset-wrong",
        f"{path} does not begin at 0 s; it has a frame for every row",
        got=f"its first frame at {there[0]:.3f} s",
        need="its first frame at 0 s, as the table's",
        fix=f"in a copy of the dataset, put a video that begins at 0 s in its place: {remuxed(path)}",
    )


def check_even(dataset: LeRobotDataset, path: Path, there: np.ndarray, rows: int) -> None:
    """Refuses a video of one frame for each of its `rows`, shown at uneven times, as telephones record.

    Raises: HarnessError "video-other-rate".
    """
    if len(there) != rows or rows < 2:
        return
    gaps = np.diff(there)
    again = f"ffmpeg -i {word(path)} -an -vf setpts=N/{dataset.fps:g}/TB {word(f'{path.stem}.new.mp4')}"
    raise HarnessError(
        "video-other-rate",
        f"{path} shows its frames at uneven times; it has one for every row",
        got=f"gaps of {gaps.min():.3f} to {gaps.max():.3f} s",
        need=f"{1 / dataset.fps:.3f} s",
        fix=f"in a copy of the dataset, put a video of an even rate in its place: {again}",
    )


def check_rate(path: Path, there: np.ndarray, wanted: np.ndarray, episode: Episode) -> None:
    """Refuses a video whose rate differs from the table's.

    `there` are the times of the video's frames, `wanted` those of the episode's rows, in seconds.

    Raises: HarnessError "video-other-rate".
    """
    video, table = _rate(there), _rate(wanted)
    if video is None or table is None or abs(video - table) <= _SHARE * table:
        return
    raise HarnessError(
        "video-other-rate",
        f"{path} was recorded at another rate than the table; both are whole",
        got=(
            f"{video:.4g} frames a second in the video ({len(there)} frames), {table:.4g} in the table"
            f" ({episode.length} rows of episode {episode.index})"
        ),
        need="one rate for both",
        fix=correct(
            path,
            f"write the table anew at {video:.4g} rows a second (fps in meta/info.json too), or record camera"
            " and robot at one rate",
        ),
    )


def _rate(times: np.ndarray) -> float | None:
    """Frames per second, from the median interval; None if there is no positive interval."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return 1 / step if step > 0 else None


def check_offsets(
    dataset: LeRobotDataset, name: str, path: Path, there: np.ndarray, episodes: list[Episode]
) -> None:
    """Refuses wrong start times of episodes in a file that has one frame for every row.

    Source: huggingface/lerobot issue 2328: a merge continued counting from the previous file's time.
    Raises: HarnessError "video-offset-wrong".
    """
    if len(there) != sum(episode.length for episode in episodes):
        return
    start = 0.0
    for episode in episodes:
        said = episode.videos[name].start_s
        if abs(said - start) > 0.25 / dataset.fps:
            where = dataset.path / EPISODES
            key = f"videos/{name}/from_timestamp"
            raise HarnessError(
                "video-offset-wrong",
                f"{where}: episode {episode.index} is listed at another time than the one that it has in"
                f" {path}; that file is whole",
                got=f"{key} {said:.3f} s, in a file of {len(there) / dataset.fps:.3f} s",
                need=f"{start:.3f} s",
                fix=correct(
                    where,
                    f"set {key} of episode {episode.index} to {start:.3f}, or merge the datasets again with a"
                    " newer LeRobot",
                ),
            )
        start += episode.length / dataset.fps
