"""Tests an evaluation from queries to its verdict, with a simulator and a policy that answer in no time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.artifacts.episodes import EPISODES, Key, read_episodes
from harness.artifacts.evaluation import Evaluation
from harness.artifacts.setting import Setting
from harness.errors import HarnessError
from harness.evaluate.remote import noise_seed
from harness.run.directory import RunDir
from tests.support.evaluating import METADATA, Told, actions_of, evaluated, policy


def lines(out: Path) -> bytes:
    return (out / EPISODES).read_bytes()


def test_the_same_episodes_are_the_same_bytes_for_any_workers_any_order_and_after_a_resume(
    tmp_path: Path,
) -> None:
    with policy() as server:
        evaluated(tmp_path / "one", server=server)
        evaluated(tmp_path / "three", server=server, workers=3)
        other = tmp_path / "other"
        evaluated(other, server=server, against=RunDir(tmp_path / "one"), sequential=True, margin=0.99)
        whole = lines(tmp_path / "one")
        half = tmp_path / "half"
        evaluated(half, server=server, tasks="1")
        evaluated(half, server=server, resume=True, workers=2)
    assert whole == lines(tmp_path / "three") == lines(half)
    assert set(lines(other).splitlines()) <= set(whole.splitlines())
    assert len(whole.splitlines()) == 6


def test_lines_are_in_the_order_of_their_keys(tmp_path: Path) -> None:
    with policy() as server:
        evaluated(tmp_path / "a", server=server, suites="object,goal", tasks="1-2", workers=4)
    keys = [
        Key(*(json.loads(line)[name] for name in Key._fields)) for line in lines(tmp_path / "a").splitlines()
    ]
    assert keys == sorted(keys)
    assert len(set(keys)) == 8


def test_the_noise_of_a_query_follows_from_what_it_is(tmp_path: Path) -> None:
    with policy() as server:
        evaluated(tmp_path / "a", server=server, tasks="1", episodes=1, repeats=2, seed=5)
        seen = [each["noise_seed"] for each in server.seen[1:]]
    assert seen == [noise_seed(5, Key("libero_goal", 1, 0, r), q) for r in range(2) for q in range(4)]
    assert len(set(seen)) == 8
    assert all(0 <= each < 2**32 for each in seen)


def test_another_seed_is_another_setting(tmp_path: Path) -> None:
    with policy() as server:
        evaluated(tmp_path / "a", server=server)
        with pytest.raises(HarnessError) as caught:
            evaluated(tmp_path / "a", server=server, seed=1, resume=True)
    assert caught.value.code == "evaluation-other"
    assert "noise_seed" in f"{caught.value.got}{caught.value.need}"


def test_a_server_that_knows_no_seed_is_asked_as_openpi_asks_it_and_that_is_said(tmp_path: Path) -> None:
    console = Told()
    with policy(metadata={}) as server:
        found = evaluated(tmp_path / "a", server=server, console=console)
        assert all("noise_seed" not in each for each in server.seen)
        assert set(server.seen[0]) == {"observation/state", "prompt"}
        assert found.setting.evaluated.name == server.uri
    assert found.setting.evaluated.noise_seed is None
    assert found.setting.evaluated.action_horizon == 10
    assert "the order of all calls" in found.setting.deviations[0]
    assert any("the order of all calls" in each for each in console.warned)
    assert found.setting.unknown["evaluated.sha256"] == "the server does not say it"


def test_only_the_actions_of_the_protocol_are_executed(tmp_path: Path) -> None:
    """The chunk has ten; five of them count, whatever the others are."""

    def other_tail(observation: dict[str, Any], number: int) -> Any:
        actions = np.array(actions_of(observation, number))
        actions[5:] = number
        return actions

    with policy() as one, policy(other_tail) as two:
        evaluated(tmp_path / "a", server=one)
        evaluated(tmp_path / "b", server=two)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


@pytest.mark.parametrize(("kind", "rate"), [("zero", 0.0), ("replay", 1.0)])
def test_a_control_needs_no_server(tmp_path: Path, kind: str, rate: float) -> None:
    from harness.evaluate.source import of_control

    console = Told()
    found = evaluated(
        tmp_path / "a",
        source=of_control(kind),  # type: ignore[arg-type]
        console=console,
        suites="spatial,object,goal,10",
        tasks=None,
    )
    assert found.all.rate == rate
    assert found.all.measured >= 2
    assert found.setting.evaluated.name == f"the control {kind}"
    assert console.rates[-1][0] == console.rates[-1][1]
    assert found.verdict is None


def test_a_departure_is_named_and_no_longer_comparable(tmp_path: Path) -> None:
    with policy() as server:
        found = evaluated(
            tmp_path / "a",
            server=server,
            depart=["max_steps.libero_goal=10"],
            against="openpi:pi05_libero",
        )
    assert found.setting.deviations == ["max_steps.libero_goal is 10 instead of the protocol's 300"]
    assert found.setting.protocol.values["max_steps.libero_goal"] == 10
    assert (found.verdict, found.field) == ("not comparable", "protocol.max_steps.libero_goal")


def test_the_words_of_each_task_are_kept(tmp_path: Path) -> None:
    with policy() as server:
        evaluated(tmp_path / "a", server=server, tasks="2", episodes=1)
        evaluated(tmp_path / "a", server=server, tasks="0,2", episodes=1, resume=True)
    setting = RunDir(tmp_path / "a").read(Setting)
    assert setting is not None
    assert setting.prompts == {"libero_goal": ["task 0 of libero_goal", "", "task 2 of libero_goal"]}


def test_what_was_measured_is_only_judged_again(tmp_path: Path) -> None:
    """Nothing is started: the plan would end the simulator at once."""
    out = tmp_path / "a"
    evaluated(out)
    evaluated(tmp_path / "b")
    again = evaluated(out, plan={"dies_at_start": True}, resume=True, against=RunDir(tmp_path / "b"))
    assert again.verdict == "inconclusive"
    assert RunDir(out).read(Evaluation) == again


def test_two_evaluations_do_not_share_a_directory(tmp_path: Path) -> None:
    evaluated(tmp_path / "a")
    with pytest.raises(HarnessError) as caught:
        evaluated(tmp_path / "a")
    assert caught.value.code == "evaluation-there"
    from harness.run.lock import locked

    with locked(tmp_path / "a"), pytest.raises(HarnessError) as busy:
        evaluated(tmp_path / "a", resume=True)
    assert busy.value.code == "evaluation-busy"


def test_a_sequential_evaluation_stops_when_it_knows(tmp_path: Path) -> None:
    """Ours succeeds everywhere and theirs nowhere: a few pairs say so, of sixty."""
    with policy() as server:
        theirs = tmp_path / "theirs"
        evaluated(theirs, server=server, tasks=None, episodes=6, plan={"rate": 0.0}, workers=2)
        found = evaluated(
            tmp_path / "ours",
            server=server,
            tasks=None,
            episodes=6,
            plan={"rate": 1.0},
            sequential=True,
            against=RunDir(theirs),
        )
    assert found.verdict == "above"
    assert found.sequential is not None
    assert found.sequential.stopped_at == found.all.measured < 20
    assert found.all.missing == 60 - found.all.measured
    again = {"tasks": None, "episodes": 6, "sequential": True, "against": RunDir(theirs), "resume": True}
    with policy() as server:
        assert evaluated(tmp_path / "ours", server=server, **again).all == found.all


@pytest.mark.parametrize("change", [{"tasks": "0-3"}, {"seed": 5}], ids=str)
def test_a_resume_begins_no_second_paired_test(tmp_path: Path, change: dict[str, Any]) -> None:
    """Other tasks, or the same in another order: each of two tests errs as often as it says."""
    evaluated(tmp_path / "theirs")
    asked = {"sequential": True, "against": RunDir(tmp_path / "theirs"), "plan": {"rate": 1.0}}
    ours = tmp_path / "ours"
    evaluated(ours, **asked, episodes=1)
    before = lines(ours)
    with pytest.raises(HarnessError, match="holds a paired test") as caught:
        evaluated(ours, **asked, resume=True, **change)
    assert caught.value.code == "evaluation-other"
    assert lines(ours) == before
    found = evaluated(ours, **asked, resume=True)
    assert found.sequential is not None
    assert found.sequential.pairs == 6


def test_a_resume_asks_for_more_episodes_and_repeats(tmp_path: Path) -> None:
    with policy() as server:
        evaluated(tmp_path / "a", server=server, episodes=1)
        found = evaluated(tmp_path / "a", server=server, episodes=2, repeats=2, resume=True)
        asked = len(server.seen)
    assert found.all.measured == 12
    assert asked == 2 + 12 * 4
    repeats = read_episodes(tmp_path / "a" / EPISODES, tmp_path)
    assert repeats is not None
    assert Counter(key.repeat for key in repeats.found) == {0: 6, 1: 6}


def test_a_resume_that_asks_for_other_tasks_counts_those_alone(tmp_path: Path) -> None:
    evaluated(tmp_path / "a", tasks="0-1")
    console = Told()
    found = evaluated(tmp_path / "a", tasks="1-2", resume=True, console=console)
    assert [(done, asked) for done, asked, _ in console.rates] == [(3, 4), (4, 4)]
    assert (found.all.measured, found.all.missing) == (4, 0)


def test_a_policy_that_says_it_departs_is_named(tmp_path: Path) -> None:
    prompt = {"key": "prompt", "needed": False, "replaced_by": "pick it up"}
    said = {**METADATA, "prompt": prompt, "deviations": ["--steps 5: 5 Euler steps instead of 10", 7]}
    with policy(metadata=said) as server:
        found = evaluated(tmp_path / "a", server=server)
    assert found.setting.deviations == [
        "the policy is told 'pick it up' in every task",
        "policy: --steps 5: 5 Euler steps instead of 10",
    ]
