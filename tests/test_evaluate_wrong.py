"""Tests what goes wrong while episodes are driven: an error is a line with its reason, never a failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.artifacts.episodes import EPISODES, Key, read_episodes
from harness.errors import HarnessError
from tests.support.evaluating import METADATA, Told, actions_of, evaluated, policy

FIRST = "libero_goal/0/0"


def errors(out: Path) -> dict[Key, str]:
    found = read_episodes(out / EPISODES, out)
    assert found is not None
    return {episode.key: episode.error.code for episode in found.errors if episode.error}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("die", "simulator-died"),
        ("hang", "simulator-hung"),
        ("error", "simulation-unstable"),
        ("print", "frame-too-large"),
        ("strange", "simulator-strange"),
    ],
)
def test_an_episode_that_the_simulator_breaks_is_an_error_and_asked_again_by_a_resume(
    tmp_path: Path, wrong: str, code: str
) -> None:
    plan = {"wrong": {FIRST: wrong}}
    patience = {"patience_s": 3.0} if wrong == "hang" else {}
    with policy() as server:
        found = evaluated(tmp_path / "a", server=server, plan=plan, **patience)
        assert errors(tmp_path / "a") == {Key("libero_goal", 0, 0): code}
        assert (found.all.measured, found.all.errors, found.errors) == (5, 1, {code: 1})
        again = evaluated(tmp_path / "a", server=server, plan=plan, resume=True)
        whole = evaluated(tmp_path / "b", server=server)
    assert again.all.measured == 6
    assert again.errors == {}
    assert whole.episodes_sha256 == again.episodes_sha256
    assert (tmp_path / "a" / EPISODES).read_bytes() == (tmp_path / "b" / EPISODES).read_bytes()


def test_the_last_words_of_a_simulator_are_kept(tmp_path: Path) -> None:
    with policy() as server:
        evaluated(tmp_path / "a", server=server, plan={"wrong": {FIRST: "die"}})
    episode = read_episodes(tmp_path / "a" / EPISODES, tmp_path / "a")
    assert episode is not None
    assert episode.errors[0].error is not None
    assert "Segmentation fault" in episode.errors[0].error.what


def test_errors_forbid_that_it_reproduces(tmp_path: Path) -> None:
    with policy() as server:
        evaluated(tmp_path / "a", server=server)
        from harness.run.directory import RunDir

        found = evaluated(
            tmp_path / "b",
            server=server,
            plan={"wrong": {FIRST: "error"}},
            against=RunDir(tmp_path / "a"),
            margin=0.9,
        )
    assert found.verdict == "inconclusive"


def test_a_simulator_that_dies_again_and_again_ends_the_evaluation(tmp_path: Path) -> None:
    always = {f"libero_goal/{task}/{episode}": "die" for task in range(10) for episode in range(5)}
    with policy() as server, pytest.raises(HarnessError) as caught:
        evaluated(tmp_path / "a", server=server, plan={"always": always}, tasks=None, episodes=5)
    assert caught.value.code == "simulator-died"
    assert len(errors(tmp_path / "a")) == 4


def test_a_worker_that_gives_up_leaves_its_episodes_to_the_others(tmp_path: Path) -> None:
    always = {f"libero_goal/0/{episode}": "die" for episode in range(5)}
    with policy() as server:
        found = evaluated(
            tmp_path / "a", server=server, plan={"always": always}, tasks="0-1", episodes=5, workers=2
        )
    assert found.all.missing == 0
    assert found.all.errors == 5
    assert found.all.measured == 5


def test_many_errors_in_a_row_end_the_evaluation(tmp_path: Path) -> None:
    always = {f"libero_goal/{task}/{episode}": "error" for task in range(10) for episode in range(5)}
    with policy() as server, pytest.raises(HarnessError) as caught:
        evaluated(tmp_path / "a", server=server, plan={"always": always}, tasks=None, episodes=5)
    assert caught.value.code == "evaluation-stuck"
    assert "simulation-unstable" in str(caught.value.got)
    assert len(errors(tmp_path / "a")) == 6


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        ({"dies_at_start": True}, "simulator-died"),
        (
            {
                "told_at_start": {
                    "code": "gl-missing",
                    "what": "no OpenGL",
                    "got": "x",
                    "need": "y",
                    "fix": "z",
                }
            },
            "gl-missing",
        ),
        ({"certify": []}, "simulator-not-certified"),
        (
            {
                "certify": [
                    {"name": "versions", "ok": True, "got": "", "need": "", "fix": ""},
                    {
                        "name": "floor of libero_object",
                        "ok": False,
                        "got": "103",
                        "need": "139",
                        "fix": "pip",
                    },
                ]
            },
            "simulator-not-certified",
        ),
    ],
    ids=["dies", "no GL", "silent", "other floor"],
)
def test_a_simulator_that_is_not_the_right_one_drives_no_episode(
    tmp_path: Path, plan: dict[str, Any], code: str
) -> None:
    with policy() as server, pytest.raises(HarnessError) as caught:
        evaluated(tmp_path / "a", server=server, plan=plan)
    assert caught.value.code == code
    assert server.seen == []
    assert not (tmp_path / "a" / EPISODES).exists()
    if "floor" in str(plan):
        assert "floor of libero_object" in caught.value.what
        assert (caught.value.got, caught.value.need, caught.value.fix) == ("103", "139", "pip")


def nan(observation: dict[str, Any], number: int) -> Any:
    return actions_of(observation, number) * np.nan


def after(answers: int, then: Callable[[dict[str, Any], int], Any]) -> Callable[[dict[str, Any], int], Any]:
    return lambda seen, number: (then if number >= answers else actions_of)(seen, number)


TRACEBACK = "\n".join(
    ["Traceback (most recent call last):", *["  File x"] * 200, "KeyError: has 7 dimensions"]
)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (nan, "policy-not-finite"),
        (lambda seen, number: actions_of(seen, number)[:, :6], "policy-of-another-robot"),
        (lambda seen, number: actions_of(seen, number)[:4], "policy-horizon"),
        (lambda seen, number: actions_of(seen, number)[0], "policy-without-actions"),
        (lambda *_: {"action": 1}, "policy-without-actions"),
        (lambda *_: {"actions": [[1.0], [1.0, 2.0]]}, "policy-without-actions"),
        (lambda *_: {"actions": "up"}, "policy-without-actions"),
        (lambda *_: "[observation-invalid] the state has 7 dimensions", "server-refused"),
        # openpi's server sends a traceback, of which the last line says what it was.
        (lambda *_: TRACEBACK, "server-refused"),
        (lambda *_: None, "server-gone"),
    ],
    ids=[
        "nan",
        "6 dimensions",
        "4 actions",
        "flat",
        "no actions",
        "ragged",
        "text",
        "refused",
        "traceback",
        "closed",
    ],
)
def test_a_wrong_policy_is_named_before_any_episode(tmp_path: Path, answer: Any, code: str) -> None:
    with policy(answer) as server, pytest.raises(HarnessError) as caught:
        evaluated(tmp_path / "a", server=server)
    assert caught.value.code == code
    assert caught.value.fix
    assert ("has 7 dimensions" in str(caught.value.got)) == (code == "server-refused")
    assert not (tmp_path / "a" / EPISODES).exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"state": {"dimensions": 7}}, "policy-of-another-robot"),
        ({"actions": {"dimensions": 14, "horizon": 50}}, "policy-of-another-robot"),
        ({"actions": {"dimensions": 7, "horizon": 4}}, "policy-horizon"),
        ({"cameras": [{"camera": "right_wrist_0_rgb", "keys": ["images/cam_right_wrist"]}]}, "policy-keys"),
        ({"state": {"needed": True, "keys": [["joint_position", "gripper"]]}}, "policy-keys"),
    ],
    ids=str,
)
def test_a_server_for_another_robot_is_named_by_its_contract(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    with policy(metadata=METADATA | changes) as server, pytest.raises(HarnessError) as caught:
        evaluated(tmp_path / "a", server=server)
    assert caught.value.code == code
    assert server.seen == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"state": 7, "actions": [], "cameras": {"a": 1}, "noise_seed": "x", "deviations": 3},
        {
            "cameras": [1, {"keys": 4}, {}],
            "state": {"keys": "x", "needed": True},
            "checkpoint": {"step": "9"},
        },
        {"actions": {"dimensions": "7", "horizon": None}, "recipe": None, "sampling_steps": 1.5},
    ],
    ids=str,
)
def test_metadata_of_any_form_is_only_less_known(tmp_path: Path, metadata: dict[str, Any]) -> None:
    with policy(metadata=metadata) as server:
        found = evaluated(tmp_path / "a", server=server, episodes=1, tasks="0")
    assert found.all.measured == 1


def test_an_answer_that_is_not_finite_in_an_episode_is_an_error_of_that_episode(tmp_path: Path) -> None:
    def once(seen: dict[str, Any], number: int) -> Any:
        return nan(seen, number) if number == 6 else actions_of(seen, number)

    with policy(once) as server:
        found = evaluated(tmp_path / "a", server=server)
        again = evaluated(tmp_path / "a", server=server, resume=True)
    assert found.errors == {"policy-not-finite": 1}
    assert found.all.measured == 5
    assert again.all.measured == 6


def test_a_server_that_closes_one_connection_costs_one_episode(tmp_path: Path) -> None:
    with policy(lambda seen, n: None if n == 6 else actions_of(seen, n)) as server:
        found = evaluated(tmp_path / "a", server=server)
    assert found.errors == {"server-gone": 1}
    assert found.all.measured == 5


def test_a_server_that_hangs_ends_the_evaluation_and_a_resume_asks_again(tmp_path: Path) -> None:
    def hang(seen: dict[str, Any], number: int) -> Any:
        time.sleep(8)
        return actions_of(seen, number)

    out = tmp_path / "a"
    with policy(after(6, hang)) as server, pytest.raises(HarnessError) as caught:
        evaluated(out, server=server, patience_s=2.0)
    assert caught.value.code == "server-hung"
    assert set(errors(out).values()) == {"server-hung"}
    with policy() as server:
        assert evaluated(out, server=server, resume=True).all.measured == 6


def test_a_server_that_dies_ends_the_evaluation_and_keeps_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with policy() as server:

        def die(seen: dict[str, Any], number: int) -> Any:
            if number < 6:
                return actions_of(seen, number)
            server._server.socket.close()
            return None

        server.answer = die
        with pytest.raises(HarnessError) as caught:
            evaluated(out, server=server)
    assert caught.value.code == "server-gone"
    assert "--resume" in caught.value.fix
    found = read_episodes(out / EPISODES, out)
    assert found is not None
    assert len(found.measured) == 1
    assert set(errors(out).values()) == {"server-gone"}


def test_nobody_listens(tmp_path: Path) -> None:
    from harness.evaluate.remote import Address
    from harness.evaluate.source import of_server

    for uri, code in (
        ("ws://127.0.0.1:9", "server-gone"),
        ("http://127.0.0.1:9", "server-address"),
        ("x", "server-address"),
        ("ws://[::1", "server-address"),
        ("ws://127.0.0.1:99999", "server-address"),
    ):
        with pytest.raises(HarnessError) as caught:
            evaluated(tmp_path / "a", source=of_server(Address(uri, None, 5.0)))
        assert caught.value.code == code


def test_a_setting_that_differs_between_processes_is_refused(tmp_path: Path) -> None:
    """The environment is changed while an evaluation runs."""
    from tests.support.evaluating import plan_file, starter

    start = starter(tmp_path / "plan")
    calls = 0

    def changing() -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            plan_file(tmp_path / "plan", versions={"mujoco": "3.4.0", "robosuite": "1.4.1"})
        return start()

    from harness.evaluate.measure import measure
    from harness.evaluate.source import of_control
    from tests.support.evaluating import wish

    with pytest.raises(HarnessError) as caught:
        measure(wish(tmp_path / "a", kind="zero"), of_control("zero"), changing, Told())
    assert caught.value.code == "simulator-differs"
