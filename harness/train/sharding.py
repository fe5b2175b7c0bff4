"""Where every array of a training run lies when several devices share it.

The devices form a mesh [data, fsdp]: `data` replicas of the state, each cut into `fsdp` shards. A batch is
cut by rows over all of them. A sharded parameter is whole only while its layer is computed: it is gathered
there, and its gradient is summed straight into shards. Left to itself, XLA's propagation gathers the
activations of all devices instead (seen in the compiled step).

A leaf is cut along its largest axis that `fsdp` divides, never along the layer axis that the model scans, and
the embedding table along its width: every device holds a part of all rows, so that it can walk through them a
few at a time when they lie in host memory. A leaf with fewer than `SMALLEST` elements a layer stays whole:
one more collective costs more than its bytes. Moments, average and gradients have their parameter's shape, so
they lie where it lies.

Gradients of a layer are summed over the devices in the type that the layer computes in, as openpi's are: with
bfloat16 the sum is rounded to 8 bits, as each product of the backward pass is anyway; over microbatches it
goes on in float32. The mathematics is the recipe's (in float32 one device and four agree within 1e-6,
tests/support/sharded_laws.py); in bfloat16 it is another rounding of it, not the same bits.

openpi's rule (src/openpi/training/sharding.py `fsdp_sharding`, commit 15a9616) counts 4 MiB of the whole leaf
in its own type, so a bfloat16 copy may lie elsewhere than its float32 master, and lets the layer axis be cut;
gradients it leaves to the compiler.

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
from harness.train.host import PINNED, in_host_memory, result_place
from harness.train.host import SMALLEST as SMALLEST_ON_HOST

SMALLEST = 2**13
# Scanned stacks of layers: their first axis is the layer.
_SCANNED = ("llm/layers/", "Transformer/encoderblock/")
# Looked up by its shards: each device reads its own columns for everybody, and the rows found are put
# together. Never gathered.
_TABLE = "input_embedding"
_ROWS = ("data", "fsdp")
# Where the parts of a state that may lie in host memory (`Levers.host`) stand in it.
_PARTS = {"ema": "ema/", "moments": "opt_state/", "masters": "trained/"}


class Layout:
    """The mesh, and where on it everything lies."""

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
        """Where the leaf at `path` lies: in the devices' own memory, or in the host's if it is of a part of
        the state that does (`host`).
        """
        scanned = any(stack in path for stack in _SCANNED)
        if path.endswith(_TABLE) and len(shape) == 2:
            # Cut like an array that has no other axis: what is true of its width decides.
            spec: tuple[str | None, ...] = (None, *self._cut_one(shape[1:], of=math.prod(shape)))
        else:
            spec = (None, *self._cut_one(shape[1:])) if scanned and shape else self._cut_one(shape)
        place = NamedSharding(self.mesh, PartitionSpec(*spec))
        return (
            in_host_memory(place)
            if path.startswith(self.host) and math.prod(shape) >= SMALLEST_ON_HOST
            else place
        )

    def of(self, tree: Any) -> Any:
        """`tree` with each leaf replaced by its sharding; the keys on the way to a leaf name it, as in a
        state or an optimizer's state.
        """
        return jax.tree_util.tree_map_with_path(lambda keys, x: self.leaf(_path(keys), tuple(x.shape)), tree)

    def placed(self, tree: Any) -> Any:
        """`tree` as ShapeDtypeStructs with shardings."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, self.of(tree)
        )

    def results(self, tree: Any) -> Any:
        """`of`, as jit is told about results; `put` sees to those in host memory."""
        return jax.tree.map(result_place, self.of(tree))

    def put(self, tree: Any) -> Any:
        """Inside jit: `tree`, each leaf in the memory where it belongs."""
        return jax.tree.map(
            lambda x, place: jax.device_put(x, jax.memory.Space.Host) if place.memory_kind == PINNED else x,
            tree,
            self.of(tree),
        )

    def cuttable(self, path: str, shape: tuple[int, ...]) -> int:
        """How many leading axes of a leaf are whole on every device, so that it may be worked through in
        pieces along them.
        """
        spec = self.leaf(path, shape).spec
        return next((axis for axis, name in enumerate(spec) if name is not None), len(shape))

    def constrain(self, tree: Any) -> Any:
        """Inside jit: `tree`, each leaf where it belongs. For gradients and their sums."""
        return jax.lax.with_sharding_constraint(tree, self.of(tree))

    def constrain_rows(self, tree: Any) -> Any:
        """Inside jit: `tree` cut by rows, so that each device draws and computes its own."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.rows), tree)

    def microbatches(self, tree: Any, steps: int) -> Any:
        """Inside jit: [B, ...] → [K, N·m, ...]. Each device cuts the rows that it holds, so no row travels.

        Microbatch k has rows k·m to (k+1)·m of every device; on one device that is the k-th block of the
        batch.
        """
        place = NamedSharding(self.mesh, PartitionSpec(None, _ROWS))

        def cut(x: jax.Array) -> jax.Array:
            by_device = x.reshape(self.devices, steps, -1, *x.shape[1:])  # [N, K, m, ...]
            return jax.lax.with_sharding_constraint(
                by_device.swapaxes(0, 1).reshape(steps, -1, *x.shape[1:]), place
            )

        return jax.tree.map(cut, tree)

    def fetch(self, layer: Any) -> Any:
        """Inside jit: one layer's parameters, whole on every device; gradients go back into shards.

        The model's `fetch`.
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
        """Inside jit: `params` with those that belong to no layer whole on every device, as `fetch` does; the
        embedding table stays cut.
        """
        kept = (*_SCANNED, _TABLE)
        return {
            path: x if any(part in path for part in kept) else self.fetch(x) for path, x in params.items()
        }

    def _cut_one(self, shape: tuple[int, ...], of: int = 0) -> tuple[str | None, ...]:
        """The axes' names for an array of `shape` that has no layer axis; `of` is how many elements count, if
        not its own.
        """
        axes = [axis for axis, size in enumerate(shape) if size % self.fsdp == 0]
        if self.fsdp == 1 or not axes or (of or math.prod(shape)) < SMALLEST:
            return ()
        largest = max(axes, key=lambda axis: shape[axis])
        return tuple("fsdp" if axis == largest else None for axis in range(len(shape)))


def local_layout(levers: Levers) -> Layout:
    """The layout over this process's own devices.

    Raises: HarnessError "devices-missing" when there are fewer than the plan has.
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
    """x ↦ x, whole on every device, with its cotangent back in shards."""

    gather: jax.custom_vjp[jax.Array] = jax.custom_vjp(lambda x: jax.lax.with_sharding_constraint(x, whole))
    # The constraint's own transpose would leave the whole gradient on every device; this one makes the sum
    # over devices a reduce-scatter.
    gather.defvjp(
        lambda x: (gather(x), None),
        lambda _, cotangent: (jax.lax.with_sharding_constraint(cotangent, shards),),
    )
    return gather


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(
        str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name))) for key in keys
    )
