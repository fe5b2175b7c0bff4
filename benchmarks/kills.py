"""Kills runs with SIGKILL at random times of their whole life, resumes them every time, and compares them
with one that was never killed.

    python -m benchmarks.kills [--kills 100] [--shards 2] [--seed 0] [--scratch DIR]

A small model on the packaged sample, a checkpoint every step. Half of the kills wait for a save to begin and
fall into it; the others fall at any time of the start (planning, compiling, loading) or between steps; one
run in six compiles with an empty cache. Most kills take the supervisor, with which the trainer dies; every
third takes the trainer alone, and the supervisor goes on by itself. Attempts differ in their number of loader
processes. After every kill each checkpoint that is kept is restored as a resume would, which checks every
array against its sha256, and these are compared with the uninterrupted run's of the same step; so are the
lines of metrics, with the digest of the frames that each step saw. Of each run that ends, all of that again.
Exit code 1 when anything differs or is lost. Progress goes to stderr, the table to stdout.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.kept import Kept, metrics

STEPS = 20
KEEP_EVERY = 5
SMALL = [f"--set={key}" for key in ("model.image_size=56", "data.augment=false", "train.save_every_steps=1")]
WORKERS = ("", "", "1", "2")
VICTIMS = ("supervisor", "supervisor", "trainer")
MOMENTS = ("save", "save", "save", "start", "start", "step")
_COLD_RUNS = 6
_POLL_S = 0.005
_LONGEST_STEPS_S = 1.5
_HANGS_S = 900


class Kill(NamedTuple):
    """`phase` is where the run was: start, step or save. `resumed` is the step that was whole then."""

    phase: str
    victim: str
    workers: str
    resumed: int
    lost: list[int]
    corrupt: list[str]
    differs: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--shards", type=int, default=2, help="runs that are killed side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        root = Path(scratch)
        say(f"the uninterrupted run of {STEPS} steps")
        start_s = uninterrupted(root)
        kept = Kept(root / "whole", STEPS)
        counts = [
            arguments.kills // arguments.shards + (i < arguments.kills % arguments.shards)
            for i in range(arguments.shards)
        ]
        with ThreadPoolExecutor(arguments.shards) as pool:
            shards = [
                pool.submit(Shard(root, i, random.Random(f"{arguments.seed}/{i}"), kept, start_s).go, count)
                for i, count in enumerate(counts)
            ]
            done = [shard.result() for shard in shards]
    kills = [kill for one, _ in done for kill in one]
    wrong = [text for _, problems in done for text in problems]
    return report(kills, wrong)


def report(kills: list[Kill], wrong: list[str]) -> int:
    """Prints the table; the exit code."""
    print(
        "| killed during | kills | of these the trainer alone | exact resumes | lost checkpoints | corrupt"
        " loads |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for phase in ("start", "step", "save", None):
        those = [kill for kill in kills if phase in (kill.phase, None)]
        alone, exact = (
            sum(kill.victim == "trainer" for kill in those),
            sum(not kill.differs for kill in those),
        )
        print(
            f"| {phase or 'all'} | {len(those)} | {alone} | {exact} | {sum(len(kill.lost) for kill in those)}"
            f" | {sum(len(kill.corrupt) for kill in those)} |"
        )
    print(f"\nloader processes: {dict(collections.Counter(kill.workers or 'threads' for kill in kills))}")
    print(
        "\n".join(wrong)
        or "every run that ended equals the uninterrupted one: metrics, frames, every array of every kept"
        " checkpoint"
    )
    bad = [kill for kill in kills if kill.lost or kill.corrupt or kill.differs]
    print("\n".join(map(str, bad)), end="\n" if bad else "")
    return 1 if bad or wrong else 0


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def uninterrupted(root: Path) -> float:
    """Seconds from the start of a run to its first line of metrics, when everything is compiled; the run
    keeps every step.
    """
    command = start_command(root / "first", resume=False)
    subprocess.run(
        command,
        env=environment(root, "", root / "jax"),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    began, whole = time.monotonic(), root / "whole"
    keeps = start_command(whole, resume=False, keep_every=1)
    with subprocess.Popen(
        keeps, env=environment(root, "", root / "jax"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not metrics(whole) and process.poll() is None:
            time.sleep(_POLL_S)
        took = time.monotonic() - began
    if process.returncode != 0:
        raise SystemExit(f"the uninterrupted run ended with exit code {process.returncode}")
    return took


def start_command(run: Path, *, resume: bool, keep_every: int = KEEP_EVERY) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "harness.cli",
        "train",
        f"--run={run}",
        "--recipe=smoke",
        f"--steps={STEPS}",
    ]
    return (
        [*command[:5], "--resume"]
        if resume
        else [*command, *SMALL, f"--set=train.keep_every_steps={keep_every}"]
    )


def environment(root: Path, workers: str, compiled: Path) -> dict[str, str]:
    given = {
        "HARNESS_CACHE": str(root / "cache"),
        "WANDB_MODE": "disabled",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
    }
    return os.environ | given | ({"HARNESS_LOADER_WORKERS": workers} if workers else {})


class Shard:
    """Runs that are killed one after the other."""

    def __init__(self, root: Path, number: int, chance: random.Random, kept: Kept, start_s: float) -> None:
        self._root, self._number, self._chance, self._kept, self._start_s = (
            root,
            number,
            chance,
            kept,
            start_s,
        )
        self._run, self._runs, self._process = root / f"killed-{number}-0", 0, None
        self._workers, self._log = "", root / f"log-{number}"

    def go(self, count: int) -> tuple[list[Kill], list[str]]:
        """The kills, and what is wrong with the runs that ended."""
        kills: list[Kill] = []
        problems: list[str] = []
        while len(kills) < count and len(problems) < 5:
            kill = self._kill_once()
            if kill is None:
                problems += self._ended()
                continue
            kills.append(kill)
            say(f"{self._run.name}: kill {len(kills)} of {count}: {kill}")
        while self._process is None or self._process.poll() is None or self._process.returncode != 0:
            self._begin()
            assert self._process is not None
            self._process.wait(_HANGS_S)
        return kills, problems + self._ended()

    def _begin(self) -> None:
        """Starts or resumes the run, unless a supervisor goes on by itself."""
        if self._process is not None and self._process.poll() is None:
            return
        self._workers = self._chance.choice(WORKERS)
        cold = self._runs % _COLD_RUNS == self._number
        compiled = self._root / (f"{self._run.name}-jax" if cold else "jax")
        resume = (self._run / "recipe.yaml").is_file() and any(
            (self._run / name).exists() for name in ("manifest.json", "metrics.jsonl", "checkpoints")
        )
        command = start_command(self._run, resume=resume)
        self._process = subprocess.Popen(
            command,
            env=environment(self._root, self._workers, compiled),
            stdout=subprocess.DEVNULL,
            stderr=self._log.open("ab"),
        )

    def _kill_once(self) -> Kill | None:
        """One kill, or None when the run ended before."""
        self._begin()
        assert self._process is not None
        before, old = self._kept.whole(self._run), leftovers(self._run)
        moment, victim = self._chance.choice(MOMENTS), self._chance.choice(VICTIMS)
        if not self._wait(moment):
            return None
        trainer = trainer_of(self._process.pid)
        if victim == "trainer" and trainer is not None:
            # Stopped, so that what the kill left is looked at before the supervisor goes on.
            self._process.send_signal(signal.SIGSTOP)
            os.kill(trainer, signal.SIGKILL)
        else:
            victim = "supervisor"
            self._process.kill()
            self._process.wait()
        gone(trainer)
        phase = (
            "save"
            if leftovers(self._run) - old
            else "step"
            if len(metrics(self._run)) > max([*before, 0])
            else "start"
        )
        kill = Kill(
            phase,
            victim,
            self._workers,
            max(self._kept.whole(self._run), default=0),
            self._lost(before),
            *self._kept.compare(self._run),
        )
        if victim == "trainer":
            self._process.send_signal(signal.SIGCONT)
        return kill

    def _lost(self, before: list[int]) -> list[int]:
        """Checkpoints that were whole, must be kept, and are not there any more."""
        now = self._kept.whole(self._run)
        must = [step for step in before if step % KEEP_EVERY == 0]
        return sorted({*must} - {*now}) + (
            [max(before)] if before and max(now, default=0) < max(before) else []
        )

    def _wait(self, moment: str) -> bool:
        """Whether the run still goes on when its moment has come."""
        assert self._process is not None
        deadline = time.monotonic() + _HANGS_S
        if moment == "start":
            # A supervisor that goes on by itself has planned already.
            time.sleep(self._chance.random() * self._start_s)
            return self._process.poll() is None
        old, lines = leftovers(self._run), len(metrics(self._run))
        while not (leftovers(self._run) - old if moment == "save" else len(metrics(self._run)) != lines):
            if self._process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise SystemExit(f"{self._run} has hung")
            time.sleep(_POLL_S)
        time.sleep(self._chance.random() * (0.1 if moment == "save" else _LONGEST_STEPS_S))
        return self._process.poll() is None

    def _ended(self) -> list[str]:
        """What is wrong with the run that ended; the next one is begun after it."""
        assert self._process is not None
        code = self._process.wait()
        if code == 2 and len(metrics(self._run)) < STEPS:
            # The supervisor had gone on as often as it may, or without getting further; now a person goes on.
            why = next(
                (line for line in reversed(self._log.read_text().splitlines()) if line.startswith("error")),
                "no reason given",
            )
            say(f"{self._run.name}: the supervisor gave up: {why}")
            self._process = None
            return [] if "[killed]" in why else [f"{self._run.name}: {why}"]
        corrupt, differs = self._kept.compare(self._run, again=True)
        problems = [
            f"{self._run.name}: {text}"
            for text in (*corrupt, *differs, *([f"exit code {code}"] if code else []))
        ]
        if max(self._kept.whole(self._run), default=0) != STEPS or len(metrics(self._run)) != STEPS:
            problems.append(
                f"{self._run.name}: {len(metrics(self._run))} lines, checkpoints"
                f" {self._kept.whole(self._run)}"
            )
        say(f"{self._run.name} ended: {problems or 'equal to the uninterrupted run'}")
        shutil.rmtree(self._run)
        self._runs += 1
        self._run, self._process = self._root / f"killed-{self._number}-{self._runs}", None
        return problems


def leftovers(run: Path) -> set[tuple[str, int]]:
    """Saves under way or interrupted, by name and inode."""
    found = set()
    for path in (run / "checkpoints").glob("*.orbax-checkpoint-tmp"):
        try:
            found.add((path.name, path.stat().st_ino))
        except OSError:
            continue
    return found


def trainer_of(supervisor: int) -> int | None:
    """The process id of the trainer that a supervisor has started."""
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        return next(
            (
                int(child)
                for child in children
                if b"harness.train.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
            ),
            None,
        )
    except OSError:
        return None


def gone(pid: int | None) -> None:
    """Waits until the kernel has ended the process."""
    deadline = time.monotonic() + _HANGS_S
    while pid is not None and time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(_POLL_S)


if __name__ == "__main__":
    sys.exit(main())
