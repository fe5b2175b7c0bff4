"""Single frames of mp4 files, exact by timestamp."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.images import MAX_PIXELS, too_large
from harness.errors import HarnessError

# Open files a thread keeps. Each holds a decoder of a few MiB.
_OPEN_FILES = 16


class VideoReader:
    """Frames by time. Every thread has its own decoders: a container has one position."""

    def __init__(self) -> None:
        self._local = threading.local()

    def frame(self, path: Path, time_s: float, fps: float) -> np.ndarray:
        """The frame shown at `time_s`: uint8 [H, W, 3]. Its own time is within a quarter of a frame of that.

        Raises: HarnessError "dataset-file-missing", "video-corrupt", "video-too-short" or "image-too-large".
        """
        import av

        tolerance = 0.25 / fps
        try:
            container, stream = self._open(path)
            # A little early, so that rounding to the stream's time base cannot skip the key frame at this very time.
            start = max(0, int((time_s - tolerance) / stream.time_base))
            container.seek(start, stream=stream, backward=True)
            nearest = None
            for frame in container.decode(stream):
                if frame.time is None:
                    continue
                if nearest is None or abs(frame.time - time_s) < abs(nearest.time - time_s):
                    nearest = frame
                if frame.time >= time_s:
                    break
            if nearest is None or abs(nearest.time - time_s) > tolerance:
                raise _too_short(path, time_s, None if nearest is None else nearest.time)
            # [H, W, 3]
            image: np.ndarray = nearest.to_ndarray(format="rgb24")
            return image
        except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
            self._forget(path)
            raise _corrupt(path, error) from error

    def _open(self, path: Path) -> tuple[Any, Any]:
        files: OrderedDict[Path, tuple[Any, Any]] | None = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = OrderedDict()
        if path in files:
            files.move_to_end(path)
            return files[path]
        opened = open_video(path)
        files[path] = opened
        while len(files) > _OPEN_FILES:
            files.popitem(last=False)[1][0].close()
        return opened

    def _forget(self, path: Path) -> None:
        found = getattr(self._local, "files", {}).pop(path, None)
        if found is not None:
            found[0].close()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._local = threading.local()


def open_video(path: Path) -> tuple[Any, Any]:
    """An open container and its video stream.

    Raises: HarnessError "dataset-file-missing", "video-corrupt" or "image-too-large".
    """
    import av

    if not path.is_file():
        raise HarnessError(
            "dataset-file-missing", f"the dataset lacks {path}", got="no such file", fix="download the dataset again, with its videos/ directory"
        )
    try:
        container = av.open(str(path), format="mp4")
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError("no decoder for its codec")
        width, height = stream.codec_context.width, stream.codec_context.height
        if stream.time_base is None or width * height == 0:
            raise ValueError("no picture size or time base")
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise _corrupt(path, error) from error
    if width * height > MAX_PIXELS:
        container.close()
        raise too_large(str(path), width, height)
    # The loader has threads of its own; more in each decoder only delay the first frame after a seek.
    stream.codec_context.thread_count = 1
    return container, stream


def check_length(path: Path, end_s: float, fps: float) -> None:
    """Raises HarnessError "video-too-short" when the container's tables say that frames end before `end_s`."""
    container, stream = open_video(path)
    with container:
        if stream.duration is None:
            return
        found = float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    # Half a frame of tolerance: some writers give the last frame no duration of its own.
    if found < end_s - 1.5 / fps:
        raise _too_short(path, end_s - 1 / fps, found - 1 / fps)


def _corrupt(path: Path, error: Exception) -> HarnessError:
    return HarnessError(
        "video-corrupt", f"{path} cannot be decoded", got=str(error)[:200], need="a whole mp4", fix=f"delete {path} and download the dataset again"
    )


def _too_short(path: Path, time_s: float, last_s: float | None) -> HarnessError:
    return HarnessError(
        "video-too-short",
        f"{path} has no frame at {time_s:.3f} s, where the table has a row",
        got="no frame" if last_s is None else f"nearest frame at {last_s:.3f} s",
        need="one frame for every row",
        fix=f"delete {path} and download the dataset again",
    )
