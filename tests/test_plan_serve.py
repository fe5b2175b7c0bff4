"""Tests `harness plan --serve`: what is counted, what is predicted from it, which questions are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.artifacts import Host, Machine, ServingPlan
from harness.cli import app
from harness.errors import HarnessError
from harness.plan import serving
from harness.plan.cards import CARDS
from harness.plan.compile import in_child
from harness.plan.launches import Totals, kernels_of, totals
from harness.plan.place import absent, present
from harness.plan.serving import Answer, Question, floor_seconds, plan_serving, steps_bytes
from harness.recipe.load import load_recipe
from harness.show.serving_plan import serving_view
from harness.units import GIB
from tests.support.tiny import tiny

FORM = """\
HloModule jit_f, is_scheduled=true

%fused (p0: bf16[18,4,8], p1: s32[]) -> bf16[4,8] {
  %p0 = bf16[18,4,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %slice = bf16[1,4,8]{2,1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,4,8}
  ROOT %bitcast = bf16[4,8]{1,0} bitcast(%slice)
}

%updated (p0: f32[100,8], p1: f32[2,8], p2: s32[]) -> f32[100,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = f32[2,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %dus = f32[100,8]{1,0} dynamic-update-slice(%p0, %p1, %p2)
}

%body (t: (s32[], bf16[18,4,8], bf16[16,4])) -> (s32[], bf16[18,4,8], bf16[16,4]) {
  %t = (s32[], bf16[18,4,8]{2,1,0}, bf16[16,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %w = bf16[18,4,8]{2,1,0} get-tuple-element(%t), index=1
  %x = bf16[16,4]{1,0} get-tuple-element(%t), index=2
  %one = bf16[4,8]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %dot = (bf16[16,8]{1,0}, s8[1024]{0}) custom-call(%x, %one), custom_call_target="matmul", config=CONTRACTED
  ROOT %r = (s32[], bf16[18,4,8]{2,1,0}, bf16[16,4]{1,0}) tuple(%i, %w, %x)
}

ENTRY %main (a: bf16[18,4,8], b: bf16[16,4], c: f32[100,8], d: f32[2,8]) -> f32[100,8] {
  %a = bf16[18,4,8]{2,1,0} parameter(0)
  %b = bf16[16,4]{1,0} parameter(1)
  %c = f32[100,8]{1,0} parameter(2)
  %d = f32[2,8]{1,0} parameter(3)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[18,4,8]{2,1,0}, bf16[16,4]{1,0}) tuple(%zero, %a, %b)
  %loop = (s32[], bf16[16,4]{1,0}) while(%start), condition=%cond, body=%body, backend_config=TRIPS
  %own = f32[2,16,8]{2,1,0} custom-call(%b, %d), custom_call_target="__gpu$xla.gpu.triton", api_version=OWN
  %copy = f32[2,8]{1,0} copy(%d)
  ROOT %out = f32[100,8]{1,0} fusion(%c, %copy, %zero), kind=kLoop, calls=%updated
}
"""
CONTRACTED = '{"lhs_contracting_dimensions":["1"]}'
TRIPS = '{"known_trip_count":{"n":"18"}}'
PROGRAM = FORM.replace("CONTRACTED", CONTRACTED).replace("TRIPS", TRIPS)


def test_kernels_bytes_and_operations_are_those_of_the_scheduled_program() -> None:
    kernels = {each.name: each for each in kernels_of(PROGRAM)}
    assert {name: each.times for name, each in kernels.items()} == {
        "one": 18,
        "dot": 18,
        "own": 1,
        "copy": 1,
        "out": 1,
    }
    # One layer of the stack, and its copy; the layer's index.
    assert (kernels["one"].read, kernels["one"].written) == (64 + 4, 64)
    # The workspace of a product moves nothing.
    assert (kernels["dot"].read, kernels["dot"].written) == (128 + 64, 256)
    assert kernels["dot"].operations == 2 * 16 * 8 * 4
    # A kernel of our own sums over the last axis of its first operand.
    assert (kernels["own"].read, kernels["own"].written) == (128 + 64, 2 * 16 * 8 * 4)
    assert kernels["own"].operations == 2 * (2 * 16 * 8) * 4
    # Updated in place: two rows of the hundred.
    assert (kernels["out"].read, kernels["out"].written) == (64 + 4, 64)
    moved = 18 * (132 + 448) + 128 + 132 + 192 + 1024
    assert totals([*kernels.values()]) == Totals(39, moved, 18 * 1024 + 2048)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no entry"),
        (PROGRAM.replace(TRIPS, "{}"), "how often the loop loop runs"),
        (PROGRAM.replace(CONTRACTED, "{}"), "which axes the product dot sums over"),
    ],
)
def test_a_program_that_cannot_be_counted_is_not_guessed(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        kernels_of(text)


@pytest.mark.parametrize(
    ("card", "ms"), [("h100", 4.4), ("h200", 3.8), ("rtx_4090", 21.5), ("rtx_5090", 15.5)]
)
def test_floors_are_those_of_the_arithmetic(card: str, ms: float) -> None:
    """Two cameras, 32 tokens, the figures computed for this project from parameters and data sheets."""
    model = load_recipe("pi05_libero", []).model
    assert 1e3 * floor_seconds(model, 2, 32, 1, CARDS[card]) == pytest.approx(ms, abs=0.1)
    assert steps_bytes(model, 10) == pytest.approx(6.23e9, rel=1e-3)


def made(question: Question, _uuids: Any = (), *, recompile: bool = False) -> Answer:
    assert not recompile
    size = {
        "device": 6 * GIB + question.prompt_tokens,
        "argument": 6 * GIB,
        "temp": 0,
        "output": 0,
        "alias": 0,
    }
    return Answer(bytes=size, weights=5 * GIB, work=[(2, 10**9, 0), (3, 8, 10**12)])


def test_a_plan_tells_what_is_compiled_from_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "answered", made)
    recipe = load_recipe("pi05_libero", [])
    plan = plan_serving(recipe, absent("h200", None, None), 1, lambda _: None)
    assert [shape.prompt_tokens for shape in plan.shapes] == [24, recipe.model.prompt_tokens]
    shape = plan.shapes[0]
    assert (shape.kernels, shape.moved_bytes, shape.operations) == (5, 2 * 10**9 + 24, 3 * 10**12)
    assert shape.work_seconds == pytest.approx(2e9 / (0.8 * 4.8e12) + 3e12 / (0.4 * 989e12), rel=1e-3)
    assert shape.launch_seconds == pytest.approx(5 * 1.7e-6)
    assert shape.seconds == pytest.approx((shape.work_seconds or 0) + 5 * 1.7e-6)
    assert plan.fits
    assert "fitted to one measurement" in plan.model
    assert plan == ServingPlan.model_validate_json(plan.model_dump_json())
    small = plan_serving(recipe, absent("h200", 6 * GIB, None), 1, lambda _: None)
    assert small.fits is False
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(serving_view(small), crop=False)
    text = console.export_text()
    assert "no: 6.0 GiB compiled" in text
    assert "predicted, not measured" in text


def test_on_a_cpu_bytes_are_compiled_and_seconds_are_unknown() -> None:
    recipe = tiny("model.prompt_tokens=16", "model.action_horizon=3")
    place = present(
        recipe,
        Machine(host=Host(ram_available_bytes=GIB)),
        device="cpu",
        vram_bytes=None,
        host_ram_bytes=None,
    )
    (shape,) = plan_serving(recipe, place, 1, lambda _: None).shapes
    assert shape.device_bytes > shape.breakdown["weights"] > 0
    assert shape.seconds is None
    assert set(shape.unknown) >= {"seconds", "kernels"}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--batch", "2"], "options-together"),
        (["--serve", "--matrix"], "options-together"),
        (["--serve", "--exact"], "options-together"),
        (["--serve", "--wait"], "options-together"),
        (["--serve", "--backend", "ours"], "options-together"),
        (["--serve", "--gpu", "h200", "--batch", "0"], "batch-invalid"),
        (["--serve", "--gpu", "h200", "--batch", "100000"], "batch-invalid"),
        (["--serve", "--gpu", "a40:2"], "serve-devices"),
        (["--serve", "--gpu", "voodoo"], "gpu-unknown"),
        (["--serve", "--gpu", "v100"], "gpu-too-old"),
    ],
)
def test_bad_questions_are_refused_before_anything_is_compiled(
    options: list[str], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "in_child", None)
    done = CliRunner().invoke(app, ["plan", "--recipe", "pi05_libero", *options])
    said = done.exception
    assert isinstance(said, HarnessError)
    assert said.code == code


def test_the_verb_answers_json_and_1_when_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "answered", made)
    asked = ["plan", "--recipe", "pi05_libero", "--serve", "--json", "--gpu", "rtx_4090", "--batch", "4"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0
    plan = ServingPlan.model_validate(json.loads(done.stdout))
    assert (plan.batch, plan.device, plan.cameras) == (4, "rtx_4090", ["base_0_rgb", "left_wrist_0_rgb"])
    assert CliRunner().invoke(app, [*asked, "--vram-gib", "4"]).exit_code == 1


def test_a_child_that_fails_names_the_program_that_serves() -> None:
    with pytest.raises(HarnessError) as raised:
        in_child("harness.plan.serving", "{}", platform="cpu", cuda=False, what="the program that serves")
    assert raised.value.code == "compile-failed"
    assert "XLA did not compile the program that serves" in str(raised.value)
