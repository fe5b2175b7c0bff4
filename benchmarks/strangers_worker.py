"""One worker: it imports the harness once, and starts a process of its own for each case, which it then
judges. Part of `benchmarks.strangers`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import re
import select
import signal
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import strangers_cases as cases
from benchmarks.strangers_bases import Bases
from benchmarks.strangers_child import Call, live
from benchmarks.strangers_files import remove
from benchmarks.strangers_pages import Servers
from benchmarks.strangers_world import Tree, World, raw_controls
from harness.received.yaml import parse_yaml

SECONDS, BYTES = 20.0, 2**30
PROBLEMS = ("traceback", "touched", "memory", "time", "leaked", "connected", "controls")
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


class Ended(NamedTuple):
    """How a process ended: what it told, its highest memory above that of its start, and the call that it
    died or was killed in.
    """

    told: list[dict[str, Any]]
    more_bytes: int
    unfinished: int | None
    why: str
    seconds: float


def work(sent: Connection, root: Path, base: Path, numbers: list[int], seed: int, kept: Path | None) -> None:
    """Runs the cases of these numbers, and sends a row of each; the last thing sent is None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bases = Bases(base)
    world = World(root / "world", bases.run)
    servers = Servers(root / "site")
    signal.signal(signal.SIGTERM, lambda *_: _stop(servers))
    os.environ.clear()
    os.environ.update(world.environment() | {"STORAGE_EMULATOR_HOST": servers.trap})
    place = cases.Place(world, bases, servers, world.hostile(servers.trap))
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


_NAMED = (("data", "dataset"), ("data", "tokenizer"), ("weights", "source"))
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


def one(number: int, seed: int, place: cases.Place, logs: Path, kept: Path | None) -> dict[str, Any]:
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


def named(calls: list[Call]) -> set[str]:
    """Where the paths lead that the user himself typed: what he names he may have read, also through a
    link.
    """
    return {_lies(word) for call in calls for word in call.args if word.startswith("/")}


def _sources(calls: list[Call]) -> set[str]:
    """Local files that recipes which the user typed name as their own sources."""
    found: set[str] = set()
    for call in calls:
        for option, word in itertools.pairwise(call.args):
            if option == "--recipe" and call.args[0] != "import":
                # It may be a FIFO or a device by now.
                if not Path(word).is_file():
                    continue
                with (
                    contextlib.suppress(OSError, ValueError, RecursionError, AttributeError),
                    open(word, "rb") as file,
                ):
                    recipe = parse_yaml(file.read(1_000_000).decode())
                    values = [recipe.get(part, {}).get(key) for part, key in _NAMED]
                    found |= {_lies(value) for value in values if isinstance(value, str) and value[:1] == "/"}
    return found


def _lies(path: str) -> str:
    """Where a path leads; a process's own place in /proc by that name, since the verbs run in another
    process.
    """
    return re.sub(r"^/proc/\d+/", "/proc/self/", os.path.realpath(path))


def _below(path: str, typed: set[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in typed)


def judge(
    calls: list[Call], ended: Ended, world: World, before: Tree, after: Tree, logs: Path, typed: set[str]
) -> list[tuple[str, str]]:
    """(kind of problem, in words) of everything that a case did and should not have."""
    problems: list[tuple[str, str]] = []
    if ended.why:
        kind = ended.why if ended.why in ("time", "memory") else "traceback"
        verb = calls[ended.unfinished].args[0] if ended.unfinished is not None else "?"
        # A verb that holds too much memory, or never ends, was ended by us.
        problems.append(
            (
                kind,
                (
                    f"{verb}: killed, {ended.seconds:.0f} s, {ended.more_bytes >> 20} MiB more"
                    if kind != "traceback"
                    else f"{verb}: {ended.why}"
                ),
            )
        )
    elif ended.more_bytes > BYTES:
        problems.append(
            ("memory", f"{calls[0].args[0]}: {ended.more_bytes >> 20} MiB more than at its start")
        )
    for message in ended.told:
        if "ended" in message:
            problems += _of_call(calls[message["ended"]], message, typed)
    for i, call in enumerate(calls):
        told = next((message for message in ended.told if message.get("ended") == i), None)
        known, code = bool(told and told["errors"]), told["code"] if told else None
        problems += _of_output(call, logs / f"{i}.out", logs / f"{i}.err", world, code=code, known=known)
    if any(
        path.startswith(f"{world.root}/")
        and not path.startswith((str(world.received), str(world.received_run)))
        for path in typed
    ):
        # The user named a link to his own file: what it says is shown to him alone.
        problems = [problem for problem in problems if problem[0] != "leaked"]
    allowed = tuple(name for call in calls for name in call.writes)
    verbs = "+".join(call.args[0] for call in calls)
    touched = world.touched(before, after, allowed)
    # What was written to had to be opened.
    changed = {text.split(" ", 1)[1] for text in touched}
    # What a recipe that the user typed calls its tokenizer, dataset or weights is opened, and not shown.
    may_open = typed | _sources(calls)
    opened = [
        name
        for name in world.opened()
        if name not in changed and not _below(str(world.root / name), may_open)
    ]
    problems += [("touched", f"{verbs}: {text}") for text in touched]
    problems += [
        ("leaked", f"{verbs}: {text}")
        for text in [*world.leaked(before, after), *(f"opened {name}" for name in opened)]
    ]
    return list(dict.fromkeys(problems))


def _of_call(call: Call, message: dict[str, Any], typed: set[str]) -> list[tuple[str, str]]:
    verb = call.args[0]
    problems = [("traceback", f"{verb}: {text}") for text in message["errors"]]
    problems += [("touched", f"{verb}: wrote {name}") for name in message["wrote"]] + [
        ("touched", f"{verb}: started {name}") for name in message["started"]
    ]
    problems += [("leaked", f"{verb}: opened {name}") for name in message["read"] if _lies(name) not in typed]
    problems += [("connected", f"{verb}: {text}") for text in message["connected"]]
    if message["code"] not in (0, 1, 2) and not message["errors"]:
        problems.append(("traceback", f"{verb}: exit code {message['code']}"))
    return problems


def _of_output(
    call: Call, out: Path, err: Path, world: World, *, code: int | None, known: bool
) -> list[tuple[str, str]]:
    verb, problems = call.args[0], []
    for name, path in (("stdout", out), ("stderr", err)):
        data = path.read_bytes() if path.is_file() else b""
        if world.holds_bait(data):
            problems.append(("leaked", f"{verb}: bait in its {name}"))
        text = data.decode(errors="surrogateescape")
        if found := raw_controls(text, coloured=call.coloured):
            problems.append(("controls", f"{verb}: {', '.join(found[:3])} in its {name}"))
        if (
            name == "stderr"
            and code == 2
            and not known
            and "error [" not in text
            and "Error: Invalid value" not in text
            and verb != "import"
        ):
            problems.append(("traceback", f"{verb}: refused without a reason, {_last_line(text)}"))
        elif "Traceback (most recent call last)" in text and not known:
            problems.append(("traceback", f"{verb}: {_last_line(text)}"))
    return problems


def _last_line(text: str) -> str:
    lines = [
        line
        for line in text.strip().splitlines()
        if re.match(r"\w[\w.]*(?:Error|Exception|Warning|Exit)\b", line)
    ]
    return f"Traceback, {(lines or [text.strip()[-200:]])[-1][:200]}"
