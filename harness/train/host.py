"""Keeps parts of the state in pinned host memory, and streams them through the device piece by piece.

Each array is updated in place. `Layout` decides which parts of a state lie in host memory. The step sees the
memory in an array's type, and streams such an array. Only one piece at a time is on the device, so XLA's
memory analysis holds no second copy of any array.

Copies are asynchronous (tests/test_plan_targets.py checks the compiled program). Of the arrays that pass
together (parameter, moments and average) one half arrives while the other goes back, so that the link is busy
both ways. A lone array cannot do so: XLA keeps the order of what reads and what writes an array. Nothing is
computed meanwhile. `plan.cost` counts the copies so. An array on the device may pass with them, and is
written where it lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from harness.errors import HarnessError
from harness.recipe.parameters import halves

PINNED = "pinned_host"
# Smaller leaves (norms, biases) stay on the device. Together they are a few MiB, and each would be a transfer
# of its own.
SMALLEST = 2**13
# Elements of a piece: 32 MiB in float32. The update holds about eight pieces at a time: each of four arrays
# has one that arrived or arrives, and one that goes back.
_PIECE = 2**23

Arrays = tuple[jax.Array, ...]
# Pieces of some of the arrays, by their place in the tuple.
Pieces = dict[int, jax.Array]


class _AbsentHostMemory(NamedSharding):
    """A sharding in the host memory of an absent device.

    JAX's own sharding drops the memory kind, because an absent device cannot confirm it.
    """

    @property
    def memory_kind(self) -> str:
        return PINNED

    def __hash__(self) -> int:
        return hash((super().__hash__(), PINNED))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _AbsentHostMemory) and bool(super().__eq__(other))


def in_host_memory(sharding: NamedSharding) -> NamedSharding:
    """The same sharding, in pinned host memory.

    Raises: HarnessError "no-pinned-memory" if the devices are present and have none.
    """
    try:
        pinned = NamedSharding(sharding.mesh, sharding.spec, memory_kind=PINNED)
    except ValueError as error:
        raise HarnessError(
            "no-pinned-memory",
            "the plan keeps parts of the state in pinned host memory, which this device does not offer"
            " to JAX",
            got=str(error)[:200],
            need="a device with pinned host memory (NVIDIA GPUs under Linux have it)",
            fix="harness plan again, for a plan without levers.host",
        ) from error
    return pinned if pinned.memory_kind == PINNED else _AbsentHostMemory(sharding.mesh, sharding.spec)


def out_sharding(sharding: NamedSharding) -> NamedSharding | None:
    """The out_sharding for a result in this memory; None for the host memory of an absent device.

    For an absent device XLA infers the memory kind from the program alone.
    """
    return None if isinstance(sharding, _AbsentHostMemory) else sharding


def on_host(x: jax.Array) -> bool:
    """Whether `x` lies in host memory. Call inside jit."""
    return bool(jax.typeof(x).memory_space == jax.memory.Space.Host)


def to_device(x: jax.Array) -> jax.Array:
    """`x` on the device. Call inside jit."""
    return jax.device_put(x, jax.memory.Space.Device) if on_host(x) else x


class Job(NamedTuple):
    """Arrays to pass through the device together, and what is done with a piece of each.

    `function(pieces of moved, pieces of read) → (new pieces, a scalar)` is called for each piece, in order.
    All arrays have the same shape, except for the length of their last axis. The last axis is never cut; the
    first `cuttable` axes may be.
    """

    function: Callable[[Arrays, Arrays], tuple[Arrays, jax.Array]]
    moved: Arrays
    read: Arrays
    cuttable: int


def stream(jobs: Sequence[Job], after: jax.Array | None = None) -> list[tuple[Arrays, jax.Array]]:
    """For each job (the updated arrays of `moved`, the sum of the scalars). Call inside jit.

    Each array is updated in place. The order of pieces, and so of each sum, is fixed. No copy of a job begins
    before the one before has called its function for the last time, nor the first one before `after` is
    known.
    """
    done: list[tuple[Arrays, jax.Array]] = []
    for job in jobs:
        begin, total = jnp.zeros((), jnp.int32), jnp.zeros(())
        if after is not None:
            begin, _ = jax.lax.optimization_barrier((begin, after))
        first = {k: _take(job, job.moved[k], begin) for k in _early(job)}
        if done:
            # The last pieces of the job before go back while these arrive. Neither may take longer.
            done[-1], first, total = jax.lax.optimization_barrier((done[-1], first, total))
        arrays, last, after = _pass(job, first, total)
        done.append((_give(job, arrays, last, _count(job) - 1), after))
    return done


def _pass(job: Job, first: Pieces, total: jax.Array) -> tuple[Arrays, Pieces, jax.Array]:
    """(the arrays, the last new pieces of those in `first`, the sum of the scalars) after all pieces.

    Piece i of the arrays in `first` arrives while piece i - 1 of the others goes back. Then piece i - 1 of
    the arrays in `first` goes back while piece i of the others arrives. `first` holds the pieces 0.
    """
    most = _count(job) - 1

    def one(
        i: jax.Array, carried: tuple[Arrays, Pieces, Pieces, jax.Array]
    ) -> tuple[Arrays, Pieces, Pieces, jax.Array]:
        arrays, arrived, back, total = carried
        # At i = 0 the piece goes back as it came.
        arrays = _give(job, arrays, back, jnp.maximum(i - 1, 0))
        pieces = tuple(arrived[k] if k in arrived else _take(job, x, i) for k, x in enumerate(arrays))
        new, scalar = job.function(pieces, tuple(_take(job, x, i) for x in job.read))
        if arrived:
            # XLA would otherwise fetch these before it computes, while nothing goes back, and copy them once.
            new, scalar, i = jax.lax.optimization_barrier((new, scalar, i))
        arrived = {k: _take(job, arrays[k], jnp.minimum(i + 1, most)) for k in arrived}
        late = {k: x for k, x in enumerate(new) if k not in arrived}
        return (
            _give(job, arrays, late, i),
            arrived,
            {k: new[k] for k in arrived},
            total + scalar,
        )

    arrays, _, last, total = jax.lax.fori_loop(0, most + 1, one, (job.moved, first, first, total))
    return arrays, last, total


def _early(job: Job) -> list[int]:
    """Which arrays of `moved` are fetched one piece ahead: half of the bytes that lie in host memory.

    None if there is one piece, or one array there: nothing could go back meanwhile.
    """
    hosted = [k for k, x in enumerate(job.moved) if on_host(x)]
    if _count(job) == 1 or len(hosted) < 2:
        return []
    ahead, _ = halves([job.moved[k].size * job.moved[k].dtype.itemsize for k in hosted])
    return [hosted[at] for at in ahead]


def _take(job: Job, x: jax.Array, i: jax.Array) -> jax.Array:
    """Piece i of `x`, on the device."""
    start, sizes = _at(job, i)
    return to_device(jax.lax.dynamic_slice(x, start, (*sizes[:-1], x.shape[-1])))


def _give(job: Job, arrays: Arrays, pieces: Pieces, i: jax.Array | int) -> Arrays:
    """`arrays` with the given pieces in place i."""

    def one(x: jax.Array, piece: jax.Array) -> jax.Array:
        back = jax.device_put(piece, jax.memory.Space.Host) if on_host(x) else piece
        return jax.lax.dynamic_update_slice(x, back, _at(job, i)[0])

    return tuple(one(x, pieces[k]) if k in pieces else x for k, x in enumerate(arrays))


def _at(job: Job, i: jax.Array | int) -> tuple[list[jax.Array], list[int]]:
    """(where piece i begins, the shape of a piece)."""
    shape = job.moved[0].shape
    sizes = piece_of(shape, job.cuttable)
    counts = [whole // size for whole, size in zip(shape, sizes, strict=True)]
    return [index * size for index, size in zip(jnp.unravel_index(i, counts), sizes, strict=True)], sizes


def _count(job: Job) -> int:
    """Number of pieces."""
    shape = job.moved[0].shape
    return math.prod(shape) // math.prod(piece_of(shape, job.cuttable))


def fetch(x: jax.Array, dtype: Any, cuttable: int) -> jax.Array:
    """An array in host memory, copied to the device and cast to `dtype` piece by piece. Call inside jit."""
    job = Job(
        lambda _, read: ((read[0].astype(dtype),), jnp.zeros(())),
        (jnp.zeros(x.shape, dtype),),
        (x,),
        cuttable,
    )
    ((cast, _),) = stream([job])
    return cast[0]


def look_up(table: jax.Array, rows: jax.Array) -> jax.Array:
    """table[rows] of a table in host memory, [V, D] → [..., D]. Call inside jit.

    The whole table passes through the device, a piece at a time.
    """
    sizes = piece_of(table.shape, 1)

    def one(i: jax.Array, found: jax.Array) -> jax.Array:
        piece = to_device(jax.lax.dynamic_slice(table, (i * sizes[0], 0), sizes))
        inside = (rows >= i * sizes[0]) & (rows < (i + 1) * sizes[0])
        return jnp.where(inside[..., None], piece[jnp.clip(rows - i * sizes[0], 0, sizes[0] - 1)], found)

    found: jax.Array = jax.lax.fori_loop(
        0, table.shape[0] // sizes[0], one, jnp.zeros((*rows.shape, table.shape[1]), table.dtype)
    )
    return found


def piece_of(shape: Sequence[int], cuttable: int) -> list[int]:
    """The shape of a piece of at most about `_PIECE` elements.

    Axes are kept whole from the right. An axis that is cut is cut into equal parts.
    """
    sizes = list(shape)
    for axis in range(min(cuttable, len(shape) - 1)):
        if math.prod(sizes) <= _PIECE:
            break
        most = max(1, _PIECE // math.prod(sizes[axis + 1 :]))
        sizes[axis] = next(size for size in range(min(most, shape[axis]), 0, -1) if shape[axis] % size == 0)
    return sizes
