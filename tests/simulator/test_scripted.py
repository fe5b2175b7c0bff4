"""Tests of the scripted policy in the simulator. All 46 pairs: by_hand/test_scripted.py."""

from __future__ import annotations

from tests.simulator import inside


def test_the_scripted_policy_succeeds_and_is_the_same_each_time_with_and_without_pictures() -> None:
    blind = inside.run("scripted", [["libero_goal", 6, [3]], ["libero_spatial", 0, [30]]])
    assert [row[3] for row in blind] == [True, True]
    with inside.talking() as worker:
        for suite, task, episode, success, steps, digest in blind:
            message, queries = worker.drive(suite, task, episode, "scripted")
            assert message["is"] == "episode", message
            assert (message["outcome"] == "success") == success
            assert (message["steps"], message["actions_sha256"]) == (steps, digest)
            assert len(queries) == -(-steps // 5)


def test_a_task_without_a_way_is_refused_by_name() -> None:
    with inside.talking() as worker:
        message, _ = worker.drive("libero_goal", 7, 0, "scripted")
    assert message["is"] == "error"
    assert message["code"] == "scripted-has-no-way"
