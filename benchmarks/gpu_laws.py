"""The laws that hold on a CPU, held on the GPU that is here: one command, in stages, the most telling first.

    python -m benchmarks.gpu_laws DIR [--minutes 9.5] [--openpi CHECKOUT [--python ENV/bin/python]]
    python -m benchmarks.gpu_laws DIR --rehearse     on a CPU and tiny: of a GPU nothing is measured then

- `train`: `harness train` from end to end on the recorded frames of the package, with checkpoints.
- `kills`: five times SIGKILL, in a save and in a step by turns, and `--resume` each time. Every checkpoint
  and every line of metrics is compared with the run that nothing disturbed.
- `verify`: `harness verify` computes that run's first steps again, and must say equal bit for bit.
- `kernels`: the other flag for deterministic kernels, with which XLA chooses by timing. kernels.pbtxt is
  written, and used: with an empty cache, a verification takes its kernels and has the same bits.
- `openpi`: the published recipe's step as the plan for this card says, and openpi's own step beside it: its
  batch of 256 if the card holds it, else the largest that it holds. Ratio of times a sample, and of peaks.
- `real`: `harness train` at the real size: LoRA, random weights, the same frames, with a checkpoint, and with
  a profile of three steps.

Each stage has a limit of seconds, and all have --minutes together. A result is printed when it is known and
written to DIR/gpu_laws.json at once. The same command goes on where it was: what holds is not done again, and
what was cut off is. Needs no network, and of Python what `harness train` needs. Exit code 0 when all that was
done holds, 1 when something does not, 3 when time has run out before the end.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu_laws_book import Book, Mixed, State, exit_code
from benchmarks.gpu_laws_place import Late, Place, Skipped
from benchmarks.gpu_laws_stages import LIMITS, NEEDS, STAGES
from harness.probe.machine import probe
from harness.run.cuda import cuda_plugins
from harness.run.surroundings import source_digest

# Time that a stage has to be worth beginning.
_LEAST_S = 15.0
REHEARSAL = "a rehearsal on a CPU with tiny models: nothing of a GPU was measured"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_laws", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="for runs, caches and the results")
    parser.add_argument("--minutes", type=float, default=9.5, help="all stages together; then run it again")
    parser.add_argument("--openpi", type=Path, help="a checkout of openpi")
    parser.add_argument("--python", type=Path, help="the python of its environment (default: this one)")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU; says that no GPU was measured")
    asked = parser.parse_args()
    # So that what was started is ended too, and the card is free.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    until = time.monotonic() + 60 * asked.minutes
    asked.directory.mkdir(parents=True, exist_ok=True)
    header = here(asked.rehearse)
    if header is None:
        print("no GPU that can be used here: `harness probe` says why; --rehearse goes through it on a CPU")
        return 2
    try:
        book = Book(asked.directory / "gpu_laws.json", header)
    except Mixed as mixed:
        print(mixed)
        return 2
    say(header)
    place = Place(asked.directory.resolve(), asked.rehearse, asked.openpi, asked.python, book)
    for name, stage in STAGES.items():
        if book.is_done(name, asked.openpi is not None):
            say({"stage": name, "state": book.state(name), "from": "an earlier call"})
            continue
        left, before = until - time.monotonic(), book.state(NEEDS.get(name, ""))
        if name in NEEDS and before != State.HOLDS:
            state = State.SKIPPED if before == State.BROKEN else State.UNFINISHED
            book.put(name, state, why=f"what it compares with is missing: {NEEDS[name]} is {before}")
        elif left < _LEAST_S:
            book.put(name, State.UNFINISHED, why="no time was left: run the same command again")
        else:
            carry_out(name, stage, place, left if asked.rehearse else min(LIMITS[name], left))
        say({"stage": name} | book.stages[name])
    if asked.rehearse:
        print(REHEARSAL)
    return exit_code(book.stages)


def carry_out(name: str, stage: Any, place: Place, limit_s: float) -> None:
    """One stage, whose end of any kind becomes an entry of the book."""
    book, begun = place.book, time.monotonic()
    place.until = begun + limit_s
    say({"stage": name, "state": "begins", "limit_s": round(limit_s)})
    try:
        holds, found = stage(place)
        state = State.HOLDS if holds else State.BROKEN
    except Skipped as skipped:
        state, found = State.SKIPPED, {"why": str(skipped)}
    except Late as late:
        state, found = State.UNFINISHED, {"why": f"its {limit_s:.0f} s are over: {late}"}
    except Exception as error:
        # The other stages are still worth having, and this one's fault is a result.
        state, found = State.BROKEN, {"why": f"{type(error).__name__}: {error}"[-2000:]}
    if place.rehearse:
        # So that no line of it is taken for a measurement when it is quoted alone.
        found = {"rehearsal": True} | found
    book.put(name, state, seconds=round(time.monotonic() - begun, 1), **found)


def here(rehearse: bool) -> dict[str, Any] | None:
    """The machine and the code that results are of. None where there is no GPU, and no rehearsal is asked."""
    machine = probe([])
    gpus = machine.usable_gpus
    if not gpus and not rehearse:
        return None
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")}
    card = None
    if not rehearse:
        card = {"name": gpus[0].name, "total_bytes": gpus[0].total_bytes, "uuid": gpus[0].uuid}
    return {
        "rehearsal": REHEARSAL if rehearse else False,
        "card": card,
        "driver": None if rehearse else machine.driver_version,
        "cuda_plugins": [] if rehearse else cuda_plugins(),
        "versions": versions,
        "source_sha256": source_digest(),
    }


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
