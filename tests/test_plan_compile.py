"""Tests the child that compiles: its environment, its plugin, and the line that says why it failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.artifacts import Levers
from harness.plan import compile as compiler
from harness.plan.compile import Request, compiled, telling
from tests.support.tiny import tiny


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ValueError: heads differ\n", "ValueError: heads differ"),
        (
            (
                'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no\nFatal Python'
                " error: Aborted\n\nCurrent thread 0x7f:\n  File x\n"
            ),
            "ValueError: no",
        ),
        (
            "I0000 00:00:1 cuda.cc:1] no drivers\nF1128 04:41:22 1 parse.cc:234] Check failed\n*** SIGABRT\n",
            "F1128 04:41:22 1 parse.cc:234] Check failed",
        ),
        (
            (
                "jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: out of memory\nExtension modules: numpy, jaxlib"
                " (total: 2)\n"
            ),
            "RESOURCE_EXHAUSTED",
        ),
        ("error [data-invalid] a reason of ours\n", "a reason of ours"),
        ("something nobody has seen\n", "something nobody has seen"),
    ],
)
def test_why_a_compilation_ended_is_the_line_that_says_it(said: str, reason: str) -> None:
    assert reason in str(telling(said))


@pytest.mark.parametrize(
    "said", ["", "\n", "I0000 00:00:1 cuda.cc:1] no drivers\n", "Extension modules: numpy\n"]
)
def test_where_nothing_says_why_a_compilation_ended_nothing_is_invented(said: str) -> None:
    assert telling(said) is None


_TRAINER = """
import os, sys
from harness.run.surroundings import jax_variables
os.environ.update(jax_variables("cpu"))
import jax
from harness.plan.compile import Request
from harness.train.programs import lowered_step
from harness.train.setup import setup_of
from harness.train.sharding import local_layout
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
request = Request.model_validate_json(sys.stdin.read())
step = lowered_step(setup_of(request.recipe, local_layout(request.levers)), request.levers).compile({})
print(sum(event.endswith("cache_hits") for event in events), step.bytes["device"], step.program_sha256)
"""


def test_the_trainer_finds_the_program_that_the_plan_has_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    recipe = tiny()
    cameras = [camera for camera, feature in recipe.data.cameras.items() if feature]
    levers = Levers(platform="cpu", microbatch=4, prompt_tokens=16, cameras=cameras)
    request = Request(recipe=recipe, levers=levers)
    answer = compiled(request)
    done = subprocess.run(
        [sys.executable, "-c", _TRAINER],
        input=request.model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", str(answer.bytes["device"]), answer.program_sha256]


def test_the_compiler_for_a_card_of_this_machine_has_the_variables_of_its_trainer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """XLA's flags are in the key of JAX's cache, and the deterministic one makes another program."""
    seen: list[dict[str, str]] = []

    def run(*_: object, env: dict[str, str], **__: object) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        return subprocess.CompletedProcess([], 0, '{"bytes": {}}', "")

    monkeypatch.setattr(compiler.subprocess, "run", run)
    levers = Levers(platform="cuda", microbatch=1, prompt_tokens=16, cameras=["base_0_rgb"])
    here = Request(recipe=tiny(), levers=levers)
    compiler._in_child(here, ("GPU-1",))
    compiler._in_child(here.model_copy(update={"target": "a card"}))
    assert seen[0]["JAX_PLATFORMS"] == "cuda"
    assert seen[0]["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert seen[0]["XLA_FLAGS"].endswith("--xla_gpu_deterministic_ops=true")
    assert seen[1]["JAX_PLATFORMS"] == "cpu"
    assert "deterministic" not in seen[1]["XLA_FLAGS"]


def test_a_limit_of_the_address_space_is_named_where_a_child_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "refused_flags", lambda _: None)
    error = "ImportError: _tensorstore.so: failed to map segment from shared object"
    assert "ulimit" not in compiler._failure(1, error, {}, "the training step").fix
    monkeypatch.setattr(compiler.resource, "getrlimit", lambda _: (2**30, 2**30))
    assert compiler._failure(1, error, {}, "the training step").fix.startswith("ulimit -v unlimited")
