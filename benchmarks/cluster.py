"""Runs of several processes on this machine that join each other over the loopback device.

    python -m benchmarks.cluster kills --scratch DIR [--kills 20] [--seed 0] [--resume]
    python -m benchmarks.cluster hosts --scratch DIR [--hosts 1 2 4 8] [--steps 20] [--resume]

`kills`: a run of two processes, of which one, either, is killed by SIGKILL, in a step or in a save. Both are
started again, until the run ends; then another run is killed. Of each run that ends every array of its last
checkpoint and every line of metrics is compared with those of a run that was never killed. Each time the
process that is left must end within 60 s and name the other one. Exit code 1 when anything differs.

`hosts`: the same small run with one device a process. All share this machine's cores, so CPU seconds of a
process tell more than those of the clock.

Both write a line a result into DIR, and end well when stopped: --resume goes on behind the last line. Half a
minute of CPU a kill; 15 processes, ten seconds of CPU each, for `hosts`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifacts import Dataset
from harness.data.dataset import describe
from harness.recipe.load import load_recipe
from harness.run.directory import RECIPE, RunDir
from tests.support.members import Members, ended, prepared, recipe_of, stored, trainers
from tests.support.real_runs import learned, metrics

STEPS = 12
_NAMED_S = 60
QUICKLY_COMPILED = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("kills", "hosts"))
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="go on with what stands in --scratch")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_FLAGS", QUICKLY_COMPILED)
    # Every start compiles, that of a process alone too.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    root = arguments.scratch / arguments.what
    if root.exists() and not arguments.resume:
        sys.exit(f"{root} is there already; --resume goes on with it")
    root.mkdir(parents=True, exist_ok=True)
    lines = Lines(root / "results.jsonl")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        if arguments.what == "hosts":
            hosts(root, lines, arguments.hosts, arguments.steps)
        else:
            kills(root, lines, arguments.kills, arguments.seed)
    except KeyboardInterrupt:
        print("stopped; --resume goes on")
    return tables(lines.all)


class Lines:
    """The results so far, a line of JSON each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.all: list[dict[str, Any]] = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        )

    def add(self, **line: Any) -> None:
        self.all.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), file=sys.stderr, flush=True)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.all if line["kind"] == kind]


def kills(root: Path, lines: Lines, count: int, seed: int) -> None:
    whole = root / "whole"
    if not is_done(whole):
        shutil.rmtree(whole, ignore_errors=True)
        ended(trainers(*[prepared(whole, recipe_of(STEPS))] * 2))
    # That of the run that goes on may be an earlier one than today's.
    recipe = load_recipe(str(whole / RECIPE))
    read = RunDir(whole).read(Dataset)
    if read is None or read.sha256 != describe(recipe).sha256:
        sys.exit(f"{root} was begun with another dataset than today's; begin anew elsewhere")
    while len(lines.of("kill")) < count or len(lines.of("run")) < number_of_runs(lines):
        number = len(lines.of("run"))
        run = root / f"run-{number}"
        if not run.exists():
            prepared(run, recipe)
        while not is_done(run):
            kill = len(lines.of("kill"))
            killed = kill_one(run, random.Random(f"{seed}-{kill}")) if kill < count else None
            if killed is not None:
                lines.add(kind="kill", run=number, **killed)
            elif not is_done(run):
                ended(trainers(run, run))
        a, b = stored(run / "checkpoints", STEPS), stored(whole / "checkpoints", STEPS)
        same = a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in b)
        lines.add(kind="run", run=number, arrays=len(b), equal=same and learned(run) == learned(whole))


def number_of_runs(lines: Lines) -> int:
    return max((line["run"] + 1 for line in lines.of("kill")), default=0)


def is_done(run: Path) -> bool:
    return (run / "checkpoints" / str(STEPS)).is_dir() and len(metrics(run)) == STEPS


def kill_one(run: Path, rng: random.Random) -> dict[str, Any] | None:
    """What was killed and what the other one said of it. None if the run ended before."""
    victim, moment, after = rng.randrange(2), rng.choice(("step", "save")), rng.randint(1, 5)
    first = len(metrics(run))
    members = trainers(run, run)

    def is_time() -> bool:
        if moment == "save":
            return any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*")) and len(metrics(run)) > first
        return first + after <= len(metrics(run)) < STEPS

    try:
        while not is_time():
            if any(process.poll() is not None for process in members.processes):
                statuses = members.wait()
                if set(statuses) == {0}:
                    return None
                raise SystemExit(f"ended before it was killed: {statuses}\n{members.errors(1)[-3000:]}")
            time.sleep(0.005)
        members.processes[victim].kill()
        step, before = len(metrics(run)), time.monotonic()
        statuses = members.wait()
    finally:
        for process in members.processes:
            process.kill()
    took = time.monotonic() - before
    error = members.ending(1 - victim)
    named = error.code == "peer-lost" and f"process {victim} " in error.what and took < _NAMED_S
    return {
        "victim": victim,
        "moment": moment,
        "step": step,
        "seconds": round(took, 1),
        "status": statuses[1 - victim],
        "named": named,
        "what": error.what,
    }


def hosts(root: Path, lines: Lines, counts: list[int], steps: int) -> None:
    done = {line["processes"] for line in lines.of("hosts")}
    for count in [count for count in counts if count not in done]:
        run = root / f"hosts-{count}"
        shutil.rmtree(run, ignore_errors=True)
        prepared(run, recipe_of(steps, f"train.global_batch={max(counts)}"), devices=count, fsdp=1)
        before, used = time.monotonic(), cpu_s()
        members = Members([["harness.train.worker", str(run)]] * count, devices=count)
        seen: dict[str, float] = {}
        while any(process.poll() is None for process in members.processes):
            for event in members.said(0):
                seen.setdefault(event["event"], time.monotonic() - before)
            time.sleep(0.02)
        ended(members)
        times = [line["time"] for line in metrics(run)]
        between = np.diff(times)
        saves = set(range(4, steps, 4))
        plain = statistics.median(float(value) for step, value in enumerate(between, 1) if step not in saves)
        lines.add(
            kind="hosts",
            processes=count,
            joined=seen.get("peers", 0.0),
            first_step=seen["step"],
            step=plain,
            save=statistics.median(float(between[step - 1]) for step in saves) - plain,
            cpu=(cpu_s() - used) / count,
            loss=metrics(run)[-1]["loss"],
        )


def cpu_s() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tables(lines: list[dict[str, Any]]) -> int:
    """Prints what `lines` tell. The exit code: 1 if anything is wrong."""
    of = {kind: [line for line in lines if line["kind"] == kind] for kind in ("kill", "run", "hosts")}
    wrong = [line for line in lines if not line.get("named", True) or not line.get("equal", True)]
    if of["kill"]:
        equal = {line["run"]: line["equal"] for line in of["run"]}
        print(
            "| kill | of process | in a | after step | the other one ended after | named it | run equal |\n"
            "|---|---|---|---|---|---|---|"
        )
        for number, line in enumerate(of["kill"], 1):
            print(
                f"| {number} | {line['victim']} | {line['moment']} | {line['step']} | {line['seconds']} s |"
                f" {'yes' if line['named'] else 'NO'} |"
                f" {({True: 'yes', False: 'NO'}).get(equal.get(line['run']), 'not ended')} |"
            )
        good = sum(line["named"] and bool(equal.get(line["run"])) for line in of["kill"])
        moments = Counter(f"process {line['victim']} in a {line['moment']}" for line in of["kill"])
        print(f"\n{good} of {len(of['kill'])} kills: named, resumed, bitwise equal; {dict(moments)}")
    if of["hosts"]:
        print(
            "| processes | joined, s | first step after, s | a step, s | a save, s | CPU s a process |\n"
            "|---|---|---|---|---|---|"
        )
        for line in of["hosts"]:
            print(
                f"| {line['processes']} | {line['joined']:.1f} | {line['first_step']:.1f} |"
                f" {line['step']:.2f} | {line['save']:.2f} | {line['cpu']:.1f} |"
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
