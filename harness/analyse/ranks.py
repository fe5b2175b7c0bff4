"""Lines of several processes of one run, each with its own loss: those of the first process are the run's.

Launchers put the process before its lines: `0: ` (srun), `[rank0]:`, `[default0]:` (torchrun), `[0]`
(mpirun), `[GPU0]`, `(worker pid=7)` (Ray), `node-0  | ` (compose), `[pod/train-0/main]` (kubectl). Trainers
name a rank somewhere in the line. They are processes of one run where they report the same steps.
"""

from __future__ import annotations

import re
from itertools import pairwise

from harness.analyse.forms import STEP

_PROCESS = re.compile(
    rb"\A[ \t]{0,4}+(?:\[(?:rank |rank|RANK |default|GPU ?|gpu ?|cuda:)?(\d{1,5}+)\][: ]|(\d{1,5}+): "
    rb"|\(\w{1,40}+[^()\n]{0,80}?\bpid=(\d{1,9}+)[^()\n]{0,80}+\)"
    rb"|([A-Za-z][\w.-]{0,80}+(?<=\d)) {1,40}+\| |\[pod/([\w.-]{1,120}+)/)"
)
_RANK = re.compile(
    rb"(?<![A-Za-z0-9])(?:rank|Rank|RANK)[\"'`]?[ \t]{0,2}+[=:#]?[ \t]{0,2}+(\d{1,5}+)(?!\w|\.\d)"
)
# Of the steps that were seen, as many must have been reported by several processes.
_SHARE = 0.5
# What differs from line to line before a step and names no process.
_CLOCK = re.compile(
    rb"\d{4}[-/]\d\d[-/]\d\d|\d{1,2}+:\d\d:\d\d(?:[.,]\d{1,9}+)?+|(?:[A-Z][a-z]{2} )[ \d]\d(?= )"
    rb"|\d{9,13}+\.\d{1,9}+"
)
_DIGITS = re.compile(rb"\d{1,12}+")
_LOOKED_AT = 2_000


class Ranks:
    """A filter of lines. `left_out` counts the lines of other processes."""

    def __init__(self) -> None:
        self.left_out = 0
        self._first: bytes | None = None
        self._decided = False
        self._name = _process

    def remarks(self) -> list[str]:
        """A sentence about what was left out, if anything was."""
        if not self.left_out:
            return []
        return [
            f"several processes wrote into this log, each its own loss: {self.left_out:,} lines of others"
            " than the first were left out"
        ]

    def apply(self, lines: list[bytes]) -> list[bytes]:
        """The same lines, blank where another process than the first reports a loss."""
        if not self._decided:
            self._decide(lines)
        if self._first is None:
            return lines
        name = self._name
        kept = [b"" if b"oss" in line and name(line) not in (None, self._first) else line for line in lines]
        self.left_out += sum(line != before for line, before in zip(kept, lines, strict=True))
        return kept

    def _decide(self, lines: list[bytes]) -> None:
        """Looks at the first lines that name a step and a loss."""
        found = [(step[1], line) for line in lines if b"oss" in line and (step := STEP.search(line))]
        self._decided = bool(found)
        # By names that launchers give first; else by whatever number stands before the step.
        for name in (_process, _beginning):
            named = [(step, name(line)) for step, line in found[:_LOOKED_AT]]
            if first := _first_of(named, blocks=name is _process):
                self._first, self._name = first, name
                return


def _first_of(named: list[tuple[bytes, bytes | None]], *, blocks: bool) -> bytes | None:
    """The name of the first process. None if the lines are not of several ones.

    `blocks`: the lines of one process may stand together. Else they alternate with those of others, and the
    names differ by their numbers alone.
    """
    names = [name for _, name in named if name is not None]
    if len(names) < len(named) or len(set(names)) < 2:
        return None
    changes = sum(a != b for a, b in pairwise(names))
    alike = len({_DIGITS.sub(b"#", name) for name in names}) == 1
    if not blocks and (not alike or changes < _SHARE * len(names) / len(set(names))):
        return None
    reporters: dict[bytes, set[bytes]] = {}
    for step, name in named:
        reporters.setdefault(step, set()).add(name or b"")
    several = sum(len(processes) > 1 for processes in reporters.values())
    if several < _SHARE * len(reporters):
        return None
    return min(names, key=lambda name: (len(name), name))


def _process(line: bytes) -> bytes | None:
    """The process that a launcher or the trainer names: all names that were found."""
    found = [match for pattern in (_PROCESS, _RANK) if (match := pattern.search(line))]
    named = [next(group for group in match.groups() if group) for match in found]
    return b" ".join(named) if named else None


def _beginning(line: bytes) -> bytes | None:
    """What stands before the step, without clocks. None without a number, or with an epoch."""
    step = STEP.search(line)
    before = _CLOCK.sub(b"", line[: step.start()]) if step else b""
    return before if _DIGITS.search(before) and b"poch" not in before and b"EPOCH" not in before else None
