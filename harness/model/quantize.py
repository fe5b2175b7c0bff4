"""Quantizes frozen kernels to 8 or 4 bits. They become bfloat16 again only where they are used.

Inside the loop over layers only one layer is dense at a time.

value = code value · scale, rounded to bfloat16; scale = max |w| over a block. A block lies along the axis
that a product sums over, so that the errors inside one block share the scale. The largest weight of a block
is kept exactly. Quantizing dequantized weights gives the same codes, so a checkpoint may hold the dequantized
bfloat16 weights without loss.
Source: QLoRA, https://arxiv.org/abs/2305.14314, with plain bfloat16 scales in place of its double
quantization.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from harness.recipe.parameters import is_kernel

Kept = Literal["bfloat16", "int8", "int4"]

_BLOCK = 64
# A shorter block spends more bytes on its scale than it saves.
_SHORTEST = 16
# NF4: quantiles of the normal distribution, with 0 and both ends exact. Source: appendix E of the paper.
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
# Elements that are dense at a time while a leaf is quantized.
_SLICE = 2**24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A kernel as codes and scales. It replaces an array that the model casts (`astype`) before use.

    `axis`, counted from the end, is the blocked axis. With 4 bits a byte of `codes` holds the entries i and i
    + n/2 of that axis in its low and high half. Shapes, blocked axis last: codes int8 [..., n] or uint8 [...,
    n/2]; scale bfloat16 [..., K].
    """

    codes: jax.Array
    scale: jax.Array
    axis: int = dataclasses.field(metadata={"static": True})
    bits: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.codes.shape)
        shape[self.axis] *= 8 // self.bits
        return tuple(shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the weights that it stands for: frozen parameters are bfloat16."""
        return jnp.dtype(jnp.bfloat16)

    def __getitem__(self, index: Any) -> Quantized:
        """The part at `index`, which selects along axes before the blocked one."""
        return dataclasses.replace(self, codes=self.codes[index], scale=self.scale[index])

    def astype(self, dtype: Any) -> jax.Array:
        """The dense kernel, rounded to bfloat16 as in a checkpoint, then cast."""
        return self.dense().astype(dtype)

    def dense(self) -> jax.Array:
        codes = jnp.moveaxis(self.codes, self.axis, -1)
        if self.bits == 4:
            codes = jnp.concatenate([codes & 15, codes >> 4], axis=-1)
            values = jnp.asarray(NF4)[codes.astype(jnp.int32)]
        else:
            values = codes.astype(jnp.float32) / 127
        scale = jnp.moveaxis(self.scale, self.axis, -1).astype(jnp.float32)[..., None]  # [..., K, 1]
        dense = (values.reshape(*scale.shape[:-1], -1) * scale).astype(jnp.bfloat16)
        return jnp.moveaxis(dense.reshape(codes.shape), -1, self.axis)

    def squares(self) -> jax.Array:
        """The sum of the squares of the dense kernel, float32.

        One entry of the first axis is dense at a time.
        """

        def of(one: Quantized) -> jax.Array:
            return jnp.sum(jnp.square(one.astype(jnp.float32)))

        return jnp.sum(jax.lax.map(of, self)) if self.ndim + self.axis else of(self)

    def on_host(self, get: Callable[[jax.Array], Any] = jax.device_get) -> np.ndarray[Any, Any]:
        """The dense kernel, in host memory.

        It is dequantized on the device piece by piece, so that only one piece is ever dense there. `get`
        copies a piece to the host.
        """
        out = np.empty(self.shape, self.dtype)
        rows = max(1, _SLICE * self.shape[0] // self.codes.size) if self.ndim + self.axis else self.shape[0]
        for start in range(0, self.shape[0], rows):
            out[start : start + rows] = get(_dense(self[start : start + rows]))
        return out


_dense = jax.jit(Quantized.dense)


def contraction_axis(path: str, shape: tuple[int, ...]) -> int | None:
    """The axis, counted from the end, along which the kernel at `path` is blocked; None if it stays dense.

    Norms, biases, position embeddings and adapters stay dense. So does the patch embedding, which is small
    and used in float32. The token table is read by rows, so it is blocked along a row.
    """
    if path.endswith("/input_embedding"):
        axis = -1
    elif not is_kernel(path, shape) or "lora" in path or path.endswith("img/embedding/kernel"):
        return None
    else:
        axis = -3 if re.search(r"/(query|key|value)/kernel$", path) else -2
    return axis if shape[axis] % 2 == 0 and _block(shape[axis]) >= _SHORTEST else None


def kept(path: str, value: jax.Array | Quantized, how: Kept) -> jax.Array | Quantized:
    """The frozen parameter in the form that the state keeps.

    It is bfloat16, or codes if `how` asks for them and the parameter is a kernel.
    """
    axis = None if how == "bfloat16" else contraction_axis(path, value.shape)
    if isinstance(value, Quantized) or axis is None:
        return value if isinstance(value, Quantized) else value.astype(jnp.bfloat16)
    return quantize(value, axis, 8 if how == "int8" else 4)


def quantize(w: jax.Array, axis: int, bits: int) -> Quantized:
    """argmin over codes of |w - code value · scale|, with scale = max |w| of the block.

    `axis` is negative.
    """

    def rows(w: jax.Array) -> Quantized:
        return _quantize(w.astype(jnp.bfloat16), axis, bits)

    if w.size <= _SLICE or w.ndim + axis == 0:
        return rows(w)
    # In pieces, because the float32 copy of a whole leaf is twice its bfloat16 size.
    pieces: Quantized = jax.lax.map(rows, w, batch_size=max(1, _SLICE * w.shape[0] // w.size))
    return pieces


def _quantize(w: jax.Array, axis: int, bits: int) -> Quantized:
    w = jnp.moveaxis(w, axis, -1)
    blocks = w.reshape(*w.shape[:-1], -1, _block(w.shape[-1]))  # [..., K, block]
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    unit = blocks.astype(jnp.float32) / jnp.where(scale > 0, scale, 1).astype(jnp.float32)[..., None]
    if bits == 4:
        middles = (NF4[:-1] + NF4[1:]) / 2
        found = jnp.zeros(unit.shape, jnp.uint8)
        for middle in middles:
            found += (unit > middle).astype(jnp.uint8)
        low, high = jnp.split(found.reshape(w.shape), 2, axis=-1)
        codes = low | (high << 4)
    else:
        codes = jnp.round(unit * 127).astype(jnp.int8).reshape(w.shape)
    return Quantized(jnp.moveaxis(codes, -1, axis), jnp.moveaxis(scale, -1, axis), axis, bits)


def _block(size: int) -> int:
    """The largest divisor of `size` that is no more than 64."""
    return next(block for block in range(min(_BLOCK, size), 0, -1) if size % block == 0)
