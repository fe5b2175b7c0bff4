"""Opens 20,000 files of strangers with every verb that would open such a thing, and watches that they do no
harm.

    python -m benchmarks.strangers [--cases 20000] [--seed 0] [--processes 2] [--kinds run,checkpoint,...]
    [--only N ...]
                                   [--base DIR] [--resume FILE] [--keep DIR]

A case is an honest input (a run, a checkpoint, a dataset, a log, a recipe, statistics, a web server, a
command line) with one to three parts spoiled: values, bytes, links, devices, sizes, pages. The verbs run in a
process of their own for each case. Complaints: an exception that is no HarnessError; a file made, changed or
removed outside of the run, its destination and the cache; over 1 GiB more memory than at the start; over 20 s
a verb; a file of the user's that was opened or whose content went out; a connection to anybody but the
address typed; control characters in the output. Prints a table by kind, then the numbers of the cases with
complaints. Exit code 1 when there is one.

About 2 minutes for the honest inputs (--base DIR keeps them; `--only` needs the same to try the same case
again), then 6 to 12 cases a second on two cores: half an hour to an hour in all. --resume FILE gets a line a
case, and cases in it are not tried again. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import re
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from benchmarks.strangers_bases import Bases
from benchmarks.strangers_cases import kind_of
from benchmarks.strangers_judge import PROBLEMS
from benchmarks.strangers_kinds import KINDS
from benchmarks.strangers_worker import work
from harness.received.text import one_line

Row = dict[str, Any]
_SHOWN = 60


def main() -> int:
    arguments = _arguments()
    kinds = set(arguments.kinds.split(",")) if arguments.kinds else set(KINDS)
    if unknown := kinds - set(KINDS):
        raise SystemExit(f"--kinds: {', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
    numbers = arguments.only or list(
        itertools.islice((n for n in itertools.count() if kind_of(n) in kinds), arguments.cases)
    )
    rows = _before(arguments.resume, arguments.seed)
    left = [number for number in numbers if arguments.only or number not in rows]
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _stop)
    whole = True
    with (
        tempfile.TemporaryDirectory(prefix="strangers-", ignore_cleanup_errors=True) as scratch,
        contextlib.ExitStack() as stack,
    ):
        console = Console(stderr=True)
        base = Bases(arguments.base or Path(scratch) / "base")
        log = stack.enter_context(arguments.resume.open("a")) if arguments.resume else None
        try:
            with console.status("training the honest inputs"):
                base.make()
            # Whatever ends the loop, the workers have ended before their directories are removed.
            made = stack.enter_context(contextlib.closing(_all(left, arguments, Path(scratch), base.root)))
            for row in _shown(made, len(numbers), len(numbers) - len(left), console):
                rows[row["case"]] = row
                if log is not None:
                    print(json.dumps(row), file=log, flush=True)
        except KeyboardInterrupt:
            whole = False
    found = [rows[number] for number in numbers if number in rows]
    show(found, whole=whole and len(found) == len(numbers))
    return 1 if any(row["problems"] for row in found) or not whole or len(found) < len(numbers) else 0


def _stop(*_: object) -> None:
    """Ends the cases at the first signal; a second one does not disturb the ending."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kinds", help=f"some of {','.join(KINDS)}; default: all")
    parser.add_argument("--only", type=int, nargs="+", help="the cases of these numbers, and no others")
    parser.add_argument("--base", type=Path, help="where the honest inputs are kept")
    parser.add_argument(
        "--resume", type=Path, help="a line of JSON a case; those that are in it already are not tried again"
    )
    parser.add_argument("--keep", type=Path, help="store the inputs of the cases with complaints here")
    return parser.parse_args()


def _before(path: Path | None, seed: int) -> dict[int, Row]:
    """The rows of an earlier call, by number; the line that the earlier call did not finish is left out.

    Raises: SystemExit for another seed's.
    """
    rows: dict[int, Row] = {}
    if path is None or not path.is_file():
        return rows
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            rows[row["case"]] = row
    if any(row["seed"] != seed for row in rows.values()):
        raise SystemExit(f"{path} is of another --seed; name another file")
    return rows


def _all(numbers: list[int], arguments: argparse.Namespace, scratch: Path, base: Path) -> Generator[Row]:
    """The row of each case, as the workers end them."""
    context, open_ends, workers = get_context("spawn"), dict[Connection, list[int]](), []
    kept = arguments.keep.absolute() if arguments.keep else None
    for i in range(min(arguments.processes, len(numbers))):
        root, part = scratch / f"worker-{i}", numbers[i :: arguments.processes]
        root.mkdir()
        receiving, sending = context.Pipe(duplex=False)
        workers.append(context.Process(target=work, args=(sending, root, base, part, arguments.seed, kept)))
        workers[-1].start()
        sending.close()
        open_ends[receiving] = part
    try:
        while open_ends:
            for end in wait(list(open_ends)):
                assert isinstance(end, Connection)
                try:
                    row = end.recv()
                except EOFError:
                    print(f"a worker ended before case {open_ends.pop(end)[0]}", file=sys.stderr)
                    continue
                if row is None:
                    del open_ends[end]
                else:
                    open_ends[end].pop(0)
                    yield row | {"seed": arguments.seed}
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _shown(rows: Iterator[Row], count: int, done: int, console: Console) -> Iterator[Row]:
    """The rows, with a bar on the way; where there is no terminal, a line every 500 cases."""
    columns = (
        TextColumn("cases"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    bad = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=count, completed=done)
        for i, row in enumerate(rows, start=done + 1):
            bad += bool(row["problems"])
            bar.update(task, advance=1, description=f"{bad} with complaints")
            if not console.is_terminal and i % 500 == 0:
                console.print(f"{i}/{count} cases, {bad} with complaints", highlight=False)
            yield row


def show(rows: list[Row], *, whole: bool) -> None:
    """Prints the table by kind, each complaint once with the cases that raised it, and the sum."""
    console = Console(width=160, highlight=False)
    table = Table("kind", "cases", "answered", "refused", *PROBLEMS)
    kinds = [*dict.fromkeys(row["kind"] for row in rows)]
    for kind in [*sorted(kinds), "all"]:
        some = [row for row in rows if kind in (row["kind"], "all")]
        counts = [
            sum(any(name == problem for name, _ in row["problems"]) for row in some) for problem in PROBLEMS
        ]
        refused = sum(2 in row["codes"] for row in some)
        answered = sum(bool(row["codes"]) and all(code in (0, 1) for code in row["codes"]) for row in some)
        table.add_row(kind, *(f"{number:,}" for number in (len(some), answered, refused, *counts)))
    console.print(table)
    places: dict[tuple[str, str], list[Row]] = collections.defaultdict(list)
    for row in rows:
        for name, text in row["problems"]:
            places[name, _place(text)].append(row)
    for (name, text), raised in sorted(places.items(), key=lambda item: -len(item[1]))[:_SHOWN]:
        numbers = ", ".join(str(row["case"]) for row in raised[:5]) + (", …" if len(raised) > 5 else "")
        console.print(
            Text(one_line(f"{name}: {text}  ({len(raised)}: {numbers}; {raised[0]['what'][:80]})")),
            soft_wrap=True,
        )
    bad = [row["case"] for row in rows if row["problems"]]
    if bad:
        console.print(
            f"{len(bad):,} cases with complaints. One again: python -m benchmarks.strangers --base DIR --only"
            f" {bad[0]}",
            soft_wrap=True,
        )
    slowest, largest = (max((row[name] for row in rows), default=0) for name in ("seconds", "more_mib"))
    console.print(
        f"{len(rows):,} cases{'' if whole else ', stopped before the end'}; the slowest {slowest:.1f} s, the"
        f" largest {largest:,} MiB above its start"
    )


def _place(text: str) -> str:
    """A complaint without what differs from case to case, so that equal ones are shown once."""
    if ": killed" in text:
        return text.split(": killed", maxsplit=1)[0] + ": killed"
    return re.split(""": ["']""", text, maxsplit=1)[0] if " at " in text else text


if __name__ == "__main__":
    sys.exit(main())
