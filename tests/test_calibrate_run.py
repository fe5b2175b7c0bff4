"""Tests a calibration from its first stage to its last: what is kept, gone on with, marked and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Calibration, CardState
from harness.calibrate.card import check_free, target_of
from harness.calibrate.child import Ended, _outcome
from harness.calibrate.run import calibrate
from harness.calibrate.stages import STAGES
from harness.errors import HarnessError
from harness.plan.calibrated import root
from harness.probe.readings import SLOWING
from harness.run.directory import RunDir
from harness.units import GIB
from tests.support.calibrating import COOL, HELD, Heard, target, way
from tests.support.planned import MACHINE, gpu, with_gpus


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NOTE", str(tmp_path / "ran"))
    return tmp_path / "cache"


def ran(tmp_path: Path) -> list[str]:
    path = tmp_path / "ran"
    return [line.rpartition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []


def file_of() -> Path:
    (found,) = root().glob("*/calibration.json")
    return found


def states(made: Calibration) -> list[str]:
    return [stage.state for stage in made.stages]


def test_each_stage_is_written_before_the_next_begins(tmp_path: Path) -> None:
    there: list[list[str]] = []
    ears = Heard(lambda _: there.append(states(Calibration.model_validate_json(file_of().read_text()))))
    done = calibrate(target(), None, 1, way("plan 5.2", "skip", "well"), ears)
    assert there == [[], ["measured"], ["measured", "skipped"]]
    assert states(done.calibration) == ["measured", "skipped", "measured"]
    assert done.complete
    assert done.stopped is None
    assert "compiling the step" in ears.told
    assert Calibration.model_validate_json(file_of().read_text()) == done.calibration
    # The stage sees this one card, and nothing of it is measured by another.
    assert (tmp_path / "ran").read_text().splitlines()[0] == "plan 5.2 GPU-0"


def test_a_calibration_goes_on_with_what_is_left(tmp_path: Path) -> None:
    first = calibrate(target(), None, 1, way("plan 5.2", "crash", "well"), Heard())
    assert states(first.calibration) == ["measured", "failed", "measured"]
    assert not first.complete
    (tmp_path / "ran").unlink()
    again = way("plan 5.2", "crash", "well")
    mended = [again.stages[0], again.stages[1]._replace(work=again.stages[0].work), again.stages[2]]
    second = calibrate(target(), None, 1, again._replace(stages=mended), Heard())
    assert ran(tmp_path) == ["plan 5.2"]
    assert second.complete
    assert second.calibration.stages[0] == first.calibration.stages[0]
    assert second.calibration.stages[2] == first.calibration.stages[2]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("crash", "SIGSEGV while compiling the step"),
        ("killed", "the kernel does that where host memory is short"),
        ("memory", "out of memory while compiling the step: jaxlib.XlaRuntimeError"),
        ("raise", "ValueError: the loss of step 1 is nan"),
        ("silent", "exit code 0 while compiling the step"),
        ("refuse", "[compile-failed] XLA did not compile"),
    ],
)
def test_a_stage_that_fails_loses_none_of_the_others(what: str, says: str) -> None:
    done = calibrate(target(), None, 1, way(what, "well"), Heard())
    assert states(done.calibration) == ["failed", "measured"]
    assert says in str(done.calibration.stages[0].reason)
    assert not done.complete


def test_a_stage_that_hangs_ends_at_its_limit_with_what_it_did() -> None:
    begun = time.monotonic()
    done = calibrate(target(), None, 1, way("hang", limit_s=0.6), Heard())
    assert time.monotonic() - begun < 20
    assert states(done.calibration) == ["timeout"]
    assert done.calibration.stages[0].reason == "not done after 1 s, while compiling the step"


def test_a_stage_that_says_nothing_ends_at_its_limit_too() -> None:
    ended = Ended(0, None, "", "", late=True, stopped=False, states=[])
    assert _outcome(ended, 240) == ("timeout", "not done after 240 s")


def test_the_minutes_end_a_stage_and_leave_the_rest_for_the_next_time(tmp_path: Path) -> None:
    done = calibrate(target(), None, 1 / 60, way("hang", "well", least_s=0.2), Heard())
    assert states(done.calibration) == ["timeout"]
    assert done.calibration.unknown["stage 1 well"].startswith("not begun: no time is left")
    assert not done.complete
    assert ran(tmp_path) == ["hang"]
    later = calibrate(target(), None, 1, way("well", "well"), Heard())
    assert "stage 1 well" not in later.calibration.unknown


def test_where_jax_does_not_start_no_other_stage_is_begun(tmp_path: Path) -> None:
    done = calibrate(target(), None, 1, way("unavailable", "well"), Heard())
    assert ran(tmp_path) == ["unavailable"]
    assert "no other can do better" in done.calibration.unknown["stage 1 well"]


@pytest.mark.parametrize(
    "other",
    [{"driver": "570.1"}, {"uuid": "GPU-9"}, {"jax": "0.1"}, {"jaxlib": "0.1"}, {"step_sha256": "0"}],
    ids=lambda other: next(iter(other)),
)
def test_another_card_driver_version_or_source_is_never_mixed(tmp_path: Path, other: dict[str, Any]) -> None:
    output = tmp_path / "mine"
    first = calibrate(target(), output, 1, way("plan 5.2"), Heard()).calibration
    RunDir(output).write(first.model_copy(update=other))
    before = (output / "calibration.json").read_bytes()
    ears = Heard()
    second = calibrate(target(), output, 1, way("plan 7.5"), ears)
    assert (output / "calibration.json").read_bytes() == before
    assert second.directory.parent == output
    assert [stage.plan.seconds for stage in second.calibration.stages if stage.plan] == [[7.5]]
    assert any("is of another" in text and next(iter(other)).split("_")[0] in text for text in ears.told)
    # The one beside it is gone on with, not begun a third time.
    assert calibrate(target(), output, 1, way("plan 7.5"), Heard()).directory == second.directory
    assert ran(tmp_path) == ["plan 5.2", "plan 7.5"]
    # Not even a file that somebody has put into that directory is overwritten.
    RunDir(second.directory).write(first.model_copy(update=other))
    with pytest.raises(HarnessError) as refused:
        calibrate(target(), output, 1, way("plan 7.5"), Heard())
    assert refused.value.code == "calibration-of-another"


def test_in_the_cache_each_has_its_own_directory_and_the_older_one_is_named() -> None:
    calibrate(target(), None, 1, way("well"), Heard())
    ears, newer = Heard(), target()
    newer = newer._replace(machine=newer.machine.model_copy(update={"driver_version": "590.1"}))
    calibrate(newer, None, 1, way("well"), ears)
    assert len(list(root().glob("nvidia-h200-*/calibration.json"))) == 2
    assert any("with another driver" in text for text in ears.told)


@pytest.mark.parametrize("reason", sorted(SLOWING))
def test_what_was_measured_under_throttling_is_marked_and_measured_again(tmp_path: Path, reason: str) -> None:
    hot = COOL.model_copy(update={"throttle": [reason, "power limit"], "temperature_c": 91.0})
    slow = way("hang", "well", states=[COOL, COOL, hot])
    # A stage is looked at while it runs; this one ends by itself after a look.
    slow = slow._replace(stages=[slow.stages[1]], command=_late(slow.command))
    done = calibrate(target(), None, 1, slow, Heard())
    (stage,) = done.calibration.stages
    assert stage.marks == [f"throttled: {reason}"]
    assert stage.during is not None
    assert stage.during.most_temperature_c == 91
    assert not stage.usable
    calibrate(target(), None, 1, way("x", "well")._replace(stages=slow.stages), Heard())
    assert len(ran(tmp_path)) == 2


def test_the_power_limit_is_recorded_and_is_no_throttling() -> None:
    at_limit = COOL.model_copy(update={"throttle": ["power limit"], "power_w": 700.0})
    usual = way("well", states=[COOL, COOL, at_limit])
    done = calibrate(target(), None, 1, usual._replace(command=_late(usual.command)), Heard())
    (stage,) = done.calibration.stages
    assert stage.usable
    assert stage.during is not None
    assert stage.during.throttle == ["power limit"]


def _late(command: Any) -> tuple[str, ...]:
    """The command, which works for so long that the card is looked at while it does."""
    python, option, flag, code = command
    return (python, option, flag, code.replace("if what ==", "time.sleep(0.9)\nif what ==", 1))


@pytest.mark.parametrize(
    ("card", "state", "says"),
    [
        ({"free": 100.0}, COOL, "40.0 GiB are held"),
        ({}, COOL.model_copy(update={"utilization_percent": 60.0}), "utilization of 60 %"),
        ({}, COOL.model_copy(update={"largest_compute_bytes": GIB}), "holds 1.0 GiB"),
    ],
)
def test_a_busy_card_is_refused_before_anything_is_measured_or_written(
    tmp_path: Path, card: dict[str, Any], state: CardState, says: str
) -> None:
    with pytest.raises(HarnessError) as refused:
        calibrate(target(**card), None, 1, way("well", states=[state]), Heard())
    assert refused.value.code == "gpu-busy"
    assert says in str(refused.value.got)
    assert ran(tmp_path) == []
    assert not root().exists()


def test_one_look_at_what_has_just_ended_is_no_busy_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.calibrate.card._BETWEEN_S", 0.0)
    looks = [COOL.model_copy(update={"utilization_percent": 90.0}), COOL, COOL]
    assert check_free(target(), lambda: looks.pop(0)) == COOL


def test_who_comes_onto_the_card_later_is_noticed() -> None:
    done = calibrate(target(), None, 1, way("well", states=[COOL, COOL, HELD]), Heard())
    assert done.calibration.stages[0].marks == [
        "not alone on the card: 30.0 GiB more are in use than at the start"
    ]
    assert done.calibration.plans() == []


def test_without_a_gpu_there_is_nothing_to_calibrate(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarnessError) as refused:
        target_of(MACHINE)
    assert refused.value.code == "no-gpu"
    monkeypatch.setattr("harness.calibrate.card.cuda_plugins", lambda: [])
    with pytest.raises(HarnessError) as refused:
        target_of(with_gpus(gpu()))
    assert refused.value.code == "no-target-compiler"


def test_the_freest_card_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.calibrate.card.cuda_plugins", lambda: ["xla_cuda12"])
    assert target_of(with_gpus(gpu(0, free=10), gpu(1, free=40))).device.gpu.index == 1


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        '{"card": "x"}',
        '{"card": "x", "jax": "1", "measured": "2026-01-01", "stages": [{"name": "a", "state": "measured"}]}',
        '{"card": "x", "jax": "1", "measured": "2026-01-01", "total_bytes": -1}',
    ],
)
def test_a_file_that_is_no_calibration_is_refused_and_left(tmp_path: Path, body: str) -> None:
    (tmp_path / "calibration.json").write_text(body)
    with pytest.raises(HarnessError) as refused:
        calibrate(target(), tmp_path, 1, way("well"), Heard())
    assert refused.value.code == "artifact-invalid"
    assert "rm " in str(refused.value.fix)
    assert (tmp_path / "calibration.json").read_text() == body
    assert ran(tmp_path) == []


_DRIVER = """
import sys
from pathlib import Path
from tests.support.calibrating import Heard, target, way
from harness.calibrate.run import calibrate
ears = Heard(lambda name: print(name, flush=True))
done = calibrate(target(), Path(sys.argv[1]), 1, way("plan 5.2", "hang", "well"), ears)
print(done.stopped.name, done.complete)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_what_is_measured_kept(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", _DRIVER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "hang" in line:
                break
        while "hang" not in ran(tmp_path):
            time.sleep(0.02)
        process.send_signal(number)
        said = process.stdout.read()
    assert process.returncode == 0
    assert said.split() == [number.name, "False"]
    written = json.loads((tmp_path / "out/calibration.json").read_text())
    assert [stage["state"] for stage in written["stages"]] == ["measured"]
    assert written["unknown"]["stage 1 hang"] == "not begun: it was stopped"
    assert ran(tmp_path) == ["plan 5.2", "hang"]
    assert not _alive("-S", "hang")


def _alive(*words: str) -> list[str]:
    """Processes of this test's stages that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if os.environ["NOTE"].encode() in path.read_bytes():
                found.append(path.parent.joinpath("cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if all(word in line for word in words)]


def test_the_stages_are_those_that_were_asked_for_with_the_most_telling_first() -> None:
    assert [stage.name for stage in STAGES][:2] == ["full", "ceilings"]
    works = {stage.name: stage.work for stage in STAGES}
    assert works["host_state"].pool_bytes == 22 * GIB
    assert works["moments_8bit"].changes == {"train.optimizer.moments": "int8"}
    assert works["frozen_vision"].changes == {"train.trained": "lora_frozen_vision"}
    assert works["full"].exact
    assert len({stage.name for stage in STAGES}) == len(STAGES)
