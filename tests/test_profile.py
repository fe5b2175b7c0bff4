"""Tests `harness profile`: what a trace and the text of a program say of a step; and how steps are traced."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from harness.artifacts import Profile, Traced
from harness.cli import app
from harness.errors import HarnessError
from harness.flow.trainer_openpi import Openpi
from harness.flow.trainer_ours import OURS
from harness.profile.profile import profile
from harness.profile.source import origins
from harness.profile.trace import Event, covered, events_of
from harness.run.directory import RunDir
from harness.train.tracing import Tracer

PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/somewhere/harness/train/step.py"
2 "/somewhere/harness/model/siglip.py"
3 "/somewhere/flax/nnx/module.py"
4 "/somewhere/harness/train/update.py"
5 "/somewhere/harness/model/lora.py"
6 "/somewhere/harness/model/gemma.py"

FunctionNames
1 "make_step.<locals>.step"
2 "Projection.__call__"
3 "update"
4 "Gemma._scan"

FileLocations
1 {file_name_id=1 function_name_id=1 line=74 end_line=74 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=35 end_line=35 column=1 end_column=2}
3 {file_name_id=3 function_name_id=2 line=9 end_line=9 column=1 end_column=2}
4 {file_name_id=4 function_name_id=3 line=12 end_line=12 column=1 end_column=2}
5 {file_name_id=5 function_name_id=2 line=57 end_line=57 column=1 end_column=2}
6 {file_name_id=6 function_name_id=4 line=300 end_line=300 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=2}
5 {file_location_id=6 parent_frame_id=2}
6 {file_location_id=5 parent_frame_id=6}

%inner (p0: f32[4,8], p1: f32[8,2]) -> f32[4,2] {
  %p0 = f32[4,8]{1,0} parameter(0)
  %p1 = f32[8,2]{1,0} parameter(1)
  %d = f32[4,2]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/jvp()/dot_general" stack_frame_id=3}
  ROOT %a = f32[4,2]{1,0} negate(%d), metadata={op_name="jit(step)/neg" stack_frame_id=1}
}

ENTRY %main (x: f32[4,8], y: f32[8,2]) -> f32[4,2] {
  %x = f32[4,8]{1,0} parameter(0)
  %y = f32[8,2]{1,0} parameter(1)
  %gemm_fusion.1 = f32[4,2]{1,0} fusion(%x, %y), kind=kOutput, calls=%inner, metadata={op_name="jit(step)/neg" stack_frame_id=1}
  %multiply.2 = f32[4,2]{1,0} multiply(%gemm_fusion.1, %gemm_fusion.1), metadata={op_name="jit(step)/transpose(jvp())/checkpoint/rematted_computation/mul" stack_frame_id=6}
  %subtract.3 = f32[4,2]{1,0} subtract(%multiply.2, %gemm_fusion.1), metadata={op_name="jit(step)/transpose(jvp())/sub" stack_frame_id=2}
  %all-reduce.4 = f32[4,2]{1,0} all-reduce(%subtract.3), metadata={op_name="jit(step)/transpose(jvp())/sum" stack_frame_id=2}
  %copy.5 = f32[4,2]{1,0} copy(%all-reduce.4)
  ROOT %add.6 = f32[4,2]{1,0} add(%copy.5, %copy.5), metadata={op_name="jit(step)/add" stack_frame_id=4}
}
"""  # noqa: E501

# Two steps on one GPU, in microseconds: stream 1 computes from 0 to 9, stream 2 copies from 8 to 12.
GPU = """
planes {
  name: "/device:GPU:0"
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  event_metadata { key: 1 value { id: 1 name: "void gemm_kernel<float>" } }
  event_metadata { key: 2 value { id: 2 name: "multiply_2" } }
  event_metadata { key: 3 value { id: 3 name: "MemcpyH2D" } }
  event_metadata { key: 4 value { id: 4 name: "a kernel of nobody" } }
  lines {
    name: "Stream #1(Compute)"
    events { metadata_id: 1 offset_ps: 0 duration_ps: 4000000 stats { metadata_id: 1 str_value: "gemm_fusion.1" } }
    events { metadata_id: 1 offset_ps: 4000000 duration_ps: 2000000 stats { metadata_id: 1 str_value: "gemm_fusion.1" } }
    events { metadata_id: 2 offset_ps: 6000000 duration_ps: 2000000 }
    events { metadata_id: 4 offset_ps: 8000000 duration_ps: 1000000 }
  }
  lines {
    name: "Stream #2(MemcpyH2D)"
    events { metadata_id: 3 offset_ps: 8000000 duration_ps: 4000000 stats { metadata_id: 1 str_value: "copy.5" } }
  }
  lines { name: "XLA Ops" events { metadata_id: 2 offset_ps: 0 duration_ps: 9000000 } }
}
planes { name: "/host:CPU" }
"""  # noqa: E501


def traced(run: Path, data: bytes = b"", program: str = PROGRAM, **more: Any) -> Path:
    directory = run / "profile"
    directory.mkdir(parents=True)
    (directory / "it.xplane.pb").write_bytes(data or ProfileData.text_proto_to_serialized_xspace(GPU))
    (directory / "step.hlo.txt").write_text(program)
    facts = {
        "first_step": 3,
        "steps": 2,
        "seconds": 20e-6,
        "batch": 8,
        "platform": "gpu",
        "device": "NVIDIA H200",
        "devices": 1,
        "jax": "0.10.2",
        "trace": "it.xplane.pb",
    }
    RunDir(directory).write(Traced(**(facts | more)))
    return run


def test_an_instruction_belongs_to_the_part_that_its_innermost_known_line_is_of() -> None:
    found = {name: (one.part, one.turn, one.source) for name, one in origins(PROGRAM).items()}
    # The fusion has the name of its last instruction; the product in it took the time. Flax is no part.
    assert found["gemm_fusion.1"] == ("vision", "forward", "model/siglip.py:35 Projection.__call__")
    assert found["multiply.2"] == ("language and actions", "recomputed", "model/gemma.py:300 Gemma._scan")
    assert found["subtract.3"][:2] == ("vision", "backward")
    assert found["all-reduce.4"][:2] == ("between devices", "backward")
    assert found["copy.5"] == ("copies within the device", "", None)
    assert found["add.6"][:2] == ("update", "")


def test_a_trace_of_a_gpu_is_told_by_part_with_the_copies_that_nothing_hides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = profile(traced(tmp_path / "run"))
    assert (found.step_s, found.busy_s) == (pytest.approx(10e-6), pytest.approx(6e-6))
    assert (found.link_s, found.link_alone_s) == (pytest.approx(2e-6), pytest.approx(1.5e-6))
    rows = {(row.part, row.turn): row for row in found.rows}
    vision = rows["vision", "forward"]
    assert (vision.seconds, vision.launches, vision.operations) == (pytest.approx(3e-6), 1, 2 * 4 * 8 * 2)
    assert vision.bytes == 4 * (4 * 8 + 8 * 2 + 4 * 2)
    assert rows["language and actions", "recomputed"].seconds == pytest.approx(1e-6)
    assert rows["copies to the device", ""].seconds == pytest.approx(2e-6)
    assert found.unnamed_s == pytest.approx(0.5e-6)
    assert [kernel.name for kernel in found.kernels[:2]] == ["gemm_fusion.1", "MemcpyH2D"]
    app(["profile", str(tmp_path / "run")], standalone_mode=False)
    text = capsys.readouterr().out
    assert "device idle  40% of the step" in text
    assert "25% of it while something computes" in text
    assert RunDir(tmp_path / "run").read(Profile) is not None


def test_another_program_with_instructions_of_the_same_names_is_told_apart(tmp_path: Path) -> None:
    when = "metadata_id: 1 offset_ps: 4000000 duration_ps: 2000000"
    text = GPU.replace(when, when + ' stats { metadata_id: 2 str_value: "jit_other" }')
    text = text.replace(
        "  event_metadata",
        '  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }\n  event_metadata',
        1,
    )
    # Since jaxlib 0.10 a trace may have planes that are no device.
    text += 'planes { name: "/device:CUSTOM:Megascale Trace" lines { name: "Stream #1" } }'
    found = profile(traced(tmp_path / "run", ProfileData.text_proto_to_serialized_xspace(text)))
    rows = {row.part: row.seconds for row in found.rows}
    assert (rows["vision"], rows["other programs"]) == (pytest.approx(2e-6), pytest.approx(1e-6))
    assert "gemm_fusion.1 of jit_other" in [kernel.name for kernel in found.kernels]
    assert found.unnamed_s == pytest.approx(0.5e-6)


def test_what_several_devices_do_at_once_is_counted_for_each() -> None:
    events = [Event("a", "k", 0, 10), Event("a", "k", 5, 12), Event("b", "k", 0, 10), Event("a", "k", 20, 21)]
    assert covered(events) == pytest.approx(23e-9)
    assert covered([]) == 0.0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"trace": None}, "profile-missing"),
        ({"trace": "gone.xplane.pb"}, "profile-unreadable"),
        ({"trace": "step.hlo.txt"}, "profile-unreadable"),
        ({"program": "no program"}, "profile-unreadable"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_command(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(HarnessError) as caught:
        profile(traced(tmp_path / "a run", **changes))
    assert caught.value.code == code
    assert f"harness train --resume --run '{tmp_path / 'a run'}' --profile 3" in caught.value.fix


def test_a_trace_without_a_kernel_and_a_trace_that_leads_out_are_refused(tmp_path: Path) -> None:
    none = ProfileData.text_proto_to_serialized_xspace('planes { name: "/host:CPU" }')
    with pytest.raises(HarnessError, match="holds no kernel of NVIDIA H200"):
        profile(traced(tmp_path / "none", none))
    (tmp_path / "secret").write_bytes(b"")
    with pytest.raises(HarnessError, match="file-leaves-root"):
        profile(traced(tmp_path / "out", trace="../../secret"))


class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    warn = say


def tracer(run: Path, steps: int, said: Listener) -> Tracer:
    step = jax.jit(lambda x: jnp.tanh(x @ x)).lower(jnp.ones((64, 64))).compile()
    layout = SimpleNamespace(mesh=jax.make_mesh((1,), ("data",)))
    job = SimpleNamespace(
        run=RunDir(run),
        profile=steps,
        recipe=SimpleNamespace(train=SimpleNamespace(global_batch=4)),
    )
    run.mkdir(exist_ok=True)
    return Tracer(job, SimpleNamespace(run=step, setup=SimpleNamespace(layout=layout)), said)  # type: ignore[arg-type]


@pytest.mark.parametrize(("saves_at", "steps"), [(None, 3), (4, 2)])
def test_steps_are_traced_from_the_third_on_and_no_save(
    tmp_path: Path, saves_at: int | None, steps: int
) -> None:
    said = Listener()
    traces = tracer(tmp_path / "run", 3, said)
    value, took = jnp.ones((64, 64)), 0.0
    for number in range(1, 9):
        traces.begin(value)
        value = traces._compiled.run(value)
        took += traces.end(number, value, saves=number == saves_at)
    traces.close()
    facts = RunDir(tmp_path / "run/profile").read(Traced)
    assert facts is not None
    assert (facts.first_step, facts.steps, facts.batch, facts.devices) == (3, steps, 4, 1)
    assert took > 0
    assert said.said == [f"traced {steps} steps; where their time went: harness profile {tmp_path / 'run'}"]
    found = profile(tmp_path / "run")
    assert found.rows
    assert all(kernel.launches == 1 for kernel in found.kernels)


def test_a_run_that_is_too_short_says_that_nothing_was_traced(tmp_path: Path) -> None:
    said = Listener()
    traces = tracer(tmp_path / "run", 3, said)
    for number in (1, 2):
        traces.begin(None)
        assert traces.end(number, None, saves=True) == 0.0
    traces.close()
    assert said.said == ["no step was profiled: a profile begins with step 3 of a start, and this one had 2"]


@pytest.mark.parametrize("harm", ["a file in its way", "another profiler", "a full disk at its end"])
def test_a_profile_that_fails_is_a_warning_and_no_end_of_the_training(tmp_path: Path, harm: str) -> None:
    said = Listener()
    traces = tracer(tmp_path / "run", 2, said)
    if harm == "a file in its way":
        (tmp_path / "run/profile").touch()
    elif harm == "a full disk at its end":
        (tmp_path / "run/profile/step.hlo.txt").mkdir(parents=True)
    with jax.profiler.trace(str(tmp_path / "other")) if harm == "another profiler" else nullcontext():
        for number in range(1, 7):
            traces.begin(None)
            traces.end(number, None, saves=False)
        traces.close()
    (warning,) = said.said
    assert warning.startswith("no step was profiled: ")
    assert warning.endswith("; training goes on")
    assert RunDir(tmp_path / "run/profile").read(Traced) is None


def test_an_error_ends_the_trace(tmp_path: Path) -> None:
    traces = tracer(tmp_path / "run", 2, Listener())
    for _ in range(3):
        traces.begin(None)
    traces.close()
    with jax.profiler.trace(str(tmp_path / "another")):
        pass


def test_openpis_trainer_traces_nothing() -> None:
    assert "--profile=3" in OURS.profiled(3).command(RunDir(Path("run")))
    assert OURS.profiled(0) == OURS
    assert Openpi(1, False).profiled(0) == Openpi(1, False)
    with pytest.raises(HarnessError, match="traces no steps"):
        Openpi(1, False).profiled(3)


def test_a_text_that_is_no_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="Failed to parse"):
        events_of(b"\xff" * 100, set())
