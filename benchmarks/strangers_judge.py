"""The complaints about a case, by kind: effects that it should not have. Part of `benchmarks.strangers`."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.strangers_child import Call
from benchmarks.strangers_world import Tree, World, raw_controls
from harness.received.yaml import parse_yaml

# More memory than this is a complaint.
BYTES = 2**30
_NAMED = (("data", "dataset"), ("data", "tokenizer"), ("weights", "source"))
PROBLEMS = ("traceback", "touched", "memory", "time", "leaked", "connected", "controls")


class Ended(NamedTuple):
    """How a process ended: what it told, its highest memory above that of its start, and the call that it
    died or was killed in.
    """

    told: list[dict[str, Any]]
    more_bytes: int
    unfinished: int | None
    why: str
    seconds: float


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
            # It may be a FIFO or a device by now.
            if option != "--recipe" or call.args[0] == "import" or not Path(word).is_file():
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
