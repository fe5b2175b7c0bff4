"""The stage `generate`: successful episodes of the scripted policy, until there are enough of them.

Killed at any time, it goes on with the attempt that was under way. `made.jsonl` has a line an attempt,
failures too, of which the dataset has none.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.closed_loop.dataset import write_episode, write_meta
from benchmarks.closed_loop.plan import FPS, Take, takes
from harness.simulate.boot import command, environment
from harness.simulate.frames import receive, send

Recorded = tuple[dict[str, Any], dict[str, np.ndarray]]


def generate(root: Path, wanted: int, workers: int = 1) -> None:
    """Adds episodes to the dataset in `root`, until it has `wanted`, with `workers` simulators at a time.

    The dataset is the same bytes with any number of them: attempts are written in their order.
    Raises: HarnessError "simulator-missing", and what a simulator's process tells.
    """
    log = root / "made.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    made = read_made(log)
    kept = [row for row in made if row["success"]]
    order = takes()
    for _ in made:
        next(order)
    begun, done = time.monotonic(), 0
    with _recorders(workers) as record:
        ahead: deque[tuple[Take, Future[Recorded]]] = deque()
        while len(kept) < wanted:
            while len(ahead) < workers:
                take = next(order)
                ahead.append((take, record(take)))
            take, recorded = ahead.popleft()
            row = _keep(root, take, *recorded.result(), kept)
            made.append(row)
            if row["success"]:
                kept.append(row)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
            done += 1
            pace = (time.monotonic() - begun) / done
            left = pace * (wanted - len(kept)) * len(made) / max(1, len(kept)) / 60
            name = f"{take.suite} {take.task} state {take.state} seed {take.seed}"
            print(
                f"{len(kept)}/{wanted} of {len(made)} attempts: {name},"
                f" {'success' if row['success'] else 'failure'} in {row['steps']} steps;"
                f" {pace:.1f} s an attempt, {left:.0f} minutes left",
                flush=True,
            )


@contextmanager
def _recorders(workers: int) -> Iterator[Callable[[Take], Future[Recorded]]]:
    """A function that has an attempt recorded by the next simulator that is free.

    Attempts under way when the block ends are left: a simulator that has lost its caller ends too.
    """
    with ExitStack() as open_:
        free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for _ in range(workers):
            free.put(open_.enter_context(start()))
        pool = ThreadPoolExecutor(workers)
        open_.callback(pool.shutdown, wait=False, cancel_futures=True)

        def record(take: Take) -> Recorded:
            child = free.get()
            try:
                return ask(child, {"do": "record", **take._asdict()})
            finally:
                free.put(child)

        yield lambda take: pool.submit(record, take)


def _keep(
    root: Path,
    take: Take,
    answer: dict[str, Any],
    arrays: dict[str, np.ndarray],
    kept: list[dict[str, Any]],
) -> dict[str, Any]:
    """The line of an attempt, whose episode is written if it succeeded."""
    row = {**take._asdict(), **{key: answer[key] for key in ("success", "steps", "prompt")}}
    if answer["success"]:
        tasks = list(dict.fromkeys([*(one["prompt"] for one in kept), row["prompt"]]))
        lengths = [one["steps"] for one in kept]
        write_episode(root, len(kept), sum(lengths), tasks.index(row["prompt"]), arrays, FPS)
        prompts = [one["prompt"] for one in kept]
        write_meta(root, [*lengths, row["steps"]], [*prompts, row["prompt"]], tasks, FPS)
    return row


def read_made(log: Path) -> list[dict[str, Any]]:
    """The lines of a file so far; none if it is not there. A last line that a kill has cut is taken away."""
    if not log.exists():
        return []
    text = log.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        os.truncate(log, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def ask(
    child: subprocess.Popen[bytes], order: dict[str, Any], arrays: dict[str, np.ndarray] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The recorder's answer to an order.

    Raises: RuntimeError with what it says is wrong, or its exit code.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    send(child.stdin, order, arrays)
    received = receive(child.stdout)
    if received is None:
        raise RuntimeError(f"the simulator's process ended with code {child.wait()}")
    if received[0]["is"] == "error":
        raise RuntimeError(received[0]["what"])
    return received


@contextmanager
def start() -> Iterator[subprocess.Popen[bytes]]:
    """The process of the simulator that records, which ends with the block.

    Raises: HarnessError "simulator-missing".
    """
    child = subprocess.Popen(
        command("harness.simulate.record"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        cwd="/",
        start_new_session=True,
    )
    assert child.stdin is not None
    try:
        yield child
    finally:
        child.stdin.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
