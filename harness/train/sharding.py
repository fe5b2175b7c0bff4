"""Layout: the sharding of every array of a training run that several devices share.

The devices form a mesh [data, fsdp]: `data` replicas of the state, each cut into `fsdp` shards. A batch is
cut by rows over all devices. A sharded parameter is whole only while its layer is computed: the layer gathers
it, and its gradient is summed directly into shards. Without these constraints XLA's propagation gathers the
activations of all devices instead (seen in the compiled step).

A leaf is cut along its largest axis that `fsdp` divides, but never along the layer axis that the model scans.
The embedding table is cut along its width. Every device then holds a part of all rows, and can process a few
rows at a time when the table lies in host memory. A leaf with fewer than `SMALLEST` elements a layer stays
whole: one more collective costs more than its bytes. Moments, average and gradients have their parameter's
shape, so they have its sharding.

The gradients of a layer are summed over the devices in the layer's compute type, as in openpi. With bfloat16
the sum is rounded to 8 bits, as is each product of the backward pass. Over microbatches the sum is float32.
The mathematics is the recipe's: in float32 one device and four agree within 1e-6
(tests/support/sharded_laws.py). In bfloat16 the rounding differs, so the bits differ.

openpi's rule (src/openpi/training/sharding.py `fsdp_sharding`, commit 15a9616) counts 4 MiB of the whole leaf
in its own type, so a bfloat16 copy may be sharded otherwise than its float32 master. openpi also lets the
layer axis be cut, and leaves the gradients to the compiler.

Axes: N devices, K accumulation steps, m rows a device and microbatch; B = N·K·m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from harness.artifacts import Levers
from harness.errors import HarnessError
from harness.train.host import PINNED, in_host_memory, out_sharding
from harness.train.host import SMALLEST as SMALLEST_ON_HOST

SMALLEST = 2**13
# Scanned stacks of layers: their first axis is the layer axis.
_SCANNED = ("llm/layers/", "Transformer/encoderblock/")
# The embedding table is never gathered. Each device looks up its own columns for all rows, and the results
# are joined.
_TABLE = "input_embedding"
_ROWS = ("data", "fsdp")
# Path prefixes, within the state, of the parts that may lie in host memory (`Levers.host`).
_PARTS = {"ema": "ema/", "moments": "opt_state/", "masters": "trained/"}


class Layout:
    """The mesh, and the sharding of every array on it."""

    def __init__(self, devices: Sequence[Any], fsdp: int = 1, host: Sequence[str] = ()) -> None:
        self.mesh = Mesh(np.asarray(devices).reshape(-1, fsdp), _ROWS)
        self.fsdp = fsdp
        self.host = tuple(_PARTS[part] for part in host)
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.rows = NamedSharding(self.mesh, PartitionSpec(_ROWS))

    @property
    def devices(self) -> int:
        return int(self.mesh.size)

    def leaf(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """The sharding of the leaf at `path`.

        It is in the host's memory if the leaf belongs to a part of the state that lies there (`host`), else
        in the devices' own.
        """
        scanned = any(stack in path for stack in _SCANNED)
        if path.endswith(_TABLE) and len(shape) == 2:
            # Cut like an array that has only this axis: the rule applies to the table's width.
            spec: tuple[str | None, ...] = (None, *self._cut_one(shape[1:], of=math.prod(shape)))
        else:
            spec = (None, *self._cut_one(shape[1:])) if scanned and shape else self._cut_one(shape)
        sharding = NamedSharding(self.mesh, PartitionSpec(*spec))
        return (
            in_host_memory(sharding)
            if path.startswith(self.host) and math.prod(shape) >= SMALLEST_ON_HOST
            else sharding
        )

    def of(self, tree: Any) -> Any:
        """`tree` with each leaf replaced by its sharding.

        The keys on the way to a leaf form its path, as in a state or an optimizer's state.
        """
        return jax.tree_util.tree_map_with_path(lambda keys, x: self.leaf(_path(keys), tuple(x.shape)), tree)

    def structs(self, tree: Any) -> Any:
        """`tree` as ShapeDtypeStructs with shardings."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, self.of(tree)
        )

    def results(self, tree: Any) -> Any:
        """`of`, in the form for jit's out_shardings; `put` places the results that lie in host memory."""
        return jax.tree.map(out_sharding, self.of(tree))

    def put(self, tree: Any) -> Any:
        """`tree`, each leaf in the memory where it belongs. Call inside jit."""
        return jax.tree.map(
            lambda x, sharding: (
                jax.device_put(x, jax.memory.Space.Host) if sharding.memory_kind == PINNED else x
            ),
            tree,
            self.of(tree),
        )

    def cuttable(self, path: str, shape: tuple[int, ...]) -> int:
        """Number of leading axes of a leaf that are whole on every device.

        The leaf may be processed in pieces along these axes.
        """
        spec = self.leaf(path, shape).spec
        return next((axis for axis, name in enumerate(spec) if name is not None), len(shape))

    def constrain(self, tree: Any) -> Any:
        """`tree`, each leaf constrained to its sharding. For gradients and their sums. Call inside jit."""
        return jax.lax.with_sharding_constraint(tree, self.of(tree))

    def constrain_rows(self, tree: Any) -> Any:
        """`tree` cut by rows, so that each device draws and computes its own rows. Call inside jit."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.rows), tree)

    def microbatches(self, tree: Any, steps: int) -> Any:
        """[B, ...] → [K, N·m, ...]. Call inside jit.

        Each device cuts the rows that it holds, so no row is moved. Microbatch k has rows k·m to (k+1)·m of
        every device. On one device that is the k-th block of the batch.
        """
        sharding = NamedSharding(self.mesh, PartitionSpec(None, _ROWS))

        def cut(x: jax.Array) -> jax.Array:
            by_device = x.reshape(self.devices, steps, -1, *x.shape[1:])  # [N, K, m, ...]
            return jax.lax.with_sharding_constraint(
                by_device.swapaxes(0, 1).reshape(steps, -1, *x.shape[1:]), sharding
            )

        return jax.tree.map(cut, tree)

    def fetch(self, layer: Any) -> Any:
        """One layer's parameters, whole on every device; their gradients return to shards. Call inside jit.

        It is the model's `fetch`.
        """
        if self.devices == 1:
            return layer
        return jax.tree.map(
            lambda x: _gathered(
                self.replicated, NamedSharding(self.mesh, PartitionSpec(*self._cut_one(x.shape)))
            )(x),
            layer,
        )

    def fetch_outside_layers(self, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`params`, those outside the layers whole on every device, as by `fetch`. Call inside jit.

        The embedding table stays cut.
        """
        kept = (*_SCANNED, _TABLE)
        return {
            path: x if any(part in path for part in kept) else self.fetch(x) for path, x in params.items()
        }

    def _cut_one(self, shape: tuple[int, ...], of: int = 0) -> tuple[str | None, ...]:
        """The axes' names for an array of `shape` without a layer axis.

        `of` is the number of elements that the size rule counts, if not the array's own.
        """
        axes = [axis for axis, size in enumerate(shape) if size % self.fsdp == 0]
        if self.fsdp == 1 or not axes or (of or math.prod(shape)) < SMALLEST:
            return ()
        largest = max(axes, key=lambda axis: shape[axis])
        return tuple("fsdp" if axis == largest else None for axis in range(len(shape)))


def local_layout(levers: Levers) -> Layout:
    """The layout over this process's own devices.

    Raises: HarnessError "devices-missing" if there are fewer devices than the plan has.
    """
    devices = jax.local_devices()
    if len(devices) < levers.devices:
        raise HarnessError(
            "devices-missing",
            f"the plan is for {levers.devices} devices, and JAX sees {len(devices)}",
            got=f"{len(devices)} ({devices[0].device_kind})",
            need=levers.devices,
            fix=(
                "harness plan again on this machine; CUDA_VISIBLE_DEVICES may hide the others (harness probe"
                " shows them)"
            ),
        )
    return Layout(devices[: levers.devices], levers.fsdp, levers.host)


def _gathered(whole: NamedSharding, shards: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """x ↦ x, whole on every device; its cotangent returns to shards."""

    gather: jax.custom_vjp[jax.Array] = jax.custom_vjp(lambda x: jax.lax.with_sharding_constraint(x, whole))
    # The constraint's own transpose would leave the whole gradient on every device. This transpose makes the
    # sum over devices a reduce-scatter.
    gather.defvjp(
        lambda x: (gather(x), None),
        lambda _, cotangent: (jax.lax.with_sharding_constraint(cotangent, shards),),
    )
    return gather


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(
        str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name))) for key in keys
    )
