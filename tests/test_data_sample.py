"""Tests that the sample dataset is what `ci/make_sample.py` says, and what may be a clip of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.closed_loop.plan import HELD_OUT
from harness.data.lerobot import open_dataset
from harness.data.sample import sample_dataset_path, sample_tokenizer_path
from tests.support.sample import make_sample, make_tokenizer

CLIPS = make_sample.CLIPS


def test_each_clip_has_its_frames_and_one_move_of_the_fingers() -> None:
    data = open_dataset(sample_dataset_path())
    assert [episode.length for episode in data.episodes] == [clip.frames for clip in CLIPS]
    assert data.fps == make_sample.FPS
    for clip, episode in zip(CLIPS, data.episodes, strict=True):
        grip = data.columns.actions[episode.first : episode.first + episode.length, 6]
        before, after = (-1, 1) if clip.move == "close" else (1, -1)
        assert {(a, b) for a, b in pairwise(grip) if a != b} == {(before, after)}
        assert (grip[0], grip[-1]) == (before, after)


def test_no_clip_is_of_a_scene_that_the_closed_loop_holds_out() -> None:
    assert not {number for clip in CLIPS for number in (clip.take.state, clip.take.poses)} & set(HELD_OUT)


def test_the_floor_is_that_of_the_pinned_simulator() -> None:
    """MuJoCo 3.3.3 and later draw libero_object with a mean of 102, and 3.2.3 with 139."""
    data = open_dataset(sample_dataset_path())
    for clip, episode in zip(CLIPS, data.episodes, strict=True):
        if clip.take.suite == "libero_object":
            assert data.image(episode.first, "image").mean() == pytest.approx(139, abs=3)


def test_the_page_names_each_clip_and_the_simulator() -> None:
    page = (sample_dataset_path() / "README.md").read_text()
    assert "MuJoCo 3.2.3, robosuite 1.4.1" in page
    data = open_dataset(sample_dataset_path())
    for number, (clip, episode) in enumerate(zip(CLIPS, data.episodes, strict=True)):
        suite, task, state, _, seed = clip.take
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {number} |"))
        assert row.startswith(f"| {number} | {suite} {task} | {state} | {seed} | ")
        assert row.endswith(f" | {clip.move} | {data.task(episode.first)} |")


def test_the_tokenizer_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    make_tokenizer.train_tokenizer(tmp_path / "made.model")
    assert (tmp_path / "made.model").read_bytes() == sample_tokenizer_path().read_bytes()


def episode(grip: list[int]) -> dict[str, np.ndarray]:
    actions = np.zeros((len(grip), 7), np.float32)
    actions[:, 6] = grip
    return {"actions": actions, "state": np.arange(len(grip))}


def test_a_clip_begins_before_the_move_and_ends_with_the_episode_at_the_latest() -> None:
    closes, opens = CLIPS[0], CLIPS[1]
    grip = [-1] * 30 + [1] * 40 + [-1] * 2
    first, arrays, prompt = make_sample.cut(closes, episode(grip), "words")
    assert (first, prompt) == (30 - closes.before, "words")
    assert arrays["state"].tolist() == list(range(first, first + closes.frames))
    first, arrays, _ = make_sample.cut(opens, episode(grip), "words")
    assert arrays["state"].tolist() == list(range(72 - opens.frames, 72))


def test_an_episode_whose_fingers_close_twice_early_or_never_gives_no_clip() -> None:
    twice, early = [-1] * 20 + [1] * 9 + [-1] * 9 + [1] * 20, [-1] * 3 + [1] * 40
    for grip in (twice, early, [-1] * 60):
        with pytest.raises(SystemExit, match="take another initial state"):
            make_sample.cut(CLIPS[0], episode(grip), "words")


def test_without_a_simulator_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HARNESS_SIMULATOR", raising=False)
    monkeypatch.setattr("sys.argv", ["make_sample.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="simulator-missing"):
        make_sample.main()
    assert list(tmp_path.iterdir()) == []
