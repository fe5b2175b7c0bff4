"""Videos of episodes, from the pictures that the policy was asked with: both cameras side by side.

A video is made in memory and written as a whole, so that no full disk leaves a part of one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.artifacts.episodes import Key, Outcome
from harness.errors import HarnessError
from harness.received.text import one_line
from harness.run.directory import write_atomic

VIDEOS = "videos"
Kept = Literal["failures", "all", "none"]
KEPT: tuple[Kept, ...] = ("failures", "all", "none")
# The last picture is shown for this many times as long as the others.
_LAST = 4


class Video:
    """The video of one episode. `fps` are the queries in a second of the robot's time."""

    def __init__(self, fps: Fraction) -> None:
        self._fps = fps
        self._file = io.BytesIO()
        self._container: Any = None
        self._stream: Any = None
        self._frames = 0
        self._last: np.ndarray | None = None
        self._failed: Exception | None = None

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds the pictures of a query, uint8 [height, width, 3] each.

        An encoder that fails costs the video, of which `write` then tells, and not the episode.
        """
        if self._failed is not None:
            return
        try:
            picture = np.concatenate([arrays["image"], arrays["wrist_image"]], axis=1)
            self._encode(picture)
        except Exception as error:
            self._failed = error
            return
        self._last = picture

    def write(self, directory: Path, key: Key, outcome: Outcome) -> Path | None:
        """Writes `directory`/videos/NAME.mp4; None without any picture.

        Raises: HarnessError "video-not-encoded", "disk-full", "not-writable"; UnsafeFile.
        """
        if self._failed is None and self._last is None:
            return None
        try:
            if self._failed is not None:
                raise self._failed
            assert self._last is not None
            for _ in range(_LAST):
                self._encode(self._last)
            self._container.mux(self._stream.encode())
            self._container.close()
        except Exception as error:
            raise HarnessError(
                "video-not-encoded",
                "the encoder of videos failed",
                got=one_line(f"{type(error).__name__}: {error}")[:300],
                need="PyAV with the encoder libx264",
                fix="--videos none, if none are needed; or the environment of the lock: ci/local evaluate",
            ) from error
        path = directory / VIDEOS / name_of(key, outcome)
        write_atomic(path, self._file.getvalue(), root=directory)
        return path

    def _encode(self, picture: np.ndarray) -> None:
        import av

        if self._container is None:
            self._container = av.open(self._file, "w", format="mp4")
            self._stream = self._container.add_stream("libx264", rate=self._fps)
            self._stream.height, self._stream.width = (side - side % 2 for side in picture.shape[:2])
            self._stream.pix_fmt = "yuv420p"
            # One thread: as many workers as cores are at work beside it.
            self._stream.options = {"preset": "veryfast", "crf": "23", "threads": "1"}
        whole = np.ascontiguousarray(picture[: self._stream.height, : self._stream.width])
        frame = av.VideoFrame.from_ndarray(whole, format="rgb24")
        frame.pts = self._frames
        self._frames += 1
        self._container.mux(self._stream.encode(frame))


def name_of(key: Key, outcome: Outcome) -> str:
    """The name of an episode's video: no two episodes have one."""
    again = f"_repeat{key.repeat}" if key.repeat else ""
    return f"{key.suite}_task{key.task:02}_episode{key.episode:02}{again}_{outcome}.mp4"


def wanted(kept: Kept, outcome: Outcome) -> bool:
    """Whether the video of an episode with this outcome is kept."""
    return kept == "all" or (kept == "failures" and outcome != "success")
