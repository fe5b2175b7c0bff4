"""Single frames of mp4 files, exact by timestamp."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
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
            # A little late, so that a key frame at this very time is found and not the one before it. Where decoding order
            # differs from showing order that may be too late: then a little early.
            for start_s in (time_s + 0.1 / fps, time_s - tolerance):
                container.seek(max(0, int(start_s / stream.time_base)), stream=stream, backward=True)
                nearest = _nearest(container.decode(stream), time_s, fps)
                if nearest is not None and abs(nearest.time - time_s) <= tolerance:
                    break
            if nearest is None or abs(nearest.time - time_s) > tolerance:
                raise too_short(path, time_s, None if nearest is None else nearest.time)
            # [H, W, 3]
            image: np.ndarray = self._reformatter().reformat(nearest, format="rgb24").to_ndarray()
            return image
        except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
            self._forget(path)
            raise _corrupt(path, error) from error

    def _reformatter(self) -> Any:
        """One a thread: what a frame's own would set up anew costs more than the conversion."""
        from av.video.reformatter import VideoReformatter

        if not hasattr(self._local, "reformatter"):
            self._local.reformatter = VideoReformatter()
        return self._local.reformatter

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


def _nearest(frames: Iterator[Any], time_s: float, fps: float) -> Any:
    """The frame closest to `time_s` of those up to there; None when there is none."""
    nearest = None
    for frame in frames:
        if frame.time is None:
            continue
        if nearest is None or abs(frame.time - time_s) < abs(nearest.time - time_s):
            nearest = frame
        # Tables hold times as float32: a hundredth of a frame before is this frame, and decoding another would be for nothing.
        if frame.time >= time_s - 0.01 / fps:
            break
    return nearest


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


def packet_times(path: Path) -> np.ndarray:
    """When each packet of the file is shown, in seconds and in order: float64 [N], at least one. Nothing is decoded.

    Raises: HarnessError "dataset-file-missing", "video-corrupt" or "image-too-large".
    """
    import av

    container, stream = open_video(path)
    with container:
        try:
            packets = [(packet.pts, packet.is_corrupt) for packet in container.demux(stream) if packet.pts is not None]
        except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
            raise _corrupt(path, error) from error
        # A packet whose bytes end before it does is no frame.
        whole = [pts for pts, is_corrupt in packets if not is_corrupt]
        if not whole:
            raise _corrupt(path, ValueError("it has no whole packet"))
        return np.sort(np.array(whole, np.float64) * float(stream.time_base))


def _corrupt(path: Path, error: Exception) -> HarnessError:
    return HarnessError(
        "video-corrupt", f"{path} cannot be decoded", got=str(error)[:200], need="a whole mp4", fix=f"delete {path} and download the dataset again"
    )


def too_short(path: Path, time_s: float, nearest_s: float | None, row: str = "the table") -> HarnessError:
    """The error for a row of the table that has no frame."""
    return HarnessError(
        "video-too-short",
        f"{path} has no frame at {time_s:.3f} s, where {row} needs one",
        got="no frame" if nearest_s is None else f"nearest frame at {nearest_s:.3f} s",
        need="one frame for every row",
        fix=f"delete {path} and download the dataset again",
    )
