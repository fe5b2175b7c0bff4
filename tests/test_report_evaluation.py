"""Tests that the page and the table of an evaluation show what its files say."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from harness.artifacts.episodes import EPISODES, Key, read_episodes
from harness.artifacts.evaluation import Evaluation
from harness.artifacts.setting import Setting
from harness.errors import HarnessError
from harness.evaluate.judge import judge
from harness.evaluate.schedule import asked, keys
from harness.report import episode_strips
from harness.report import evaluation as drawn
from harness.report.evaluation import WIDTH, render
from harness.run.directory import RunDir
from harness.show.evaluation import evaluation_table
from tests.support.evaluated import FOUR, directory, driven, episode, outcomes, setting
from tests.test_run_contents import HOSTILE, paths, put

WHAT = asked(FOUR, episodes=6)
SPATIAL = [
    f"pick up the black bowl {where} and place it on the plate"
    for where in (
        "between the plate and the ramekin",
        "next to the ramekin",
        "from table center",
        "on the cookie box",
    )
]


def made(path: Path, rates: float, seed: int, **changes: object) -> RunDir:
    return driven(path, setting(WHAT, **changes), outcomes(WHAT, rates, seed=seed, likeness=0.5))


@pytest.fixture
def two(tmp_path: Path) -> tuple[RunDir, RunDir]:
    return made(tmp_path / "mine-001", 0.8, 1), made(tmp_path / "yours-002", 0.95, 2)


def test_one_evaluation_has_a_line_for_each_task_and_suite(two: tuple[RunDir, RunDir]) -> None:
    ours, _ = two
    found = judge(ours, "openpi:pi05_libero")
    page = render(ours)
    assert page.count('class="heading"') == 5
    assert page.count('<circle class="here"') == 45
    assert page.count('<line class="claimed"') == 5
    assert page.count("<svg width=") == 40
    assert found.verdict is not None
    assert f">{found.verdict}</b> against openpi:pi05_libero" in page
    assert "chance" in page
    assert "nan" not in page[page.index("<main>") :].lower()
    assert len(page) < 2_000_000


def test_two_side_by_side_say_who_succeeded_where(two: tuple[RunDir, RunDir]) -> None:
    ours, theirs = two
    judge(theirs)
    found = judge(ours, theirs)
    page = render(ours, theirs)
    assert page.count('<circle class="there"') == 45
    assert 'path class="theirs"' in page
    assert 'path class="failure"' not in page
    pairs = found.differences[-1].pairs
    assert pairs is not None
    assert f"{pairs.only_ours} : {pairs.only_theirs} of {pairs.scenes}" in page


def test_the_page_needs_no_network_and_no_script(two: tuple[RunDir, RunDir]) -> None:
    judge(two[0])
    page = render(two[0])
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="', page)


def test_strips_count_every_asked_episode(tmp_path: Path) -> None:
    what = asked(["libero_10"], tasks={"libero_10": [3]}, episodes=5)
    of = setting(what)
    lines = [
        episode(Key("libero_10", 3, k), outcome, of=of)
        for k, outcome in enumerate(("success", "failure", "error", "success"))
    ]
    run = directory(tmp_path / "a", of, lines)
    found = judge(run)
    episodes = read_episodes(run.path / EPISODES, run.path)
    assert episodes is not None
    (strip,) = episode_strips.strips(found, episodes)
    assert strip.counts == "2 succeeded, 1 failed, 1 not measured, 1 missing"
    assert strip.failed == "1"
    assert dict(strip.paths)["failure"].startswith("M8 2h6")


def test_an_episode_of_another_scene_is_no_pair_in_a_strip(tmp_path: Path) -> None:
    what = asked(["libero_10"], tasks={"libero_10": [3]}, episodes=2)
    of = setting(what)
    ours = judged(tmp_path / "a", [episode(key, of=of) for key in keys(what)])
    other = [episode(key, of=of, scene="f" * 64 if key.episode else None) for key in keys(what)]
    theirs = judged(tmp_path / "b", other)
    (strip,) = episode_strips.strips(ours[0], ours[1], theirs[1])
    assert strip.counts == "1 both, 1 not on both sides"


def judged(path: Path, lines: list) -> tuple:
    of = setting(asked(["libero_10"], tasks={"libero_10": [3]}, episodes=2))
    run = directory(path, of, lines)
    return judge(run), read_episodes(run.path / EPISODES, run.path)


def test_where_it_failed_names_the_parts_of_the_goal(tmp_path: Path) -> None:
    what = asked(["libero_10"], tasks={"libero_10": [3]}, episodes=4)
    of = setting(what)
    reached = [{"bowl": 40, "drawer": None}, {"bowl": 60, "drawer": None}, {"bowl": None, "drawer": None}]
    lines = [episode(key, of=of) for key in keys(what)[:1]] + [
        episode(key, "failure", of=of, reached=parts)
        for key, parts in zip(keys(what)[1:], reached, strict=True)
    ]
    run = directory(tmp_path / "a", of, lines)
    found, episodes = judge(run), read_episodes(run.path / EPISODES, run.path)
    assert episodes is not None
    (row,) = episode_strips.failures(found, episodes)
    assert (row.failures, row.measured, row.nothing, row.some) == (3, 4, 1, 2)
    assert row.parts == "bowl: 2 of 3 (step 50); drawer: 0 of 3"
    assert "bowl: 2 of 3 (step 50)" in render(run)


def test_failures_without_parts_say_that_none_are_recorded(two: tuple[RunDir, RunDir]) -> None:
    judge(two[0])
    assert "not recorded" in render(two[0])


def test_words_that_all_tasks_share_are_left_out(tmp_path: Path) -> None:
    run = made(tmp_path / "a", 1.0, 1, prompts={"libero_spatial": SPATIAL})
    found = judge(run)
    labels = [episode_strips.task_label(found, "libero_spatial", task) for task in range(5)]
    assert labels == [
        "0 … between the plate and the ramekin …",
        "1 … next to the ramekin …",
        "2 … from table center …",
        "3 … on the cookie box …",
        "task 4",
    ]
    assert SPATIAL[0] in render(run)


def test_marks_lie_within_the_drawing_whatever_the_rates(tmp_path: Path) -> None:
    for number, rates in enumerate((0.0, 0.5, 1.0)):
        picture = drawn.forest(judge(made(tmp_path / str(number), rates, 1)))
        for line in picture.lines:
            assert 0 < line.y < picture.height
            for mark in line.marks:
                assert 0 <= mark.low <= mark.x <= mark.high <= WIDTH
        assert picture.ticks[-1][1] == "100 %"


def test_an_evaluation_without_a_measured_episode_is_drawn(tmp_path: Path) -> None:
    run = directory(tmp_path / "a", setting(WHAT), [])
    judge(run)
    page = render(run)
    assert page.count("not measured") > 40
    assert "No measured episode failed" in page


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    run = made(
        tmp_path / "a",
        0.5,
        1,
        evaluated={"name": "<script>alert(1)</script>"},
        deviations=["<b>"],
        prompts={"libero_10": ["<i>x</i>"]},
    )
    judge(run)
    page = render(run)
    assert "<script" not in page
    assert "<i>x" not in page


def test_the_page_names_what_is_not_there(two: tuple[RunDir, RunDir]) -> None:
    ours, _ = two
    with pytest.raises(HarnessError, match="evaluation-missing"):
        render(ours)
    judge(ours)
    (ours.path / EPISODES).write_bytes((ours.path / EPISODES).read_bytes()[:5000])
    assert "has changed since evaluation.json was written" in render(ours)
    (ours.path / EPISODES).unlink()
    assert "has no episodes.jsonl" in render(ours)


def test_the_table_says_the_verdict_and_its_reason(two: tuple[RunDir, RunDir]) -> None:
    ours, theirs = two
    found = judge(ours, theirs)
    text = shown(found)
    assert found.verdict is not None
    for words in (found.verdict, "why: recipe", "tasks like these", "all", "mujoco 3.2.3"):
        assert words in text
    assert "compared with nothing" in shown(judge(ours))


def shown(found: Evaluation) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=160).print(evaluation_table(found))
    return buffer.getvalue()


@pytest.mark.parametrize("name", [Evaluation.FILE, Setting.FILE])
def test_no_content_of_a_file_brings_the_page_or_the_verdict_down(
    two: tuple[RunDir, RunDir], name: str
) -> None:
    """Twenty changes of the file, another value in another part each: it is read, or refused with a fix."""
    ours, theirs = two
    judge(theirs)
    judge(ours, theirs)
    whole, chance = (ours.path / name).read_text(), random.Random(name)
    everywhere = [path for path in paths(json.loads(whole)) if path]
    fixes = []
    for _ in range(20):
        changed = put(json.loads(whole), chance.choice(everywhere), chance.choice([*HOSTILE, None]))
        (ours.path / name).write_text(json.dumps(changed))
        try:
            if name == Evaluation.FILE:
                render(ours, theirs)
            else:
                judge(ours, theirs)
        except HarnessError as error:
            fixes.append(error.fix)
    assert fixes
    assert all(fixes)
