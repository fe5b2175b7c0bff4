"""Tests the seams between sessions, repeated steps, and mixed runs."""

from __future__ import annotations

import numpy as np

from harness.analyse.curve import analyse
from harness.analyse.lines import read_records
from harness.analyse.sessions import OneRun, one_run
from harness.analyse.source import open_source
from tests.support.console_log import falling, flat, log, steps

STEPS, FALLING, FLAT = steps(), falling(), flat(seed=1)


def run(text: str) -> OneRun:
    return one_run(read_records(open_source("-", text.encode()).text))


def codes(found: OneRun) -> list[str]:
    return [finding.code for finding in found.findings]


def seams(found: OneRun) -> list[tuple[str, int, int, int]]:
    return [(seam.kind, seam.step, seam.replayed, seam.disagreeing) for seam in found.seams]


def test_one_session() -> None:
    found = run(log(STEPS, FALLING))
    assert (seams(found), codes(found), found.partial, found.mixed) == ([], [], [], False)
    assert found.columns["step"].tolist() == STEPS


def test_a_resume_replays_steps_and_the_later_values_count() -> None:
    found = run(log(STEPS[:124], FALLING[:124]) + log(STEPS[100:], 2 * FALLING[100:]))
    assert seams(found) == [("resume", 10_000, 24, 24)]
    assert codes(found) == ["replay-disagrees"]
    assert found.columns["step"].tolist() == STEPS
    assert np.allclose(found.columns["loss"][95:105], [*FALLING[95:100], *(2 * FALLING[100:105])], atol=1e-4)


def test_what_a_resume_went_behind_is_no_part_of_the_run() -> None:
    bad = log(range(12_400, 20_000, 100), flat(76, seed=3) * 30)
    before, after = log(STEPS[:124], FALLING[:124]), log(STEPS[100:150], FALLING[100:150])
    found = run(before + bad + after)
    assert seams(found)[0][:3] == ("resume", 10_000, 50)
    assert found.columns["step"].tolist() == STEPS[:150]
    assert found.columns["loss"].max() < 1
    assert found.partial == [
        "the resume at step 10000 went behind 50 records of later steps (15000 to 19900): they are left out"
    ]
    assert analyse("-", stdin=(before + bad + after).encode()).verdict == "learning"
    # The same with another interval between the lines: none of the bad ones is between the new ones.
    off = run(before + bad + log([step + 37 for step in STEPS[100:220]], FALLING[100:220]))
    assert off.columns["loss"].max() < 1
    assert not off.partial


def test_lines_that_fill_a_gap_go_behind_nothing() -> None:
    parts = [log(STEPS[a:b], FALLING[a:b]) for a, b in ((0, 100), (200, 300), (100, 200))]
    found = run("".join(parts))
    assert (found.columns["step"].tolist(), found.partial) == (STEPS[:300], [])
    swapped = log(STEPS, FALLING).splitlines(keepends=True)
    swapped[50:52] = reversed(swapped[50:52])
    assert run("".join(swapped)).columns["step"].tolist() == STEPS


def test_a_resume_that_goes_on_bit_for_bit_has_nothing_to_say() -> None:
    found = run(log(STEPS[:124], FALLING[:124]) + log(STEPS[100:], FALLING[100:]))
    assert seams(found) == [("resume", 10_000, 24, 0)]
    assert codes(found) == []


def test_a_session_that_only_its_greeting_tells() -> None:
    found = run(
        log(STEPS[:100], FALLING[:100])
        + "12:00:00.000 [I] Running on: host (1:train.py:196)\n"
        + log(STEPS[100:], FALLING[100:])
    )
    assert seams(found) == [("resume", 10_000, 0, 0)]


def test_a_restart_leaves_the_first_attempt_out() -> None:
    found = run(log(STEPS[:50], FLAT[:50]) + log(STEPS, FALLING))
    assert seams(found)[0][:2] == ("restart", 0)
    assert codes(found) == ["restarted"]
    assert found.partial
    assert np.allclose(found.columns["loss"], FALLING, atol=1e-4)


def test_another_run_is_not_this_one() -> None:
    for text in (
        log(STEPS, FLAT) + log(STEPS[:150], FALLING[:150], param_norm=1803.77),
        log(STEPS[:100], FLAT[:100]) + log(STEPS[100:250], FALLING[100:250], param_norm=1803.77),
    ):
        found = run(text)
        assert found.mixed
        assert found.partial
        assert codes(found) == ["mixed-runs"]
        assert found.seams[-1].kind == "another run"
        assert found.columns["param_norm"].min() > 1803


def test_two_runs_that_wrote_at_once() -> None:
    pairs = zip(
        log(STEPS, FLAT).splitlines(), log(STEPS, FALLING, param_norm=1803.77).splitlines(), strict=True
    )
    found = run("".join(f"{a}\n{b}\n" for a, b in pairs))
    assert found.mixed
    assert codes(found) == ["mixed-runs"]


def test_lines_in_another_order() -> None:
    lines = log(STEPS, FALLING).splitlines(keepends=True)
    for order in (np.random.default_rng(0).permutation(300), range(299, -1, -1)):
        found = run("".join(lines[i] for i in order))
        assert codes(found) == ["steps-out-of-order"]
        assert found.partial
        assert found.columns["step"].tolist() == STEPS
        assert np.allclose(found.columns["loss"], FALLING, atol=1e-4)


def test_lines_said_twice_count_once() -> None:
    found = run("".join(line * 2 for line in log(STEPS, FALLING).splitlines(keepends=True)))
    assert (codes(found), seams(found), found.partial) == (["lines-repeated"], [], [])
    assert len(found.columns["step"]) == 300
