"""A stand-in for an openpi checkout, for tests.

Its interpreter prints openpi's output and leaves openpi's checkpoints. These are copies of one that openpi's
own code wrote (golden/), renamed into place as Orbax does. standin.json specifies the faults.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from harness.openpi.table import COMMIT
from tests.support.openpi_checkpoints import openpi_checkpoint

HEAD = COMMIT + "0" * (40 - len(COMMIT))
# Given the words that the harness starts openpi with: entry, job, options.
FAKE = '''
import json, math, os, shutil, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
sys.path.append(str(Path(sys.argv[1]).parent))
import entry as openpi_entry

# As openpi's entry does first.
openpi_entry._end_with_parent()
plan = json.loads((here / "standin.json").read_text())
job = json.loads(Path(sys.argv[2]).read_text())
train, checkpoints = job["train"], Path(job["checkpoint_dir"])
started = {"argv": sys.argv[1:], "job": job, "env": dict(os.environ), "pid": os.getpid()}
(here / "started.jsonl").open("a").write(json.dumps(started) + "\\n")
attempt = len((here / "started.jsonl").read_text().splitlines())
say = lambda *words: print(*words, flush=True)


def happens(name, step=None):
    """Once, unless the plan says always."""
    wanted = plan.get(name)
    return wanted is not None and (step is None or wanted == step) and (attempt == 1 or plan.get("always"))


if happens("refused"):
    say(json.dumps({"refused": plan["refused"]}))
    sys.exit(2)
if happens("signal_at_import"):
    os.kill(os.getpid(), plan["signal_at_import"])
if happens("exit_at_import"):
    sys.exit(plan["exit_at_import"])
told = {"commit": plan["commit"], "device": "cpu", "checkpoints": str(checkpoints), "python": "3.11.9"}
told |= {name: job[name] for name in ("parameters_total", "parameters_trained")}
told |= {"packages": {"jax": "0.5.3", "wandb": plan.get("wandb", "0.19.11")}, "lock_sha256": "ab" * 32}
told |= {"unlike_lock": plan.get("unlike_lock", [])}
for line in plan.get("before", []):
    say(line)
say(json.dumps(told))
say("10:00:00.000 [I] Running on: machine                       (1:train.py:196)")
saved = checkpoints.iterdir() if checkpoints.is_dir() else []
steps = sorted(int(path.name) for path in saved if path.name.isdigit())
if checkpoints.is_dir() and not train["resume"]:
    raise FileExistsError(f"Checkpoint directory {checkpoints} already exists.")
checkpoints.mkdir(parents=True, exist_ok=True)
start = steps[-1] + 1 if steps and steps != [0] else 0
batch = "[0].images['base_0_rgb']: (4, 224, 224, 3)@float32"
say(f"10:00:01.000 [I] Initialized data loader:\\n{batch} (1:train.py:228)")
say("10:00:02.000 [I] Initialized train state:\\nPaliGemma: x (1:train.py:240)")


def save(step):
    scratch = checkpoints / f"{step}.orbax-checkpoint-tmp-1"
    shutil.copytree(here / "golden_step", scratch, copy_function=shutil.copy)
    time.sleep(plan.get("save_s", 0))
    if happens("disk_full", step):
        raise OSError(28, "No space left on device", str(scratch))
    scratch.rename(checkpoints / str(step))
    for old in (int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()):
        if old != step and old % train["keep_period"]:
            shutil.rmtree(checkpoints / str(old))


pending = []
for step in range(start, train["num_train_steps"]):
    time.sleep(plan.get("step_s", 0))
    if happens("signal_at", step):
        os.kill(os.getpid(), plan["signal"])
    if happens("memory_at", step):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")
    if happens("error_at", step):
        raise ValueError("something that nobody foresaw")
    # The batch is that of the steps since this process began: a loader that begins anew.
    pending.append(math.nan if happens("nan_at", step) else 2.0 / (1 + 0.3 * (step - start)))
    if step % train["log_interval"] == 0:
        mean = sum(pending) / len(pending)
        norm = plan.get("param_norm", 69.5708)
        say(f"Step {step}: grad_norm={2 * mean:.4f}, loss={mean:.4f}, param_norm={norm:.4f}")
        pending = []
    done = f"{step}.0it/{train['num_train_steps']}.0it"
    say(f"10:00:03.000 [I] Progress on: {done} rate:1.0s/it (1:tqdm_logging.py:145)")
    if (step % train["save_interval"] == 0 and step > start) or step == train["num_train_steps"] - 1:
        save(step)
say("10:00:09.000 [I] Waiting for checkpoint manager to finish (1:train.py:277)")
'''


def standin(root: Path, **plan: Any) -> Path:
    """A checkout at the pinned commit, whose openpi does as `plan` says; see `FAKE`."""
    for name in ("scripts/train.py", "src/openpi/__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / ".git").mkdir(exist_ok=True)
    (root / ".git/HEAD").write_text(HEAD + "\n")
    step = openpi_checkpoint("full", root / "golden")
    os.rename(step / "4", root / "golden_step")
    (root / "standin.json").write_text(json.dumps({"commit": HEAD} | plan))
    (root / "fake.py").write_text(FAKE)
    python = root / ".venv/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {root}/fake.py "$@"\n')
    python.chmod(0o755)
    return root


def started(root: Path) -> list[dict[str, Any]]:
    """How openpi was started, each time: `argv`, `job`, `env` and `pid`."""
    return [json.loads(line) for line in (root / "started.jsonl").read_text().splitlines()]
