"""Tests a run whose saves are streamed: what any run learns, killed in a save and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from harness.artifacts import Manifest, Plan
from harness.checkpoint import handlers
from harness.checkpoint.inspect import inspect
from harness.checkpoint.pieces import MadeRows
from harness.checkpoint.store import Store
from harness.model.quantize import Quantized
from harness.run.directory import RunDir
from harness.train import later
from harness.train.snapshot import save
from harness.train.state import state_from
from harness.verify.run import verify_pair
from tests.support.real_runs import STEPS, assert_same, harness, metrics, wait_for
from tests.support.session import CACHE, whole_run
from tests.support.tiny import LORA, random_params, tiny

# The trainer, each of whose chunks takes its time to be written, so that a save can be met.
SLOWLY = """
import sys, time
from harness.checkpoint import streamed
from harness.train.worker import main
real = streamed._write_chunk
def slowly(*chunk):
    time.sleep(0.05)
    return real(*chunk)
streamed._write_chunk = slowly
sys.exit(main())
"""


@pytest.fixture(scope="module")
def whole() -> Path:
    """A run that saves in the background, and that nothing interrupted."""
    return whole_run()


def _trainer(run: Path, *program: str) -> subprocess.Popen[str]:
    env = os.environ | {"HARNESS_CACHE": str(CACHE), "WANDB_MODE": "disabled"}
    command = [sys.executable, *program, str(run)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _streams(whole: Path, run: Path) -> Path:
    """A run directory before its first step, with the plan of `whole` but for its way of saving."""
    left_out = ("checkpoints", "wandb", "metrics.jsonl", "manifest.json", "memory.json")
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns(*left_out))
    plan = RunDir(run).read(Plan)
    assert plan is not None
    assert plan.chosen is not None
    levers = plan.chosen.levers.model_copy(update={"save": "streamed"})
    RunDir(run).write(plan.model_copy(update={"chosen": plan.chosen.model_copy(update={"levers": levers})}))
    return run


def test_killed_in_a_streamed_save_and_resumed_it_is_bitwise_the_run_that_was_not(
    whole: Path, tmp_path: Path
) -> None:
    run = _streams(whole, tmp_path / "killed")
    process = _trainer(run, "-c", SLOWLY)
    saves = run / "checkpoints"
    wait_for(lambda: list(saves.glob("8.orbax-checkpoint-tmp/*/ocdbt.process_0/d/*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (saves / "8").exists()
    assert [step.step for step in inspect(saves, deep=True).steps if step.complete] == [4]
    assert len(metrics(run)) == 8, "training waits while it saves"

    resumed = _trainer(run, "-m", "harness.train.worker")
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err[-3000:]
    said = [event["text"] for event in map(json.loads, out.splitlines()) if event["event"] == "say"]
    assert any("resuming from the checkpoint" in text for text in said)
    assert any(f"saved step {STEPS} while training waited" in text for text in said)
    assert_same(run, whole)
    # The program of the step, and so what was learned, does not depend on the way of saving.
    streamed, usual = RunDir(run).read(Manifest), RunDir(whole).read(Manifest)
    assert streamed is not None
    assert usual is not None
    assert streamed.step_fingerprint == usual.step_fingerprint
    assert streamed.plan.levers.save == "streamed"
    for step in (8, STEPS):
        if (whole / "checkpoints" / str(step)).is_dir():
            ours, theirs = (one / "checkpoints" / str(step) / "harness/digests.json" for one in (run, whole))
            leaves = [json.loads(file.read_text())["leaves"] for file in (ours, theirs)]
            assert leaves[0] == leaves[1]
    harness(CACHE, "inspect", str(saves), "--deep")
    verdict = verify_pair(RunDir(run), RunDir(whole))
    assert [(row.field, row.matters) for row in verdict.fields if row.status == "differs"] == [
        ("plan.save", False)
    ]
    assert verdict.verdict == "equal"


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantized_weights_are_made_dense_some_rows_at_a_time(
    bits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is what a save in the background makes of them at once."""
    recipe = tiny(*LORA, f"train.frozen={bits}")
    params = {path: jnp.asarray(value) for path, value in random_params(recipe).items()}
    state = jax.jit(lambda params: state_from(params, recipe))(params)
    most = 2 * 4096
    for module in (handlers, later):
        monkeypatch.setattr(module, "CHUNK_BYTES", most)
    made: list[int] = []
    real = Quantized.on_host

    def counted(self: Quantized, *more: object) -> object:
        found = real(self, *more)  # type: ignore[arg-type]
        made.append(found.nbytes)
        return found

    digests = []
    for streamed in (False, True):
        store = Store(tmp_path / str(streamed), keep_every_steps=1, streamed=streamed)
        given = later.made_later(state) if streamed else state
        if streamed:
            rows = [value for value in given.frozen.values() if isinstance(value, MadeRows)]
            assert len(rows) == sum(isinstance(value, Quantized) for value in state.frozen.values()) > 5
            assert any(len(list(value.groups())) > 1 for value in rows)
            monkeypatch.setattr(Quantized, "on_host", counted)
        save(store, given, step=1, norm_stats_json="{}", asset_id="a", record={})
        store.close()
        digests.append((tmp_path / str(streamed) / "1/harness/digests.json").read_text())
        report = inspect(tmp_path / str(streamed), deep=True)
        assert report.steps[0].complete
        assert report.findings == []
    assert digests[0] == digests[1]
    # A row that is larger, or a kernel that is blocked along its first axis, is made at once.
    largest = max(
        value.dtype.itemsize
        * value.codes.size
        * 8
        // value.bits
        // (value.shape[0] if value.ndim + value.axis else 1)
        for value in state.frozen.values()
        if isinstance(value, Quantized)
    )
    assert max(made) <= max(most, largest)
