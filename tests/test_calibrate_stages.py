"""Tests the programs of the stages on the CPU: the real ones, in their own processes, on a small model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import jax
import pytest

from harness.artifacts import CardState, Machine
from harness.calibrate import ceilings, stage, steps
from harness.calibrate.card import check_free
from harness.calibrate.child import Watched, run_stage
from harness.calibrate.stages import POOL_BYTES, Answer, Request, Work
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.units import GIB
from tests.support.calibrating import measured, target
from tests.support.planned import gpu, with_gpus

LEVERS = measured(1.0, 1, 1).levers.model_copy(update={"platform": "cpu", "prompt_tokens": 16})
SMALL = {"model.image_size": 28, "data.augment": False}


def on_cpu(work: Work, **more: Any) -> Request:
    return Request(work=work, platform="cpu", **more)


def child(work: Work) -> tuple[Any, list[str]]:
    """The stage as it ended, and what it said that it does."""
    heard: list[str] = []
    how = Watched(CardState, heard.append, lambda: False)
    ended, code = run_stage("it", on_cpu(work), 200, how)
    assert ended is not None
    assert code == ""
    return ended, heard


def test_a_plan_runs_as_it_is_compiled() -> None:
    work = Work(kind="plan", recipe="smoke", changes=SMALL, levers=LEVERS, steps=1)
    ended, heard = child(work)
    assert ended.reason is None
    plan = ended.plan
    assert plan is not None
    assert heard[0].startswith("compiling the step")
    assert heard[-1] == "step 2 of 2"
    assert len(plan.seconds) == 1
    assert plan.compiled_bytes > 0
    assert plan.changes == SMALL | {"weights.source": None, "train.global_batch": 1}
    # What a CPU's allocator does not keep is not known, and never 0.
    assert plan.peak_bytes is None
    assert "keeps no such figure" in plan.unknown["peak_bytes"]
    assert plan.predicted_s is None


def test_the_ceilings_of_a_cpu_are_measured_by_the_same_programs() -> None:
    ended, heard = child(Work(kind="ceilings", recipe="smoke", rows=1, chained=2, bytes=2**16))
    found = ended.ceilings
    assert found is not None
    assert len(found.products) == 7
    assert all(one.chained == 2 and one.flops_per_s > 0 for one in found.products)
    assert found.copy_bytes_per_s is not None
    assert found.both_ways_bytes_per_s is not None
    assert heard[-1] == "the link to the host"


def test_sampling_has_the_latency_of_the_program_that_serves() -> None:
    ended, _ = child(Work(kind="sampling", recipe="smoke", changes=SMALL))
    (one,) = ended.sampling or []
    assert one.least_s <= one.median_s <= one.most_s
    assert (one.batch, one.cameras, one.prompt_tokens, one.program) == (1, 2, 24, "serve")


def test_the_products_are_the_models_own_and_one_is_aligned() -> None:
    model = load_recipe("pi05_libero").model
    shapes = ceilings.product_shapes(model, 32, 570, 512)
    assert (18240, 2048, 16384) in shapes
    assert (18240, 16384, 2048) in shapes
    assert (18240, 2048, 2048) in shapes
    assert {(16384, 1152, 4304), (16384, 1152, 4352), (16384, 4304, 1152)} <= {*shapes}


def test_no_product_of_a_chain_is_left_out() -> None:
    """The program has one product in a loop of so many turns, and the loop carries all of its result."""
    seen: list[str] = []

    def seconds(run: Any, state: Any) -> float:
        seen.append(str(jax.make_jaxpr(run)(state)))
        return 20.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "_donated_seconds", seconds)
        assert ceilings.product_seconds(8, 4, 6, 20) == 1.0
        assert ceilings.copy_rate(400, 10) == 2 * 400 * 10 / 20
    assert seen[0].count("dot_general") == 1
    assert "length=20" in seen[0]
    assert "bf16[8,6]" in seen[0]
    assert "optimization_barrier" in seen[1]


def test_on_a_gpu_a_chain_is_one_product_a_turn_and_copies_nothing() -> None:
    """The program that XLA makes for an H200, which need not be here."""
    program = r"""
import re
import jax
from harness.calibrate import ceilings
from harness.plan.cards import CARDS
from harness.plan.compile import ABSENT_GPU_OPTIONS
from harness.train import device
device.start()
from jax.experimental import topologies
target = CARDS["h200"].target()
there = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1").devices[0]
def seconds(run, state):
    place = jax.sharding.SingleDeviceSharding(there)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state)
    lowered = jax.jit(run, donate_argnums=0).trace(state).lower(lowering_platforms=("cuda",))
    text = lowered.compile(compiler_options=ABSENT_GPU_OPTIONS).as_text()
    turns = re.findall(r'known_trip_count":{"n":"(\d+)"}', text)
    copies = re.findall(r"= (?:bf16|f32)\[[\d,]+\]\S* copy\(", text)
    print(turns, text.count("custom-call(") + text.count(" dot("), len(copies))
    return 1.0
ceilings._donated_seconds = seconds
ceilings.product_seconds(1824, 1152, 4304, 20)
ceilings.copy_rate(2**20, 20)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["['20'] 1 0", "['20'] 0 0"], done.stderr[-2000:]


def test_without_pinned_memory_the_links_are_left_out_with_the_reason() -> None:
    machine = with_gpus(wsl=True, kernel="5.15-microsoft-standard-WSL2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "probe", lambda _: machine)
        patch.setattr(stage, "_start", lambda: "cpu")
        for name in ("JAX_PLATFORMS", "XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
            patch.setenv(name, "")
        patch.setattr(stage, "jax_variables", lambda _: {})
        patch.setattr(ceilings, "product_seconds", lambda *_: 1.0)
        patch.setattr(ceilings, "copy_rate", lambda *_: 1.0)
        held = stage.answer(on_cpu(Work(kind="plan", pool_bytes=POOL_BYTES)), lambda _: None)
        links = stage.answer(on_cpu(Work(kind="ceilings")), lambda _: None).ceilings
    assert str(held.skipped).startswith("no pinned host memory under WSL (kernel 5.15")
    assert links is not None
    assert links.to_host_bytes_per_s is None
    assert links.unknown["both_ways_bytes_per_s"] == "this device has no pinned host memory"
    assert len(links.products) == 8


@pytest.mark.parametrize(
    ("work", "total", "says"),
    [
        (Work(kind="plan", pool_bytes=22 * GIB), 12 * GIB, "this card has no 22.0 GiB for the pool"),
        (Work(kind="plan"), 80 * GIB, "no plan of it fits here"),
    ],
)
def test_a_plan_that_cannot_be_had_is_skipped_with_the_reason(work: Work, total: int, says: str) -> None:
    def never() -> str:
        raise AssertionError("JAX was started")

    nothing = Machine(host=with_gpus(ram_available_bytes=2**20).host)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_planned", lambda *_: measured_nothing())
        found = steps.measured_plan(on_cpu(work, total_bytes=total), nothing, never, lambda _: None)
    assert str(found.skipped).startswith(says)
    assert found.plan is None


def measured_nothing() -> Any:
    from harness.artifacts import Plan

    sizes = {"parameters_total": 1, "parameters_trained": 1}
    return Plan(recipe="x", recipe_sha256="", device="x", chosen=None, candidates=[], **sizes)


def test_a_pool_is_a_share_of_the_card_and_said_where_it_is_another() -> None:
    work = Work(kind="plan", pool_bytes=22 * GIB)
    assert steps._fraction(on_cpu(work, total_bytes=88 * GIB), None) == 0.25
    right = measured(1.0, limit_bytes=int(21.9 * GIB))
    wrong = measured(1.0, limit_bytes=30 * GIB)
    assert steps._pool_is_other(work, right) == {}
    assert "22.00 GiB was asked for, and JAX made 30.00" in steps._pool_is_other(work, wrong)["limit_bytes"]
    assert steps._pool_is_other(Work(kind="plan"), wrong) == {}


@pytest.mark.parametrize(
    ("free", "share"), [(80.0, (80 - 1.5) / 80), (40.0, (40 - 1.5) / 80), (2.0, 0.5), (None, 0.5)]
)
def test_the_pool_of_a_stage_without_a_plan_is_what_is_free(free: float | None, share: float) -> None:
    card = gpu(total=80, free=free)
    if free is None:
        card = card.model_copy(update={"free_bytes": None})
    assert stage.pool_share(with_gpus(card)) == pytest.approx(share)
    assert stage.pool_share(with_gpus()) == 0.5


def test_of_an_instance_of_a_card_the_whole_cards_bytes_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    request = on_cpu(Work(kind="context"), used_bytes=5).model_copy(update={"index": None})
    found = ceilings.context_of(request, {"bytes_limit": 7})
    assert found.context_bytes is None
    assert "MIG" in found.unknown["context_bytes"]
    whole = CardState(used_bytes=60 * GIB, largest_compute_bytes=50 * GIB, temperature_c=50.0)
    monkeypatch.setattr("harness.calibrate.card.read_state", lambda _: whole)
    of_all = target()
    instance = of_all._replace(device=of_all.device._replace(mig=True, total=20 * GIB, free=19 * GIB))
    assert of_all.look() == whole
    state = check_free(instance, instance.look, looks=1)
    assert (state.used_bytes, state.temperature_c) == (None, 50)
    held = instance._replace(device=instance.device._replace(free=10 * GIB))
    with pytest.raises(HarnessError) as refused:
        check_free(held, held.look, looks=1)
    assert refused.value.code == "gpu-busy"


@pytest.mark.parametrize(("seconds", "accumulated"), [(None, 8), (5.9, 8), (12.0, 4), (40.0, 2), (400.0, 2)])
def test_a_long_step_accumulates_less_and_stays_a_loop(seconds: float | None, accumulated: int) -> None:
    assert steps.shortened(measured(1.0).levers, seconds).accumulation_steps == accumulated
    alone = measured(1.0, 32, 1).levers
    assert steps.shortened(alone, 400.0) == alone


@pytest.mark.parametrize(
    ("used", "before", "stats", "context", "says"),
    [
        (11 * GIB, GIB, {"bytes_limit": 9 * GIB}, GIB, ""),
        (11 * GIB, GIB, {"bytes_limit": 9 * GIB, "pool_bytes": 8 * GIB}, 2 * GIB, ""),
        (4 * GIB, GIB, {"bytes_limit": 9 * GIB}, None, "less is in use than JAX's pool has"),
        (None, GIB, {"bytes_limit": 9 * GIB}, None, "NVML did not tell"),
        (11 * GIB, None, {"bytes_limit": 9 * GIB}, None, "NVML did not tell"),
        (11 * GIB, GIB, {}, None, "has no pool"),
    ],
)
def test_the_context_is_what_is_in_use_outside_of_the_pool(
    used: int | None, before: int | None, stats: dict[str, int], context: int | None, says: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "read_state", lambda _: CardState(used_bytes=used))
        found = ceilings.context_of(on_cpu(Work(kind="context"), used_bytes=before), stats)
    assert found.context_bytes == context
    assert says in found.unknown.get("context_bytes", "")


def test_what_a_stage_prints_is_its_answer_or_its_refusal() -> None:
    """No GPU is here: JAX refuses, and no other device is taken in its place."""
    request = Request(work=Work(kind="context"), platform="cuda").model_dump_json()
    command = [sys.executable, "-m", "harness.calibrate.stage"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    *_, last = done.stdout.splitlines()
    found = Answer.model_validate(json.loads(last)["answer"])
    assert found.code == "device-unavailable"
    assert found.context is None


def test_a_stage_ends_with_its_parent() -> None:
    code = (
        "import os, subprocess, sys\n"
        "from harness.supervise.signals import SUPERVISOR\n"
        "env = os.environ | {SUPERVISOR: str(os.getpid())}\n"
        "child = subprocess.Popen([sys.executable, '-m', 'harness.calibrate.stage'], stdin=subprocess.PIPE,"
        " env=env)\n"
        "print(child.pid, flush=True)\n"
        "import time; time.sleep(2.5)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.wait()
        deadline = time.monotonic() + 10
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
