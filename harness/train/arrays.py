"""Moves arrays between the host and devices, of which some may belong to other processes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax


def put_rows(tree: Any, rows: Any) -> Any:
    """The arrays of `tree`, which hold this process's own rows, on the devices of the sharding `rows`.

    If other processes have devices of `rows` too, they give their rows at the same time.
    """
    if rows.is_fully_addressable:
        return jax.device_put(tree, rows)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), tree)


def whole(x: Any) -> Any:
    """`x` on the host. If parts of it are only in other processes they are sent; all call it then."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        x = _everywhere(x.sharding.mesh)(x)
    return jax.device_get(x)


@lru_cache
def _everywhere(mesh: jax.sharding.Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
