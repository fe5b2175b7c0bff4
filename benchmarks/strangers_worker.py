"""A worker: it imports the harness once, starts a child process for each case, and judges the case.

Part of `benchmarks.strangers`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import strangers_cases as cases
from benchmarks.strangers_bases import Bases
from benchmarks.strangers_child import Call, live
from benchmarks.strangers_files import remove
from benchmarks.strangers_judge import BYTES, Ended, judge, named
from benchmarks.strangers_kinds import Place
from benchmarks.strangers_pages import Servers
from benchmarks.strangers_world import World

SECONDS = 20.0
# What the verbs import sooner or later, but for JAX and what starts threads.
_IMPORTS = [
    "harness.cli",
    "harness.plan.choose",
    "harness.report.page",
    "harness.run.status",
    "harness.analyse.curve",
    "harness.verify.run",
    "harness.doctor.examine",
    "harness.checkpoint.inspect",
    "harness.data.stats",
    "harness.data.compare",
    "harness.data.lerobot",
    "harness.openpi.imported",
    "harness.download.cache",
    "harness.data.dataset",
    "harness.data.fetch",
    "harness.data.completeness",
    "harness.data.tokenizer",
    "harness.checkpoint.chunks",
    "harness.checkpoint.stored",
    "harness.probe.machine",
    "harness.show.curve",
    "harness.show.status",
    "harness.show.checkpoint",
    "harness.show.dataset",
    "harness.show.verdict",
    "harness.show.plan",
    "harness.show.doctor",
    "pyarrow.parquet",
    "yaml",
    "rich.table",
    "rich.console",
    "scipy.stats",
    "PIL.PngImagePlugin",
    "av",
    "sentencepiece",
    "tensorstore",
]


def work(sent: Connection, root: Path, base: Path, numbers: list[int], seed: int, kept: Path | None) -> None:
    """Runs the cases of these numbers, and sends a row of each; the last thing sent is None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bases = Bases(base)
    world = World(root / "world", bases.run)
    servers = Servers(root / "site")
    signal.signal(signal.SIGTERM, lambda *_: _stop(servers))
    os.environ.clear()
    os.environ.update(world.environment() | {"STORAGE_EMULATOR_HOST": servers.trap})
    place = Place(world, bases, servers, world.hostile(servers.trap))
    (root / "logs").mkdir(exist_ok=True)
    preload()
    try:
        for number in numbers:
            sent.send(one(number, seed, place, root / "logs", kept))
        sent.send(None)
    except BrokenPipeError:
        pass
    finally:
        servers.close()


# The process of the case that is tried just now.
_RUNNING: set[int] = set()


def _stop(servers: Servers) -> None:
    servers.close()
    for pid in _RUNNING:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os._exit(143)


def preload() -> None:
    """Imports what the verbs will need: a process that is then forked has it at once."""
    warnings.filterwarnings("ignore", message=".*fork.*")
    for name in _IMPORTS:
        # What is not there yet, or any more, is imported by the verb.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # What is never collected is never written to, and so stays shared with the processes of the cases.
    gc.collect()
    gc.freeze()


def one(number: int, seed: int, place: Place, logs: Path, kept: Path | None) -> dict[str, Any]:
    """The row of one case: what was tried, how it ended, and what is to be complained of."""
    world = place.world
    world.clear()
    try:
        case = cases.make(number, seed, place)
    except Exception as error:  # a mistake of this program: told like any other, and the other cases go on
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno}"
        text = f"benchmarks.strangers itself, {at}: {type(error).__name__}: {error}"
        return {
            "case": number,
            "kind": cases.kind_of(number),
            "what": "",
            "calls": [],
            "codes": [],
            "problems": [("traceback", text)],
            "seconds": 0,
            "more_mib": 0,
        }
    typed = named(case.calls)
    before, connections = world.tree(), place.servers.connections()
    # Laying out the input reads no bait; but a link of an earlier case may have been looked through.
    world.opened()
    ended = run_case(case.calls, world, logs)
    after = world.tree()
    problems = judge(case.calls, ended, world, before, after, logs, typed)
    if place.servers.connections() != connections and not any(call.servers for call in case.calls):
        problems.append(("connected", f"{place.servers.connections() - connections} connections to the trap"))
    codes = [message["code"] for message in ended.told if "code" in message]
    row = {
        "case": number,
        "kind": case.kind,
        "what": case.what,
        "calls": [" ".join(call.args) for call in case.calls],
        "codes": codes,
        "problems": problems,
        "seconds": round(ended.seconds, 2),
        "more_mib": ended.more_bytes >> 20,
    }
    if any(name in ("touched", "leaked") for name, _ in problems):
        world.reset()
    if problems and kept is not None:
        world.clear()
        row["kept"] = str(cases.keep(cases.make(number, seed, place), place, kept))
    return row


def run_case(calls: list[Call], world: World, logs: Path) -> Ended:
    """How the process that made these calls ended; killed when a call takes 20 s, or when it holds 2 GiB more
    than at its start.
    """
    for path in logs.iterdir():
        remove(path)
    heard, told = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(heard)
        live(calls, world, logs, told)
    _RUNNING.add(pid)
    os.close(told)
    start, why, data = _resident(pid), "", b""
    process = os.pidfd_open(pid)
    deadline = time.monotonic() + SECONDS
    try:
        while True:
            ready, _, _ = select.select([heard, process], [], [], 0.05)
            got = os.read(heard, 65_536) if heard in ready else b""
            data += got
            deadline = time.monotonic() + SECONDS if b"began" in got else deadline
            if process in ready and not got:
                break
            if time.monotonic() > deadline or _resident(pid) - start > 2 * BYTES:
                why = "time" if time.monotonic() > deadline else "memory"
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                data += os.read(heard, 65_536)
                break
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        _RUNNING.discard(pid)
        os.close(heard)
        os.close(process)
    messages = [json.loads(line) for line in data.decode(errors="replace").splitlines() if line.endswith("}")]
    left = [
        m["began"]
        for m in messages
        if "began" in m and not any(other.get("ended") == m["began"] for other in messages)
    ]
    code = os.waitstatus_to_exitcode(status)
    why = why or (
        "" if code == 0 else next((m["failed"] for m in messages if "failed" in m), f"it ended with {code}")
    )
    return Ended(
        messages,
        max(usage.ru_maxrss * 1024 - start, 0),
        left[0] if left else None,
        why,
        time.monotonic() - began,
    )


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
