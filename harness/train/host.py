"""Keeps parts of the state in pinned host memory, and streams them through the device piece by piece.

Each array is updated in place. `Layout` decides which parts of a state lie in host memory. The step sees the
memory in an array's type, and streams such an array. Only one piece at a time is on the device, so XLA's
memory analysis holds no second copy of any array.

Copies are asynchronous (tests/test_plan_targets.py checks the compiled program). The copies of one piece
(parameter, moments and average) are under way together. Some go back to the host while others arrive or are
computed with. The next piece begins only when this piece is back. The planner therefore counts the copies as
if nothing else ran meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from harness.errors import HarnessError

PINNED = "pinned_host"
# Smaller leaves (norms, biases) stay on the device. Together they are a few MiB, and each would be a transfer
# of its own.
SMALLEST = 2**13
# Elements of a piece: 32 MiB in float32. The update holds about ten pieces at a time: four that arrived, four
# that go back, one under way.
_PIECE = 2**23

Arrays = tuple[jax.Array, ...]


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


def stream(
    function: Callable[[Arrays, Arrays], tuple[Arrays, jax.Array]], moved: Arrays, read: Arrays, cuttable: int
) -> tuple[Arrays, jax.Array]:
    """(the updated arrays of `moved`, the sum of the scalars), each array updated in place.

    `function(pieces of moved, pieces of read) → (new pieces, a scalar)` is called for each piece. All arrays
    have the same shape, except for the length of their last axis. The last axis is never cut; the first
    `cuttable` axes may be. The order of pieces, and so of the sum, is fixed.
    """
    shape = moved[0].shape
    sizes = piece_of(shape, cuttable)
    counts = [whole // size for whole, size in zip(shape, sizes, strict=True)]
    hosted = [on_host(x) for x in moved]

    def one(i: jax.Array, carried: tuple[Arrays, jax.Array]) -> tuple[Arrays, jax.Array]:
        arrays, total = carried
        start = [index * size for index, size in zip(jnp.unravel_index(i, counts), sizes, strict=True)]
        pieces, others = (
            tuple(to_device(jax.lax.dynamic_slice(x, start, (*sizes[:-1], x.shape[-1]))) for x in group)
            for group in (arrays, read)
        )
        new, scalar = function(pieces, others)
        back = (
            jax.device_put(x, jax.memory.Space.Host) if there else x
            for x, there in zip(new, hosted, strict=True)
        )
        return (
            tuple(
                jax.lax.dynamic_update_slice(x, piece, start) for x, piece in zip(arrays, back, strict=True)
            ),
            total + scalar,
        )

    done: tuple[Arrays, jax.Array] = jax.lax.fori_loop(0, math.prod(counts), one, (moved, jnp.zeros(())))
    return done


def fetch(x: jax.Array, dtype: Any, cuttable: int) -> jax.Array:
    """An array in host memory, copied to the device and cast to `dtype` piece by piece. Call inside jit."""
    cast, _ = stream(
        lambda _, read: ((read[0].astype(dtype),), jnp.zeros(())),
        (jnp.zeros(x.shape, dtype),),
        (x,),
        cuttable,
    )
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
