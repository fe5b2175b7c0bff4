"""The stage of gpu_laws.py that kills a run and resumes it; it is compared with one left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_laws_book import KILLS, judged_kills, moment_of, victim_of
from benchmarks.gpu_laws_place import Late, Place, sound, tail
from benchmarks.kept import digests, metrics
from benchmarks.kills import gone, leftovers, trainer_of
from harness.run.steps import whole_steps

_POLL_S = 0.005


def kills(place: Place) -> tuple[bool, dict[str, Any]]:
    known, wrong = (list(place.book.notes.get(name, [])) for name in ("kills", "wrong at an end"))
    if not known:
        # What another file of results belonged to.
        for left in place.root.glob("killed-*"):
            shutil.rmtree(left)
    while True:
        number = len(place.book.notes.get("runs that ended", []))
        run = place.root / f"killed-{number}"
        if ended(place, run):
            # A run that ended before it was killed often enough makes room for another.
            for text in wrong_at_the_end(place, run):
                wrong.append(text)
                place.book.note("wrong at an end", text)
            if len(known) >= KILLS or wrong:
                return judged_kills(known, wrong)
            place.book.note("runs that ended", run.name)
            continue
        with going_on(place, run) as process:
            begun = time.time()
            while len(known) < KILLS and (kill := kill_once(place, run, process, len(known), begun)):
                begun = time.time()
                known.append(kill | {"run": run.name})
                place.book.note("kills", known[-1])
                print(json.dumps({"stage": "kills"} | known[-1]), flush=True)
            try:
                code = process.wait(place.left("after the last kill"))
            except subprocess.TimeoutExpired as error:
                raise Late("the killed run had not ended yet") from error
        if code != -signal.SIGKILL and not (code == 0 and ended(place, run)):
            return judged_kills(known, [f"{run.name} ended with {code}: {tail(place.root / 'err')}"])


def ended(place: Place, run: Path) -> bool:
    return whole_steps(run / "checkpoints")[-1:] == [place.steps] and len(metrics(run)) == place.steps


@contextlib.contextmanager
def going_on(place: Place, run: Path) -> Iterator[subprocess.Popen[str]]:
    """The run, begun or resumed."""
    resumes = (run / "recipe.yaml").is_file() and bool(metrics(run) or whole_steps(run / "checkpoints"))
    if not resumes:
        shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "harness.cli", "train", f"--run={run}", f"--device={place.device}"]
    options = ["--resume"] if resumes else [f"--steps={place.steps}", *place.law()]
    with place.started([*command, *options], place.environment()) as process:
        yield process


def kill_once(
    place: Place, run: Path, process: subprocess.Popen[str], number: int, begun: float
) -> dict[str, Any] | None:
    """A kill in the moment that is its turn, and what it left. None if the run ended before.

    `begun` is when the run was started, or went on by itself.
    """
    before, stale, moment = whole_steps(run / "checkpoints"), leftovers(run), moment_of(number)

    def whole() -> list[int]:
        return whole_steps(run / "checkpoints")

    def saved() -> bool:
        return max(whole(), default=0) > max(before, default=0)

    def stepped() -> bool:
        """A line was written since, behind the newest checkpoint, and no save is under way.

        Resuming cuts the file first.
        """
        log = run / "metrics.jsonl"
        if not log.is_file() or log.stat().st_mtime <= begun or leftovers(run) - stale:
            return False
        return len(metrics(run)) > max(whole(), default=0)

    def comes(what: Callable[[], Any]) -> bool:
        """Waits; false if the run ended before."""
        while not what():
            if process.poll() is not None:
                return False
            place.left(f"waiting for a {moment} to kill in: {tail(place.root / 'err')}")
            time.sleep(_POLL_S)
        return True

    # Behind a checkpoint of this start: the next one has then something to go on from, and gets further.
    if not comes(saved):
        return None
    old = leftovers(run) if moment == "save" else stale
    if not comes(stepped if moment == "step" else lambda: leftovers(run) - old):
        return None
    time.sleep(random.Random(number).random() * (0.02 if moment == "save" else 0.1))
    if process.poll() is not None:
        return None
    trainer, victim = trainer_of(process.pid), victim_of(number)
    if victim == "trainer" and trainer is not None:
        # Stopped, so that what the kill left is looked at before the supervisor goes on.
        process.send_signal(signal.SIGSTOP)
        os.kill(trainer, signal.SIGKILL)
    else:
        victim = "supervisor"
        process.kill()
        process.wait()
    gone(trainer)
    saving, lines = bool(leftovers(run) - old), len(metrics(run))
    kill = {
        "phase": "save" if saving else "step" if lines > max(whole(), default=0) else "between",
        "victim": victim,
        "whole": max(whole(), default=0),
        "lines": lines,
        "wrong": differs(place.root / "whole", run),
    }
    if victim == "trainer":
        process.send_signal(signal.SIGCONT)
    return kill


def differs(undisturbed: Path, run: Path) -> list[str]:
    """What of a run's checkpoints and metrics is not, bit for bit, that of the run that nothing disturbed."""
    wrong = [
        f"arrays of step {step}"
        for step in whole_steps(run / "checkpoints")
        if digests(run, step) != digests(undisturbed, step)
    ]
    lines = metrics(run)
    if lines != metrics(undisturbed)[: len(lines)]:
        wrong.append("lines of metrics")
    return wrong


def wrong_at_the_end(place: Place, run: Path) -> list[str]:
    wrong = differs(place.root / "whole", run)
    if not sound(place, run):
        wrong.append("an array of the last checkpoint is not read back as it was saved")
    return [f"{run.name}: {text}" for text in wrong]
