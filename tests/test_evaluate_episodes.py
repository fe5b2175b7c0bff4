"""Tests that episodes survive kills, stay apart from other evaluations, and do not depend on their order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts.episodes import EPISODES, LINE_BYTES, Key, episode_of, read_episodes
from harness.artifacts.setting import Setting
from harness.errors import HarnessError
from harness.evaluate.judge import judge
from harness.evaluate.record import read_recorded, recording
from harness.evaluate.schedule import asked, keys, remaining
from harness.run.directory import RunDir
from tests.support.evaluated import directory, driven, episode, setting

SMALL = asked(["libero_10", "libero_goal"], tasks={"libero_10": [0, 8], "libero_goal": [5]}, episodes=4)
OF = setting(SMALL)
LINES = [episode(key, "failure" if key.episode == 1 else "success", of=OF) for key in keys(SMALL)]
CHILD = """
import sys, time
from pathlib import Path
from harness.evaluate.record import recording
from harness.evaluate.schedule import keys, remaining
from harness.run.directory import RunDir
from tests.support.evaluated import episode
from tests.test_evaluate_episodes import OF, SMALL
with recording(RunDir(Path(sys.argv[1])), OF, resume=True) as recorder:
    for key in remaining(SMALL, recorder.episodes.found.values())[: int(sys.argv[2])]:
        recorder.add(episode(key, "failure" if key.episode == 1 else "success", of=OF))
    print("there", flush=True)
    time.sleep(60)
"""


def record(path: Path, lines: list[Any], *, resume: bool = False, of: Setting = OF) -> None:
    with recording(RunDir(path), of, resume=resume) as recorder:
        for each in lines:
            recorder.add(each)


def test_a_line_comes_back_as_it_was() -> None:
    assert [episode_of(each.line()) for each in LINES] == LINES


def test_the_same_episodes_in_any_order_have_the_same_hash(tmp_path: Path) -> None:
    shuffled = random.Random(1).sample(LINES, len(LINES))
    found = [
        judge(directory(tmp_path / name, OF, lines))
        for name, lines in (("a", LINES), ("b", shuffled), ("c", [*LINES, *LINES[:2]]))
    ]
    assert len({each.episodes_sha256 for each in found}) == 1
    assert found[0] == found[1]
    assert found[2].repeated == 2
    assert found[2].all == found[0].all


def test_half_a_line_at_the_end_is_a_kill_and_its_episode_is_asked_again(tmp_path: Path) -> None:
    half = LINES[5].line()[:70]
    run = directory(tmp_path / "a", OF, LINES[:5], half)
    found = read_recorded(run)
    assert found.episodes.torn
    assert not found.episodes.unreadable
    assert remaining(SMALL, found.episodes.found.values()) == keys(SMALL)[5:]
    assert any("no end" in note for note in judge(run).notes)
    record(run.path, LINES[5:], resume=True)
    done = read_recorded(run).episodes
    assert done.measured == sorted(LINES, key=lambda each: each.key)
    assert not done.unreadable
    assert (run.path / EPISODES).read_bytes() == b"".join(each.line() for each in LINES)


@pytest.mark.parametrize("left", [b"{", b"a note of somebody", b"\0" * 40])
def test_what_is_no_half_of_a_line_stays(left: bytes, tmp_path: Path) -> None:
    run = directory(tmp_path / "a", OF, LINES[:5], left)
    record(run.path, LINES[5:], resume=True)
    done = read_recorded(run).episodes
    assert done.measured == sorted(LINES, key=lambda each: each.key)
    assert left in (run.path / EPISODES).read_bytes()


def test_a_whole_line_without_its_end_counts(tmp_path: Path) -> None:
    run = directory(tmp_path / "a", OF, LINES[:3], LINES[3].line().rstrip(b"\n"))
    assert len(read_recorded(run).episodes.measured) == 4
    record(run.path, LINES[4:], resume=True)
    assert len(read_recorded(run).episodes.measured) == len(LINES)


def test_a_killed_recorder_loses_nothing_and_a_resume_ends_the_same(tmp_path: Path) -> None:
    run = tmp_path / "killed"
    for many in (3, 4, 100):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(run), str(many)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": "."},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    record(tmp_path / "whole", random.Random(2).sample(LINES, len(LINES)))
    assert sorted((run / EPISODES).read_bytes().splitlines()) == sorted(
        (tmp_path / "whole" / EPISODES).read_bytes().splitlines()
    )
    assert judge(RunDir(run)) == judge(RunDir(tmp_path / "whole"))


def test_two_evaluations_at_once_do_not_share_a_directory(tmp_path: Path) -> None:
    with (
        recording(RunDir(tmp_path / "a"), OF),
        pytest.raises(HarnessError, match="evaluation-busy"),
        recording(RunDir(tmp_path / "a"), OF, resume=True),
    ):
        pass


def test_an_evaluation_is_not_begun_where_one_is(tmp_path: Path) -> None:
    run = directory(tmp_path / "a", OF, LINES[:2])
    with pytest.raises(HarnessError, match="evaluation-there") as caught:
        record(run.path, LINES)
    assert "--resume" in caught.value.fix
    assert len(read_recorded(run).episodes.measured) == 2


def test_a_resume_with_another_policy_is_refused_by_what_differs(tmp_path: Path) -> None:
    run = directory(tmp_path / "a", OF, LINES[:2])
    before = (run.path / Setting.FILE).read_bytes()
    other = setting(SMALL, evaluated={"sha256": "f" * 64})
    with pytest.raises(HarnessError, match="evaluation-other") as caught:
        record(run.path, [], resume=True, of=other)
    assert caught.value.got == f"evaluated.sha256 {'f' * 64}"
    assert (run.path / Setting.FILE).read_bytes() == before


def test_a_resume_may_ask_for_more_episodes(tmp_path: Path) -> None:
    run = directory(tmp_path / "a", OF, LINES)
    more = setting(asked(["libero_10"], tasks={"libero_10": [0]}, episodes=6))
    record(run.path, [episode(Key("libero_10", 0, 5), of=more)], resume=True, of=more)
    found = judge(run)
    assert (found.all.measured, found.all.missing) == (5, 1)
    assert any("8 recorded episodes are not asked" in note for note in found.notes)


def test_episodes_of_two_evaluations_in_one_file_are_refused(tmp_path: Path) -> None:
    other = setting(SMALL, protocol={"name": "lerobot"})
    run = directory(tmp_path / "a", OF, [*LINES[:3], *(episode(key, of=other) for key in keys(SMALL)[3:5])])
    with pytest.raises(HarnessError, match="evaluation-mixed") as caught:
        judge(run)
    assert caught.value.got == f"2 of {other.sha256()[:16]}"
    assert not (run.path / "evaluation.json").exists()
    # The fix does what it says.
    command = caught.value.fix.partition("this one: ")[2]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert judge(RunDir(tmp_path / "NEW")).all.measured == 3


def test_an_episode_that_was_not_asked_is_not_written(tmp_path: Path) -> None:
    for stray in (
        episode(Key("libero_10", 7, 0), of=OF),
        episode(keys(SMALL)[0], of=setting(renderer="egl")),
    ):
        with pytest.raises(HarnessError, match="episode-stray"):
            record(tmp_path / "a", [stray], resume=True)
    assert (tmp_path / "a" / EPISODES).read_bytes() == b""


def test_an_error_is_no_failure_and_is_asked_again(tmp_path: Path) -> None:
    errors = [episode(key, "error", of=OF, scene_sha256=None) for key in keys(SMALL)[:3]]
    run = directory(tmp_path / "a", OF, [*errors, *LINES[3:]])
    found = judge(run)
    assert (found.all.measured, found.all.errors, found.errors) == (9, 3, {"server-gone": 3})
    assert found.all.rate == pytest.approx((1 / 1 + 3 / 4 + 3 / 4) / 3)
    assert remaining(SMALL, read_recorded(run).episodes.found.values()) == keys(SMALL)[:3]
    record(run.path, LINES[:3], resume=True)
    again = judge(run)
    assert (again.all.measured, again.all.errors, again.repeated) == (12, 0, 0)


def test_an_episode_cannot_be_repeated_until_it_succeeds(tmp_path: Path) -> None:
    failed = LINES[1]
    better = failed.model_copy(update={"outcome": "success", "steps": 90})
    found = judge(directory(tmp_path / "a", OF, [*LINES, better]))
    assert (found.all.successes, found.conflicts) == (9, 1)
    assert any("first counts" in note for note in found.notes)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": float("nan")},
        {"steps": -1},
        {"steps": 3.5},
        {"task": True},
        {"suite": "../../etc"},
        {"outcome": "won"},
        {"outcome": "error"},
        {"scene_sha256": None},
        {"observations": []},
        {"observations": ["x" * 64]},
        {"error": {"code": "a", "what": "b"}},
        {"seconds": 3},
        {"reached": {"on the plate": -4}},
        {"suite": "a" * 200},
    ],
    ids=str,
)
def test_a_line_that_says_nothing_measurable_counts_nowhere(tmp_path: Path, change: dict[str, Any]) -> None:
    line = json.dumps({**LINES[0].model_dump(mode="json"), **change}).encode() + b"\n"
    run = directory(tmp_path / "a", OF, LINES[1:], line)
    found = judge(run)
    assert (found.unreadable, found.all.missing, found.all.measured) == (1, 1, len(LINES) - 1)


@pytest.mark.parametrize(
    "tail",
    [
        b"\n\n  \n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b"x" * (LINE_BYTES + 9) + b"\n",
    ],
    ids=["blank", "bytes", "list", "null", "deep", "long"],
)
def test_no_content_brings_the_reader_down(tmp_path: Path, tail: bytes) -> None:
    run = directory(tmp_path / "a", OF, LINES[:2], tail + LINES[2].line())
    assert len(read_recorded(run).episodes.measured) == 3


def test_without_episodes_nothing_is_said(tmp_path: Path) -> None:
    found = judge(directory(tmp_path / "a", OF, []), "openpi:pi05_libero")
    assert found.all.rate is None
    assert (found.all.interval.low, found.all.interval.high) == (0.0, 1.0)
    assert found.verdict == "not comparable"  # some tasks only
    full = setting(asked(["libero_goal"]))
    empty = judge(directory(tmp_path / "b", full, []), "openpi:pi05_libero")
    assert (empty.verdict, empty.differences[0].reason) == (
        "inconclusive",
        "no episode was measured on one side",
    )


def test_a_directory_without_an_evaluation_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(HarnessError, match="evaluation-missing"):
        judge(RunDir(tmp_path / "a"))
    assert read_episodes(tmp_path / "a" / EPISODES, tmp_path / "a") is None


def test_a_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    run = directory(tmp_path / "a", OF, [])
    (tmp_path / "elsewhere.jsonl").write_bytes(LINES[0].line())
    (run.path / EPISODES).unlink()
    (run.path / EPISODES).symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(HarnessError, match="file-leaves-root"):
        judge(run)
    with pytest.raises(HarnessError, match="file-leaves-root"):
        record(run.path, LINES, resume=True)


def test_statistics_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    run = directory(tmp_path / "a", OF, LINES)
    text = (run.path / Setting.FILE).read_text()
    (run.path / Setting.FILE).write_text(text.replace('"sampling_steps": 10', '"sampling_steps": NaN'))
    with pytest.raises(HarnessError, match="artifact-invalid"):
        judge(run)


@pytest.mark.parametrize("margin", [float("nan"), float("inf"), 0.0, -0.02, 2.0])
def test_a_margin_that_is_none_is_refused(tmp_path: Path, margin: float) -> None:
    with pytest.raises(HarnessError, match="margin-impossible"):
        judge(directory(tmp_path / "a", OF, LINES), margin=margin)


def test_an_evaluation_is_not_compared_with_itself(tmp_path: Path) -> None:
    run = driven(tmp_path / "a", OF, dict.fromkeys(keys(SMALL), True))
    with pytest.raises(HarnessError, match="evaluation-itself"):
        judge(run, RunDir(tmp_path / "b" / ".." / "a"))
    with pytest.raises(HarnessError, match="claim-unknown") as caught:
        judge(run, "openpi:pi0_libero")
    assert "openpi:pi05_libero" in caught.value.fix


def test_a_secret_in_the_address_of_a_server_stays_out_of_the_files_and_of_the_hash(tmp_path: Path) -> None:
    of = setting(
        SMALL, evaluated={"kind": "server", "name": "ws://me:hunter2hunter2@host:8000?api_key=abcdef"}
    )
    record(tmp_path / "a", [episode(key, of=of) for key in keys(SMALL)], of=of)
    assert "hunter2" not in (tmp_path / "a" / Setting.FILE).read_text()
    assert judge(RunDir(tmp_path / "a")).all.measured == len(LINES)


FULL = """
import resource, sys
from pathlib import Path
from harness.errors import HarnessError
from harness.evaluate.record import recording
from harness.run.directory import RunDir
from tests.test_evaluate_episodes import LINES, OF
with recording(RunDir(Path(sys.argv[1])), OF) as recorder:
    recorder.add(LINES[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(LINES[0].line()) + 50, resource.RLIM_INFINITY))
    try:
        recorder.add(LINES[1])
    except HarnessError as error:
        print(error.code)
"""


def test_a_file_that_cannot_grow_keeps_whole_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": "."},
        check=False,
    )
    assert done.stdout == "not-writable\n", done.stderr
    assert (tmp_path / "a" / EPISODES).read_bytes() == LINES[0].line()


def test_so_many_episodes_are_not_asked(tmp_path: Path) -> None:
    """Another's setting.json does not fill the memory."""
    run = directory(tmp_path / "a", OF, LINES)
    text = (run.path / Setting.FILE).read_text()
    (run.path / Setting.FILE).write_text(
        text.replace('"episodes": 4', '"episodes": 9999').replace('"repeats": 1', '"repeats": 999')
    )
    with pytest.raises(HarnessError, match="artifact-invalid"):
        judge(run)
