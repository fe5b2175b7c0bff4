"""Says of each instruction of a compiled step which part of the model it belongs to, and to which pass.

XLA's text names the Python frames that each instruction comes from, the innermost first. The innermost frame
in a file of `_PARTS` says the part. JAX writes "transpose(" into the name of what computes gradients, and
"rematted_computation" into that of what the backward pass computes again.

Source of the form: XLA's HLO text of jaxlib 0.10.2, `Compiled.as_text()`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from harness.plan.launches import Computation, Instruction, computations_of

_PARTS = {
    "model/siglip.py": "vision",
    "model/attention.py": "attention",
    "model/gemma.py": "language and actions",
    "model/pi05.py": "embeddings, heads, loss",
    "train/augment.py": "augmentation",
    "train/step.py": "noise and times",
    "train/delay.py": "noise and times",
    "train/accumulate.py": "sums of gradients",
    "train/update.py": "update",
    "train/optimizer.py": "update",
    "train/moments.py": "update",
    "train/copies.py": "update",
    "train/host.py": "update",
}
OTHER = "other"
MOVES = "copies within the device"
BETWEEN = "between devices"
PROGRAMS = "other programs"
_COLLECTIVES = ("all-", "reduce-scatter", "collective-", "ragged-all-to-all")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_MODULE = re.compile(r"\AHloModule ([^\s,]++)")
_ROW = re.compile(r"\A(\d++) (.*)\Z")
_NUMBERS = re.compile(r"(?<!\w)(\w++)=(\d++)")
_NAME = re.compile(r'\bop_name="([^"]*+)"')
_FRAME = re.compile(r"\bstack_frame_id=(\d++)")
_PACKAGE = re.compile(r"\A.*/harness/(?=\w++/\w++\.py\Z)")


class Frame(NamedTuple):
    """A line of Python: its file below the package, or its whole path, its function and its number."""

    file: str
    function: str
    line: int


class Origin(NamedTuple):
    """Where an instruction comes from.

    `turn`: forward, recomputed, backward, or empty. `source`: its line, `file:number function`.
    """

    op: str
    part: str
    turn: str
    source: str | None


def origins(text: str) -> dict[str, Origin]:
    """Instruction → its origin, of the program whose optimized HLO is `text`."""
    frames = _Frames(text)
    computations, _ = computations_of(text)
    return {
        each.name: _origin(each, computations, frames)
        for inside in computations.values()
        for each in inside.values()
    }


def program_of(text: str) -> str | None:
    """The name of the program whose optimized HLO is `text`."""
    named = _MODULE.match(text)
    return named[1] if named else None


def _origin(each: Instruction, computations: dict[str, Computation], frames: _Frames) -> Origin:
    name, chain = _named(each, frames)
    if each.op == "fusion":
        # A fusion is named after its last instruction, or has no name. Its product takes the time.
        body = list(computations.get(each.called("calls") or "", {}).values())
        inner = [(one.op, *found) for one in body if (found := _named(one, frames))[1]]
        # A product that XLA made anew has a frame, the outermost, and no name.
        products = [(name, chain) for op, name, chain in inner if op == "dot" and name]
        others = [] if chain else [(name, chain) for _, name, chain in inner]
        name, chain = (products or others or [(name, chain)])[-1]
    first = next((frame for frame in chain if frame.file in _PARTS), None)
    source = None if not chain else first or chain[0]
    return Origin(
        each.op,
        _part(each.op, first),
        _turn(name, first),
        None if source is None else f"{source.file}:{source.line} {source.function}",
    )


def _part(op: str, frame: Frame | None) -> str:
    if op.startswith(_COLLECTIVES):
        return BETWEEN
    if frame is not None:
        return _PARTS[frame.file]
    return MOVES if op.startswith("copy") else OTHER


def _turn(name: str, frame: Frame | None) -> str:
    if frame is None or not frame.file.startswith("model/"):
        return ""
    if "rematted_computation" in name:
        return "recomputed"
    return "backward" if "transpose(" in name else "forward"


def _named(each: Instruction, frames: _Frames) -> tuple[str, list[Frame]]:
    """(JAX's name of the instruction, its frames, the innermost first)."""
    name, frame = _NAME.search(each.attributes), _FRAME.search(each.attributes)
    return name[1] if name else "", frames.chain(int(frame[1])) if frame else []


class _Frames:
    """The tables of files, functions, lines and frames with which the text of a program begins."""

    def __init__(self, text: str) -> None:
        self._rows: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
        self._chains: dict[int, list[Frame]] = {}
        table: dict[int, str] | None = None
        for line in text.splitlines():
            row = _ROW.match(line)
            if row and table is not None:
                table[int(row[1])] = row[2]
            elif line in self._rows:
                table = self._rows[line]
            elif line.startswith(("%", "ENTRY ")):
                return

    def chain(self, number: int) -> list[Frame]:
        """The frames from `number` outwards; none for a number that the tables do not have."""
        if number not in self._chains:
            self._chains[number] = []
            row = self._numbers("StackFrames", number)
            found = self._numbers("FileLocations", row.get("file_location_id", 0))
            file = self._rows["FileNames"].get(found.get("file_name_id", 0))
            function = self._rows["FunctionNames"].get(found.get("function_name_id", 0), '""')
            if file is not None:
                own = Frame(_PACKAGE.sub("", file.strip('"')), function.strip('"'), found.get("line", 0))
                # The text counts the parent from 1, and 1 is none.
                self._chains[number] = [own, *self.chain(row.get("parent_frame_id", 1) - 1)]
        return self._chains[number]

    def _numbers(self, table: str, number: int) -> dict[str, int]:
        return {key: int(value) for key, value in _NUMBERS.findall(self._rows[table].get(number, ""))}
