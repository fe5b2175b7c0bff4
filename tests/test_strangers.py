"""Tests that `benchmarks.strangers` detects each kind of planted harm.

It reports neither honest files nor refused ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import strangers_worker as worker
from benchmarks.strangers_bases import Bases
from benchmarks.strangers_cases import kind_of
from benchmarks.strangers_child import Call
from benchmarks.strangers_judge import PROBLEMS, judge
from benchmarks.strangers_kinds import KINDS
from benchmarks.strangers_pages import Servers
from benchmarks.strangers_world import World, raw_controls
from tests.support.item_writer import write_step
from tests.support.report_run import full_run

ROOT = Path(__file__).parent.parent


class Untrained(Bases):
    """The honest inputs, with a run that was written and not trained."""

    def _train(self) -> None:
        full_run(self.run)
        write_step(self.run / "checkpoints" / "3", {"a/b": np.ones(3, np.float32)}, ["a/b"])

    def _compile(self) -> None:
        (self.root / "cache" / "plans").mkdir(parents=True)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    made = Untrained(tmp_path_factory.mktemp("honest"))
    made.make()
    return made


def _thread() -> None:
    thread = threading.Thread(target=lambda: {}["x"])
    thread.start()
    thread.join()


def _hold(count: int) -> None:
    held = bytearray(count)
    time.sleep(len(held) / 2**40)


def _forever() -> None:
    while True:
        pass


def _connect(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    socket.create_connection((host, int(port)), 2).close()


def _look_up() -> None:
    with contextlib.suppress(OSError):
        socket.getaddrinfo("example.org", 80)


def _exported(world: Path, text: str | None) -> None:
    (world / "work/exported").mkdir()
    if text is None:
        (world / "work/exported/link").symlink_to("../../home/.ssh")
    else:
        (world / "work/exported/file").write_text(text)


def _plants(world: World, trap: str, elsewhere: Path) -> dict[str, tuple[str | None, Callable[[], Any]]]:
    """Name → the kind of complaint that it must raise, and what a verb does."""
    root, token = world.root, world.tokens[0].decode()
    secret, run, best = root / "home/.ssh/id_ed25519", root / "runs/received", root / "runs/best"
    return {
        "an answer": (None, lambda: print("good")),
        "the answer no": (None, lambda: sys.exit(1)),
        "the file it writes": (None, lambda: (run / "report.html").write_text("<html>")),
        "a new entry of the cache": (None, lambda: (root / "cache/new").write_text("x")),
        "an exception": ("traceback", lambda: {}["x"]),
        "an exception of a thread": ("traceback", _thread),
        "a signal": ("traceback", os.abort),
        "a refusal without a reason": ("traceback", lambda: sys.exit(2)),
        "another exit code": ("traceback", lambda: sys.exit(7)),
        "a secret overwritten": ("touched", lambda: (root / "home/.bashrc").write_text("x")),
        "a secret's permissions": ("touched", lambda: (root / "home/.bashrc").chmod(0o666)),
        "a file in another run": ("touched", lambda: (best / "new").write_text("x")),
        "another run removed": ("touched", lambda: shutil.rmtree(best / "checkpoints")),
        "another file of the run": ("touched", lambda: (run / "manifest.json").write_text("{}")),
        "an entry of the cache removed": ("touched", lambda: shutil.rmtree(root / "cache/weights")),
        "a file anywhere else": ("touched", lambda: (elsewhere / "new").write_text("x")),
        "another program": ("touched", lambda: subprocess.run(["true"], check=True)),
        "much memory for a moment": ("memory", lambda: _hold(1200 * 2**20)),
        "no end": ("time", _forever),
        "a secret read": ("leaked", secret.read_text),
        "a secret opened by C": ("leaked", lambda: ctypes.CDLL(None).open(os.fsencode(secret), os.O_RDONLY)),
        "a file of the system read": ("leaked", lambda: Path("/etc/passwd").read_text()),
        "a secret shown": ("leaked", lambda: print(token)),
        "a secret exported": ("leaked", lambda: _exported(root, token)),
        "a link exported": ("leaked", lambda: _exported(root, None)),
        "a connection": ("connected", lambda: _connect(trap)),
        "a name looked up": ("connected", _look_up),
        "a terminal's title": ("controls", lambda: os.write(1, b"\x1b]0;x\x07")),
    }


def _told(base: Path, root: Path) -> dict[str, tuple[str | None, list[tuple[str, str]], str]]:
    """Name of a plant → what it must raise, and what was told of it.

    In a process that has no threads to fork.
    """
    from harness import cli

    servers = Servers(root / "site")
    try:
        world = World(root / "world", base / "run")
        os.environ.update(world.environment())
        worker.SECONDS = 10.0
        (root / "logs").mkdir()
        (root / "elsewhere").mkdir()
        found = {}
        for name, (need, act) in _plants(world, servers.trap, root / "elsewhere").items():
            world.reset()
            shutil.copytree(base / "run", world.received_run)
            cli.app = act  # type: ignore[assignment]
            calls = [Call(("verb",), ("runs/received/report.html",))]
            before = world.tree()
            world.opened()
            ended = worker.run_case(calls, world, root / "logs")
            problems = judge(calls, ended, world, before, world.tree(), root / "logs", set())
            found[name] = need, problems, str(ended)
        return found
    finally:
        servers.close()


def test_each_kind_of_harm_is_told_and_nothing_else(bases: Bases, tmp_path: Path) -> None:
    with get_context("spawn").Pool(1) as pool:
        found = pool.apply(_told, (bases.root, tmp_path))
    wrong = {
        name: told
        for name, (need, *told) in found.items()
        if {kind for kind, _ in told[0]} != ({need} if need else set())
    }
    assert not wrong, json.dumps(wrong, indent=1)
    assert set(PROBLEMS) == {need for need, *_ in found.values() if need}


def test_cases_of_every_kind_are_tried_and_told_one_a_line(bases: Bases, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        "-m",
        "benchmarks.strangers",
        "--base",
        str(bases.root),
        "--processes",
        "1",
        "--resume",
        str(rows),
    ]
    done = subprocess.run(
        [*command, "--cases", "20"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    made = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["case"] for row in made] == list(range(20)), done.stderr
    assert {row["kind"] for row in made} == set(KINDS)
    assert all(row["codes"] for row in made)
    assert not [row for row in made if row["problems"]], done.stdout
    assert done.returncode == 0, done.stdout
    assert "20 cases;" in done.stdout


def test_equal_numbers_are_equal_cases_of_the_promised_shares() -> None:
    kinds = [kind_of(number) for number in range(50)]
    assert kinds == [kind_of(number) for number in range(50, 100)]
    assert {kind: kinds.count(kind) for kind in KINDS}["run"] == 13


@pytest.mark.parametrize(
    "text", ["\x1b]0;x\x07", "\x9b31m", "a\rb", "\u202e", "\x00", "\x1b]8;;http://x\x1b\\y"]
)
def test_controls_are_seen_where_no_colours_were_asked_for(text: str) -> None:
    assert raw_controls(text, coloured=False)


def test_colours_of_our_own_tables_are_no_complaint() -> None:
    assert raw_controls("\x1b[1;32mgood\x1b[0m\n\t", coloured=True) == []
    assert raw_controls("\x1b[1;32mgood\x1b[0m\x1b]0;x\x07", coloured=True)
