"""Counts what a compiled program does, from the text of its scheduled HLO: kernels, bytes, operations.

- A kernel is an instruction that starts work on the device: a fusion, a custom call, a copy, or any other
  that computes. Parameters, constants, tuples and bitcasts are none. A loop's body counts as often as it
  runs; its condition does not count.
- Bytes moved are those of each kernel's operands and results. What a fusion only slices or gathers counts as
  much as is taken of it. What is updated in place counts as much as is written. Caches are not considered,
  nor a custom call's workspace.
- Operations are those of matrix products, two for a multiply-add. A kernel of our own multiplies as often as
  its result has elements, over the last axis of its first operand (`harness.serve.kernels`).

Source of the form: XLA's HLO text of jaxlib 0.10.2, `Compiled.as_text()`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

Shape = tuple[str, tuple[int, ...]]

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_SHAPE = re.compile(r"\b(pred|bf16|f16|f32|f64|[su](?:2|4|8|16|32|64)|f8e\w++)\[([\d,]*+)\]")
_HEADING = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.\-]++) \(.*\{$")
_INSTRUCTION = re.compile(r"\A\s++(?P<root>ROOT )?%(?P<name>[\w.\-]++) = ")
_CALLED = re.compile(r"\b(calls|to_apply|body)=%([\w.\-]++)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*+)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d++)"')
_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*+)\]|lhs_contracting_dims=\{([^}]*+)\}')
# How Pallas names a kernel that Triton compiles.
_OURS = 'custom_call_target="__gpu$xla.gpu.triton"'
_NO_KERNEL = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all"),
        *("partition-id", "replica-id", "opt-barrier", "copy-done", "async-start", "async-done"),
    )
)


class Instruction(NamedTuple):
    """One line. `shapes` are those of the result, several of a tuple."""

    name: str
    op: str
    shapes: list[Shape]
    operands: list[str]
    attributes: str
    root: bool

    def called(self, attribute: str) -> str | None:
        """The computation that `attribute` names."""
        return next((name for key, name in _CALLED.findall(self.attributes) if key == attribute), None)


Computation = dict[str, Instruction]


class Kernel(NamedTuple):
    """One kernel and how often it runs. `read`, `written` and `operations` are of one run."""

    name: str
    op: str
    times: int
    read: int
    written: int
    operations: int

    @property
    def bytes(self) -> int:
        return self.read + self.written


class Totals(NamedTuple):
    """Sums over a program."""

    kernels: int
    bytes: int
    operations: int


def totals(kernels: list[Kernel]) -> Totals:
    """The sums over `kernels`, each as often as it runs."""
    return Totals(
        sum(each.times for each in kernels),
        sum(each.times * each.bytes for each in kernels),
        sum(each.times * each.operations for each in kernels),
    )


def kernels_of(text: str, *, unknown: bool = False) -> list[Kernel]:
    """Every kernel of the program whose scheduled HLO is `text`.

    With `unknown`, a loop whose number of turns depends on data, such as one that draws random numbers,
    counts once.
    Raises: ValueError if it is no HLO, if how often a loop runs is not known, or, with `unknown`, if such a
    loop has matrix products.
    """
    computations, entry = computations_of(text)
    if entry is None:
        raise ValueError("the text is no HLO module: it has no entry computation")
    return list(_walk(computations, entry, 1, unknown=unknown))


def product_operations(text: str) -> int:
    """Operations of all matrix products of the program whose optimized HLO is `text`.

    A loop whose number of turns depends on data, such as one that draws random numbers, may hold none.
    Raises: ValueError if one does, or if the text is no HLO.
    """
    return totals(kernels_of(text, unknown=True)).operations


def computations_of(text: str) -> tuple[dict[str, Computation], str | None]:
    """(computation → its instructions, the entry computation)."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry = None
    for line in text.splitlines():
        if current is None:
            heading = _HEADING.match(line.rstrip())
            if heading:
                current = computations.setdefault(heading["name"], {})
                entry = heading["name"] if heading["entry"] else entry
        elif line.startswith("}"):
            current = None
        else:
            start = _INSTRUCTION.match(line)
            if start:
                current[start["name"]] = _instruction(start["name"], line[start.end() :], bool(start["root"]))
    return computations, entry


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    """The instruction `type op(operands), attributes`."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    operands = re.findall(r"%([\w.\-]++)", rest[opening:closing])
    return Instruction(name, rest[:opening], _shapes(kind), operands, rest[closing + 1 :], root)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def _shapes(text: str) -> list[Shape]:
    return [(m[1], tuple(int(n) for n in m[2].split(",") if n)) for m in _SHAPE.finditer(text)]


def _nbytes(shapes: list[Shape]) -> int:
    return sum(math.ceil(_width(kind) * math.prod(dims)) for kind, dims in shapes)


def _width(kind: str) -> float:
    return _BYTES[kind] if kind in _BYTES else 1 if kind.startswith("f8") else int(kind[1:]) / 8


def _walk(
    computations: dict[str, Computation], name: str, times: int, *, unknown: bool = False
) -> Iterator[Kernel]:
    """The kernels of a computation that runs `times`.

    With `unknown`, a loop whose number of turns is not known counts once if it holds no products.
    """
    inside = computations[name]
    for each in inside.values():
        if each.op in _NO_KERNEL:
            continue
        if each.op == "while":
            trips, body = _TRIPS.search(each.attributes), each.called("body")
            if body is None or (trips is None and not unknown):
                raise ValueError(f"how often the loop {each.name} runs is not known")
            kernels = _walk(computations, body, times * int(trips[1] if trips else 1), unknown=unknown)
            if trips is None:
                kernels = iter(found := list(kernels))
                if any(kernel.operations for kernel in found):
                    raise ValueError(f"how often the loop {each.name} runs is not known, and it has products")
            yield from kernels
        elif each.op in ("call", "conditional"):
            branches = _BRANCHES.search(each.attributes)
            names = re.findall(r"%([\w.\-]++)", branches[1]) if branches else [each.called("to_apply") or ""]
            for branch in names:
                yield from _walk(computations, branch, times, unknown=unknown)
        else:
            read, written = _moved(computations, inside, each)
            yield Kernel(each.name, each.op, times, read, written, _operations(computations, inside, each))


def _moved(computations: dict[str, Computation], inside: Computation, each: Instruction) -> tuple[int, int]:
    """(bytes read, bytes written) by one run."""
    if each.op == "fusion":
        return _moved_by_fusion(computations[each.called("calls") or ""])
    written = _nbytes(each.shapes)
    if each.op == "custom-call":
        # A workspace is an s8 result beside the others.
        written = _nbytes([shape for shape in each.shapes if shape[0] != "s8"])
    if each.op in ("copy-start", "dynamic-slice"):
        moved = _nbytes(each.shapes[:1])
        return moved, moved
    if each.op == "dynamic-update-slice":
        moved = _nbytes(inside[each.operands[1]].shapes)
        return moved, moved
    return sum(_nbytes(inside[name].shapes) for name in each.operands if name in inside), written


def _moved_by_fusion(body: Computation) -> tuple[int, int]:
    users: dict[str, list[Instruction]] = {}
    for each in body.values():
        for operand in each.operands:
            users.setdefault(operand, []).append(each)

    def taken(name: str, whole: int) -> int:
        """Bytes that are read of the parameter, or of a bitcast of it."""
        total = 0
        for user in users.get(name, []):
            if user.op in ("dynamic-slice", "slice", "gather"):
                total += _nbytes(user.shapes)
            elif user.op == "bitcast":
                total += taken(user.name, whole)
            elif user.op != "dynamic-update-slice" or user.operands[0] != name:
                return whole
        return min(total, whole)

    read = sum(taken(each.name, _nbytes(each.shapes)) for each in body.values() if each.op == "parameter")
    root = next(each for each in body.values() if each.root)
    outputs = [body[name] for name in root.operands] if root.op == "tuple" else [root]
    return read, sum(_written(body, output) for output in outputs)


def _written(body: Computation, output: Instruction) -> int:
    inner = output
    while inner.op in ("bitcast", "copy") and inner.operands:
        inner = body[inner.operands[0]]
    if inner.op == "dynamic-update-slice":
        return _nbytes(body[inner.operands[1]].shapes)
    if inner.op == "scatter":
        return _nbytes(body[inner.operands[-1]].shapes)
    return _nbytes(output.shapes)


def _operations(computations: dict[str, Computation], inside: Computation, each: Instruction) -> int:
    if each.op == "fusion":
        body = computations[each.called("calls") or ""]
        return sum(_operations(computations, body, one) for one in body.values() if one.op == "dot")
    if each.op == "custom-call" and _OURS in each.attributes:
        _, (*_, summed) = inside[each.operands[0]].shapes[0]
        return 2 * math.prod(each.shapes[0][1]) * summed
    if each.op != "dot" and not (each.op == "custom-call" and "matmul" in each.attributes):
        return 0
    contracted = _CONTRACTED.search(each.attributes)
    if contracted is None:
        raise ValueError(f"which axes the product {each.name} sums over is not said")
    axes = [int(axis) for axis in re.findall(r"\d++", contracted[1] or contracted[2] or "")]
    _, left = inside[each.operands[0]].shapes[0]
    return 2 * math.prod(each.shapes[0][1]) * math.prod(left[axis] for axis in axes)
