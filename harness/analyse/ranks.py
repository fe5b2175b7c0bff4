"""Lines of several processes of one run, each with its own loss: those of the first process are the run's.

Launchers put the process before its lines: `0: ` (srun), `[rank0]:`, `[default0]:` (torchrun), `[0]`
(mpirun), `[GPU0]`, `(worker pid=7)` (Ray), `node-0  | ` (compose), `[pod/train-0/main]` (kubectl). Trainers
name a rank somewhere in the line. They are processes of one run where they report the same steps.
"""

from __future__ import annotations

import re

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


class Ranks:
    """A filter of lines. `left_out` counts the lines of other processes."""

    def __init__(self) -> None:
        self.left_out = 0
        self._first: bytes | None = None
        self._decided = False

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
        kept = [
            b"" if b"oss" in line and _process(line) not in (None, self._first) else line for line in lines
        ]
        self.left_out += sum(line != before for line, before in zip(kept, lines, strict=True))
        return kept

    def _decide(self, lines: list[bytes]) -> None:
        """Looks at the first lines that name a step and a loss."""
        reporters: dict[bytes, set[bytes]] = {}
        first = None
        for line in lines:
            if b"oss" not in line or not (step := STEP.search(line)):
                continue
            self._decided = True
            process = _process(line)
            if process is None:
                return
            first = process if first is None else min(first, process, key=lambda name: (len(name), name))
            reporters.setdefault(step[1], set()).add(process)
        several = sum(len(processes) > 1 for processes in reporters.values())
        if reporters and several >= _SHARE * len(reporters):
            self._first = first


def _process(line: bytes) -> bytes | None:
    found = _PROCESS.search(line) or _RANK.search(line)
    return next((group for group in found.groups() if group), None) if found else None
