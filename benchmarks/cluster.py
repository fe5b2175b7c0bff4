"""Runs of several processes on this machine that join each other over the loopback device.

    python -m benchmarks.cluster kills [--kills 20] [--seed 0] [--scratch DIR]
    python -m benchmarks.cluster hosts [--hosts 1 2 4 8] [--steps 20] [--scratch DIR]

`kills`: a run of two processes, of which one, either, is killed by SIGKILL, in a step or in a save; all that
is left is started again, until it ends; then it is killed anew. Of each run that ends every array of its last
checkpoint and every line of metrics is compared with those of a run that was never killed. Each time the
process that is left must end within 60 s and name the other one. Exit code 1 when anything differs.

`hosts`: the same small run with one device a process: the seconds until the first step, those of a step, and
those that a save takes longer. All share this machine's cores.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.support.members import Members, ended, prepared, recipe_of, stored, trainers
from tests.support.real_runs import learned, metrics

STEPS = 12
_NAMED_S = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("kills", "hosts"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scratch", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        # Equal programs are compiled once.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(scratch) / "xla"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        if arguments.what == "hosts":
            return hosts(Path(scratch), arguments.hosts, arguments.steps)
        return kills(Path(scratch), arguments.kills, random.Random(arguments.seed))


def kills(root: Path, count: int, rng: random.Random) -> int:
    whole = prepared(root / "whole", recipe_of(STEPS))
    say("the run that nothing interrupts")
    ended(trainers(whole, whole))
    done, runs, wrong = 0, 0, 0
    while done < count:
        run = prepared(root / f"run-{runs}", recipe_of(STEPS))
        while done < count and not (run / "checkpoints" / str(STEPS)).is_dir():
            killed = kill_one(run, rng)
            if killed is None:
                break
            done += 1
            say(f"kill {done} of {count}: {killed}")
            wrong += "wrong" in killed
        if not (run / "checkpoints" / str(STEPS)).is_dir():
            ended(trainers(run, run))
        runs += 1
        a, b = stored(run / "checkpoints", STEPS), stored(whole / "checkpoints", STEPS)
        same = a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in b)
        equal = same and learned(run) == learned(whole)
        say(f"run {runs}: {'equal' if equal else 'DIFFERS'}")
        wrong += not equal
    print(f"{done} kills in {runs} runs; {wrong} of them wrong")
    return 1 if wrong else 0


def kill_one(run: Path, rng: random.Random) -> str | None:
    """What was killed and what the other one said of it. None if the run ended before."""
    victim, moment, after = rng.randrange(2), rng.choice(("step", "save")), rng.randint(1, 5)
    first = len(metrics(run))
    members = trainers(run, run)

    def is_time() -> bool:
        if moment == "save":
            return any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*")) and len(metrics(run)) > first
        return len(metrics(run)) >= min(first + after, STEPS - 1)

    while not is_time():
        if any(process.poll() is not None for process in members.processes):
            members.wait()
            return None
        time.sleep(0.005)
    members.processes[victim].kill()
    before = time.monotonic()
    members.wait()
    took = time.monotonic() - before
    error = members.ending(1 - victim)
    good = error.code == "peer-lost" and f"process {victim} " in error.what and took < _NAMED_S
    return f"process {victim} in a {moment}; {error.what!r} after {took:.1f} s{'' if good else ' wrong'}"


def hosts(root: Path, counts: list[int], steps: int) -> int:
    print("| processes | until the first step, s | a step, s | a save, s |\n|---|---|---|---|")
    for count in counts:
        recipe = recipe_of(steps, f"train.global_batch={max(counts)}")
        run = prepared(root / f"hosts-{count}", recipe, devices=count, fsdp=1)
        for warm in (False, True):
            if warm:
                run = prepared(root / f"hosts-{count}-warm", recipe, devices=count, fsdp=1)
            before = time.time()
            ended(Members([["harness.train.worker", str(run)]] * count, devices=count))
        times = [line["time"] for line in metrics(run)]
        between = np.diff(times)
        # The line after a save waits for it.
        saves = [between[step - 1] for step in range(4, steps, 4)]
        plain = statistics.median(between)
        print(
            f"| {count} | {times[0] - before:.1f} | {plain:.2f} | {statistics.median(saves) - plain:.2f} |",
            flush=True,
        )
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
