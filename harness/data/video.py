"""Single frames of mp4 files, selected exactly by timestamp."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.images import MAX_PIXELS, begins_as, too_deep, too_large
from harness.data.mending import another_copy, correct, damaged, hub_of
from harness.data.mp4 import check_claims
from harness.data.paths import open_file
from harness.errors import HarnessError
from harness.received.text import word

# Open files per thread. Each holds a decoder of a few MiB.
_OPEN_FILES = 16
# What other containers begin with, from a byte on. They are named, not opened.
_OTHERS = (
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (8, b"AVI ", "AVI"),
    (0, b"OggS", "Ogg"),
    (0, b"FLV", "FLV"),
)
# Source: FFmpeg libavcodec/options_table.h `max_pixels`.
_PIXELS = {"max_pixels": str(MAX_PIXELS)}


class VideoReader:
    """Frames by time. Every thread has its own decoders, because a container has one position."""

    def __init__(self) -> None:
        self._local = threading.local()

    def frame(self, root: Path, path: Path, time_s: float, fps: float) -> np.ndarray:
        """The frame shown at `time_s`: uint8 [H, W, 3].

        The frame's own time is within a quarter of a frame of `time_s`.

        Raises: HarnessError as `open_video`; "video-too-short".
        """
        import av

        tolerance = 0.25 / fps
        try:
            container, stream = self._open(root, path)
            for start_s in _starts(time_s, fps):
                container.seek(max(0, int(start_s / stream.time_base)), stream=stream, backward=True)
                first, nearest = _nearest(container.decode(stream), time_s, fps)
                found = nearest is not None and abs(nearest.time - time_s) <= tolerance
                # Decoded from before this time on, a frame that is there has been seen.
                if found or (start_s < time_s and first is not None and first.time <= time_s):
                    break
            if not found:
                raise too_short(path, time_s, None if nearest is None else nearest.time)
            # [H, W, 3]
            image: np.ndarray = self._reformatter().reformat(nearest, format="rgb24").to_ndarray()
            return image
        except (av.FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
            self._forget(path)
            raise _corrupt(path, error) from error

    def _reformatter(self) -> Any:
        """This thread's reformatter. Setting up one per frame would cost more than the conversion."""
        from av.video.reformatter import VideoReformatter

        if not hasattr(self._local, "reformatter"):
            self._local.reformatter = VideoReformatter()
        return self._local.reformatter

    def _open(self, root: Path, path: Path) -> tuple[Any, Any]:
        files: OrderedDict[Path, tuple[Any, Any]] | None = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = OrderedDict()
        if path in files:
            files.move_to_end(path)
            return files[path]
        opened = open_video(root, path)
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


def _starts(time_s: float, fps: float) -> Iterator[float]:
    """Times to seek to for the frame at `time_s`, the likeliest first.

    First a little late, so that a key frame at this very time is found and not the one before. If decoding
    order differs from display order, that may be too late, so then a little early. Frames that are shown
    before their key frame need the previous one (an open group of pictures, which x265 makes by default): so
    then ever earlier.
    """
    yield time_s + 0.1 / fps
    back = 0.25 / fps
    yield time_s - back
    while back < time_s:
        back *= 4
        yield time_s - back


def _nearest(frames: Iterator[Any], time_s: float, fps: float) -> tuple[Any, Any]:
    """The first frame and the one closest to `time_s`, decoding no further than needed.

    Both are None if there is no frame.
    """
    first = nearest = None
    for frame in frames:
        if frame.time is None:
            continue
        first = frame if first is None else first
        if nearest is None or abs(frame.time - time_s) < abs(nearest.time - time_s):
            nearest = frame
        # Tables hold times as float32. A frame up to a hundredth of a frame early is the one wanted, so no
        # further frame is decoded.
        if frame.time >= time_s - 0.01 / fps:
            break
    return first, nearest


def open_video(root: Path, path: Path) -> tuple[Any, Any]:
    """An open container of the dataset in `root`, and its video stream.

    It is read as an mp4. Other files that it names are not opened.

    Raises: HarnessError "dataset-file-missing", "video-corrupt", "git-lfs-pointer", "image-too-large",
    "image-too-deep", and those of `open_file`.
    """
    import av

    with open_file(root, path) as file:
        _check_container(path, os.pread(file.fileno(), 16, 0))
        try:
            check_claims(file)
            # FFmpeg gets a copy of the descriptor that was checked. Source: FFmpeg doc/protocols.texi `fd`,
            # libavformat/mov.c `mov_options`.
            own = {
                "fd": str(file.fileno()),
                "protocol_whitelist": "fd",
                "enable_drefs": "0",
                "use_absolute_path": "0",
            }
            # The container may declare another size than its pictures have.
            container = av.open("fd:", format="mp4", options=own | _PIXELS)
        except (av.FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
            raise _corrupt(path, error) from error
    try:
        return container, _stream(container, path)
    except BaseException as error:
        container.close()
        if isinstance(error, (av.FFmpegError, ValueError, ArithmeticError, MemoryError)):
            raise _corrupt(path, error) from error
        raise


def _check_container(path: Path, head: bytes) -> None:
    """Refuses a file that begins as another container than mp4, whatever its name says."""
    other = begins_as(head, _OTHERS)
    if other is not None:
        raise HarnessError(
            "video-corrupt",
            f"{path} is no mp4",
            got=other,
            need="an mp4",
            fix=f"in a copy of the dataset, put an mp4 in its place: {remuxed(path)}",
        )


def remuxed(path: Path) -> str:
    """The command that writes a video's pictures into a new mp4 as they are, from 0 s on."""
    return f"ffmpeg -i {word(path)} -map 0:v:0 -c copy {word(f'{path.stem}.new.mp4')}"


def _stream(container: Any, path: Path) -> Any:
    """The container's first video stream, ready to be decoded.

    Raises: HarnessError "image-too-large" or "image-too-deep"; ValueError.
    """
    if not container.streams.video:
        raise ValueError("no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise ValueError("no decoder for its codec")
    if not stream.time_base or context.width * context.height == 0:
        raise ValueError("no picture size or time base")
    if context.width * context.height > MAX_PIXELS:
        raise too_large(str(path), context.width, context.height)
    if (
        context.format is not None
        and len(context.format.components) == 1
        and context.format.components[0].bits > 8
    ):
        raise too_deep(str(path))
    # The loader has its own threads. More threads in each decoder only delay the first frame after a seek.
    context.thread_count = 1
    context.options = _PIXELS
    return stream


def packet_times(root: Path, path: Path) -> np.ndarray:
    """Display times of the file's packets, in seconds, sorted: float64 [N], at least one.

    Nothing is decoded.

    Raises: HarnessError as `open_video`.
    """
    import av

    container, stream = open_video(root, path)
    with container:
        try:
            packets = [
                (packet.pts, packet.is_corrupt)
                for packet in container.demux(stream)
                # An edit list, as cutting without encoding leaves it, hides packets: no frame comes of them.
                if packet.pts is not None and not packet.is_discard
            ]
        except (av.FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
            raise _corrupt(path, error) from error
        # A truncated packet is not a frame.
        whole = [pts for pts, is_corrupt in packets if not is_corrupt]
        if not whole:
            raise _corrupt(path, ValueError("it has no whole packet"))
        return np.sort(np.array(whole, np.float64) * float(stream.time_base))


def turn_of(root: Path, path: Path) -> int:
    """Degrees by which players turn the file's pictures (its display matrix), as its first frame says them.

    Raises: HarnessError as `open_video`.
    """
    import av

    container, stream = open_video(root, path)
    with container:
        try:
            return int(next((frame.rotation for frame in container.decode(stream)), 0))
        except (av.FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
            raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> HarnessError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return damaged("video-corrupt", f"{path} cannot be decoded", path, got=reason[:200], need="a whole mp4")


def too_short(
    path: Path, time_s: float, nearest_s: float | None, row: str = "the table", lacks: int | None = None
) -> HarnessError:
    """The error for a row of the table that has no frame.

    `lacks` is the number of frames missing at the file's end, if nothing else is wrong.
    """
    got = "no frame" if nearest_s is None else f"nearest frame at {nearest_s:.3f} s"
    fix = another_copy(path)
    if lacks is not None:
        frames = "frame" if lacks == 1 else "frames"
        got += f"; the video ends {lacks} {frames} before the table"
        if hub_of(path) is None:
            fix = correct(
                path,
                f"in a copy, leave that {frames if lacks == 1 else 'end'} of the episode out of the table and"
                " of meta/",
            )
    return HarnessError(
        "video-too-short",
        f"{path} has no frame at {time_s:.3f} s, where {row} needs one",
        got=got,
        need="one frame for every row",
        fix=fix,
    )
