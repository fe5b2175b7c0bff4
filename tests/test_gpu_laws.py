"""Tests the rules of benchmarks/gpu_laws.py: what is judged, what is kept, what is done again and tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_laws, gpu_laws_kills, gpu_laws_openpi, gpu_laws_place
from benchmarks.gpu_laws_book import (
    KILLS,
    Book,
    Mixed,
    State,
    batches_to_try,
    compared,
    exit_code,
    judged_kills,
    judged_verdict,
    moment_of,
    victim_of,
)
from benchmarks.gpu_laws_place import Late, Place
from benchmarks.gpu_laws_stages import LIMITS, NEEDS, STAGES
from harness.units import GIB

OF = {"rehearsal": False, "card": {"name": "NVIDIA H200"}, "driver": "580.159"}
KILL = {"phase": "save", "victim": "supervisor", "whole": 4, "wrong": []}


def place(tmp_path: Path, **changes: Any) -> Place:
    given = {"rehearse": True, "openpi": None, "python": None} | changes
    return Place(tmp_path, **given, book=Book(tmp_path / "gpu_laws.json", OF))


def test_five_kills_fall_into_saves_and_steps_and_one_takes_the_trainer_alone() -> None:
    moments, victims = ([of(number) for number in range(KILLS)] for of in (moment_of, victim_of))
    assert {*moments} == {"save", "step"}
    assert {*victims} == {"supervisor", "trainer"}


@pytest.mark.parametrize(
    ("kills", "at_the_end", "holds"),
    [
        ([KILL] * 4 + [KILL | {"phase": "step"}], [], True),
        # None fell into a step; too few; one had nothing to go on from; one lost something; the end differs.
        ([KILL] * 5, [], False),
        ([KILL, KILL | {"phase": "step"}], [], False),
        ([KILL] * 4 + [KILL | {"phase": "step", "whole": 0}], [], False),
        ([KILL] * 4 + [KILL | {"phase": "step", "wrong": ["arrays of step 4"]}], [], False),
        ([KILL] * 4 + [KILL | {"phase": "step"}], ["lines of metrics"], False),
    ],
)
def test_kills_are_judged(kills: list[dict[str, Any]], at_the_end: list[str], holds: bool) -> None:
    found, told = judged_kills(kills, at_the_end)
    assert found is holds
    assert told["kills"] == len(kills)
    assert told["exact"] == sum(not kill["wrong"] for kill in kills)


REPLAY = {"status": "equal", "tolerance": 0.0, "largest_difference": 0.0, "steps": 3}


@pytest.mark.parametrize(
    ("replay", "fields", "holds"),
    [
        ({}, [("kernels", "equal", True)], True),
        ({}, [("image_content", "cannot tell", True), ("machine.kernel", "differs", False)], True),
        ({}, [("kernels", "differs", True)], False),
        # Equal within a tolerance is not bit for bit.
        ({"tolerance": 1e-3, "largest_difference": 1e-5}, [], False),
        ({"status": "differs", "largest_difference": 1e-7}, [], False),
        (None, [], False),
    ],
)
def test_a_verdict_is_judged_by_its_bits(replay: Any, fields: list[Any], holds: bool) -> None:
    verdict = {
        "verdict": "cannot tell",
        "replay": None if replay is None else REPLAY | replay,
        "fields": [{"field": name, "status": status, "matters": matters} for name, status, matters in fields],
    }
    found, told = judged_verdict(verdict)
    assert found is holds
    assert told["differs"] == [name for name, status, matters in fields if status == "differs" and matters]


def side(batch: int, step_s: list[float], peak: int | None) -> dict[str, Any]:
    return {"batch": batch, "step_s": step_s, "peak_bytes": peak, "compiled_bytes": 1}


def test_steps_of_other_batches_are_compared_by_the_sample() -> None:
    found = compared(side(256, [4.0, 4.2, 9.0], 60 * GIB), side(64, [2.1, 2.1, 2.1], 120 * GIB))
    assert found["times_faster"] == pytest.approx(2.1 / 64 / (4.2 / 256))
    assert found["peak_of_theirs"] == 0.5
    assert compared(side(2, [1.0], None), side(2, [2.0, 4.0], None))["peak_of_theirs"] is None
    assert compared(side(2, [1.0], None), side(2, [2.0, 4.0], None))["times_faster"] == 3


def test_openpi_gets_its_own_batch_if_the_card_holds_it_else_the_largest() -> None:
    assert batches_to_try(None, lambda batch: batch)[0] == 256
    assert batches_to_try(100, lambda batch: batch) == [96, 64, 32, 16, 8]
    # 130.4 GiB are compiled for 256: more than the README's share of an H200, and less than that card.
    assert gpu_laws_openpi.largest(int(139.8 * GIB))[0] == (0.95, 256)
    assert gpu_laws_openpi.largest(180 * GIB)[0] == (0.9, 256)
    fraction, batch = gpu_laws_openpi.largest(80 * GIB)[0]
    assert (fraction, batch) == (0.9, 32)
    assert gpu_laws_openpi.largest(24 * GIB) == []


def test_what_is_found_is_on_the_disk_at_once_and_the_next_call_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "gpu_laws.json"
    book = Book(path, OF)
    book.put("train", State.HOLDS, steps=40)
    book.note("kills", KILL)
    book.put("kills", State.UNFINISHED, why="late")
    book.put("openpi", State.SKIPPED, why="not given")
    again = Book(path, OF)
    assert again.stages["train"] == {"state": "holds", "steps": 40}
    assert again.notes == {"kills": [KILL]}
    assert [again.is_done(name, False) for name in ("train", "kills", "verify", "openpi")] == [
        *(True, False, False, True)
    ]
    assert not again.is_done("openpi", True)
    assert json.loads(path.read_text())["of"] == OF


@pytest.mark.parametrize("other", [OF | {"rehearsal": True}, OF | {"driver": "590.1"}, OF | {"card": None}])
def test_results_of_another_machine_are_never_mixed(other: dict[str, Any], tmp_path: Path) -> None:
    Book(tmp_path / "gpu_laws.json", OF).put("train", State.HOLDS)
    with pytest.raises(Mixed, match="name another directory"):
        Book(tmp_path / "gpu_laws.json", other)
    (tmp_path / "gpu_laws.json").write_text("{")
    with pytest.raises(Mixed, match="cannot be read"):
        Book(tmp_path / "gpu_laws.json", OF)


def test_the_exit_code_says_the_worst() -> None:
    states = [{"state": state} for state in (State.HOLDS, State.SKIPPED, State.UNFINISHED, State.BROKEN)]
    codes = [exit_code({str(n): state for n, state in enumerate(states[:count])}) for count in (2, 3, 4)]
    assert codes == [0, 3, 1]


def test_every_stage_has_its_limit_and_comes_behind_what_it_needs() -> None:
    order = list(STAGES)
    assert LIMITS.keys() == STAGES.keys()
    assert all(order.index(needed) < order.index(name) for name, needed in NEEDS.items())
    # Without openpi one call is enough: its ten minutes hold the limits of what must hold.
    assert sum(LIMITS[name] for name in ("train", "kills", "verify", "kernels")) <= 9.5 * 60


@pytest.mark.parametrize(
    ("raised", "state"), [(Late("at work"), "unfinished"), (RuntimeError("exit code 2"), "broken")]
)
def test_a_stage_that_ends_badly_is_an_entry_and_the_others_go_on(
    raised: Exception, state: str, tmp_path: Path
) -> None:
    def stage(_: Place) -> tuple[bool, dict[str, Any]]:
        raise raised

    here = place(tmp_path)
    gpu_laws.carry_out("train", stage, here, 5.0)
    assert here.book.state("train") == state
    assert str(raised) in here.book.stages["train"]["why"]


def test_a_child_that_is_late_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    here = place(tmp_path)
    here.until = gpu_laws_place.time.monotonic() + 0.5
    with pytest.raises(Late, match="still at work"):
        here.run(["/bin/sh", "-c", f"sleep 60 & echo $! >{tmp_path}/pid; wait"], {})
    pid = (tmp_path / "pid").read_text().strip()
    gpu_laws_kills.gone(int(pid))
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_checkpoint_or_a_line_that_differs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"whole": ({2: "a", 4: "b"}, [1, 2, 3, 4]), "killed": ({2: "a", 4: "c"}, [1, 2, 9])}
    monkeypatch.setattr(gpu_laws_kills, "whole_steps", lambda path: list(known[path.parent.name][0]))
    monkeypatch.setattr(gpu_laws_kills, "digests", lambda run, step: known[run.name][0][step])
    monkeypatch.setattr(gpu_laws_kills, "metrics", lambda run: known[run.name][1])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert gpu_laws_kills.differs(whole, killed) == ["arrays of step 4", "lines of metrics"]
    assert gpu_laws_kills.differs(whole, whole) == []


def test_without_a_gpu_nothing_begins_but_a_rehearsal() -> None:
    rehearsed = gpu_laws.here(True)
    assert rehearsed is not None
    assert "nothing of a GPU was measured" in rehearsed["rehearsal"]
