"""Tests the videos of episodes: one file each, by name, from what the policy saw; and a disk that is full."""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from harness.artifacts.episodes import EPISODES, Key, read_episodes
from harness.evaluate import videos
from harness.evaluate.videos import Video, name_of
from harness.run import directory
from tests.support.evaluating import Told, evaluated, policy


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "videos").iterdir()) if (out / "videos").exists() else []


def test_a_video_shows_both_cameras_at_the_pace_of_the_queries(tmp_path: Path) -> None:
    video = Video(Fraction(20, 5))
    for shade in range(0, 200, 20):
        picture = np.full((224, 224, 3), shade, np.uint8)
        video.add({"image": picture, "wrist_image": 255 - picture})
    path = video.write(tmp_path, Key("libero_10", 3, 7, 1), "failure")
    assert path == tmp_path / "videos" / "libero_10_task03_episode07_repeat1_failure.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.average_rate == 4
    assert len(frames) == 14
    assert frames[0].shape == (224, 448, 3)
    for k, shade in enumerate(range(0, 200, 20)):
        assert abs(int(frames[k][112, 100, 0]) - shade) <= 6
        assert abs(int(frames[k][112, 350, 0]) - (255 - shade)) <= 6


@pytest.mark.parametrize("kept", ["failures", "all", "none"])
def test_each_episode_has_a_video_of_its_own(tmp_path: Path, kept: str) -> None:
    out = tmp_path / "a"
    with policy() as server:
        plan = {"wrong": {"libero_goal/2/1": "error"}}
        evaluated(out, server=server, plan=plan, videos=kept, episodes=4, workers=2)
    found = read_episodes(out / EPISODES, out)
    assert found is not None
    outcomes = {key: episode.outcome for key, episode in found.found.items()}
    assert {"success", "failure", "error"} == set(outcomes.values())
    assert names(out) == sorted(
        name_of(key, outcome)
        for key, outcome in outcomes.items()
        if kept == "all" or (kept == "failures" and outcome != "success")
    )


def test_a_full_disk_in_the_middle_of_a_video_costs_the_video_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second video meets a full disk after half of its bytes."""
    written: list[Path] = []
    whole = videos.write_atomic

    class Full:
        def __init__(self, descriptor: int) -> None:
            self._file = open(descriptor, "wb")  # noqa: SIM115

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, data: bytes) -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    def filling(path: Path, content: Any, **more: Any) -> None:
        written.append(path)
        with monkeypatch.context() as patched:
            if len(written) == 2:
                patched.setattr(directory.os, "fdopen", lambda descriptor, _: Full(descriptor))
            whole(path, content, **more)

    monkeypatch.setattr(videos, "write_atomic", filling)
    console, out = Told(), tmp_path / "a"
    with policy() as server:
        found = evaluated(out, server=server, videos="all", episodes=1, console=console)
    assert found.all.measured == 3
    assert len(written) == 3
    assert names(out) == sorted(path.name for path in (written[0], written[2]))
    assert any("[disk-full]" in each and "outcome is recorded" in each for each in console.warned)


def test_an_encoder_that_fails_costs_the_videos_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_encoder(*_: object, **__: object) -> None:
        raise av.codec.codec.UnknownCodecError("libx264")

    monkeypatch.setattr(av, "open", no_encoder)
    console, out = Told(), tmp_path / "a"
    with policy() as server:
        found = evaluated(out, server=server, videos="all", episodes=1, console=console)
    assert (found.all.measured, found.all.errors, names(out)) == (3, 0, [])
    assert any("[video-not-encoded]" in each and "libx264" in each for each in console.warned)


def test_a_full_disk_that_takes_no_line_ends_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.errors import HarnessError
    from harness.evaluate import record

    calls = 0

    def full(descriptor: int, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        record.os.write(descriptor, data)

    monkeypatch.setattr(record, "_write", full)
    out = tmp_path / "a"
    with policy() as server, pytest.raises(HarnessError) as caught:
        evaluated(out, server=server)
    assert caught.value.code == "disk-full"
    found = read_episodes(out / EPISODES, out)
    assert found is not None
    assert len(found.measured) == 2
    monkeypatch.undo()
    with policy() as server:
        assert evaluated(out, server=server, resume=True).all.measured == 6
