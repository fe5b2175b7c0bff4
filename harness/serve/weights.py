"""From a checkpoint to the arrays that the program takes, leaf by leaf.

Adapters are merged on the way by `harness.checkpoint.merge`. Host memory holds the leaves of one product, and
the device what was made so far: never a second copy of the model.

Axes as in `harness.serve.program`; L layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from harness.checkpoint.leaves import Leaf
from harness.checkpoint.merge import Merging, arrays, open_merging
from harness.model.pi05 import time_embedding
from harness.model.quantize import Kept, Quantized, contraction_axis, kept
from harness.recipe.parameters import EMBEDDING, GEMMA, VISION, is_trained
from harness.recipe.schema import Recipe
from harness.serve.program import Arrays, Expert, Language, Layer, Norms
from harness.serve.shapes import BLOCKS, LAYERS, dtype_of
from harness.serve.vision import Scaled, VisionArrays, VisionLayer

Array = np.ndarray[Any, Any]
# Elements of a quantized kernel that are dense on the device at a time.
_SLICE = 2**24
_IMG, _FINAL = "PaliGemma/img/", "PaliGemma/llm/final_norm_1/Dense_0/"


def load(source: Path, recipe: Recipe, steps: int, *, base: str | Path | None = None) -> Arrays:
    """The program's arrays for `steps` Euler steps, on the first device, from the checkpoint at `source`.

    `base` is where the base weights are now, for a step that holds only what was trained.
    Raises: HarnessError "weights-mismatch", "weights-not-finite", "checkpoint-damaged" and those of
    `harness.checkpoint.weights.params_directories`.
    """
    opened = open_merging(source, recipe.model, base=base)
    return arranged(_Reader(recipe, _as_trained(opened, recipe)), steps)


class _Reader(NamedTuple):
    """Reads leaves in the types of `dtype_of`."""

    recipe: Recipe
    opened: Merging

    def whole(self, path: str) -> Array:
        """The leaf at `path`."""
        ((_, array),) = arrays(self.opened, [path])
        return array.astype(dtype_of(path, self.recipe), copy=False)

    def layers(self, count: int, *paths: str) -> Iterator[tuple[Array, ...]]:
        """Of each of the first `count` layers what these leaves hold."""
        found = dict(arrays(self.opened, paths))
        for i in range(count):
            yield tuple(found[path][i].astype(dtype_of(path, self.recipe), copy=False) for path in paths)


def arranged(reader: _Reader, steps: int) -> Arrays:
    """The program's arrays out of the leaves that `reader` reads."""
    return Arrays(_vision(reader), _language(reader), _expert(reader, steps))


def _vision(reader: _Reader) -> VisionArrays:
    depth = VISION[reader.recipe.model.vision].depth

    def put(*names: str, shape: Callable[..., tuple[Array, ...]]) -> list[tuple[jax.Array, ...]]:
        found = reader.layers(depth, *(f"{BLOCKS}{name}" for name in names))
        return [tuple(map(_on_device, shape(*each))) for each in found]

    attention = "MultiHeadDotProductAttention_0"
    heads = [f"{attention}/{name}/kernel" for name in ("query", "key", "value")]
    biases = [f"{attention}/{name}/bias" for name in ("query", "key", "value")]
    norms = [
        [Scaled(*each) for each in put(f"{norm}/scale", f"{norm}/bias", shape=lambda *x: x)]
        for norm in ("LayerNorm_0", "LayerNorm_1")
    ]
    qkv = put(*heads, shape=lambda *x: (np.concatenate([w.reshape(len(w), -1) for w in x], axis=1),))
    qkv_bias = put(*biases, shape=lambda *x: (np.concatenate([b.reshape(-1) for b in x]),))
    out = put(
        f"{attention}/out/kernel",
        f"{attention}/out/bias",
        shape=lambda w, b: (w.reshape(-1, w.shape[-1]), b),
    )
    up, down = (put(f"MlpBlock_0/{n}/kernel", f"MlpBlock_0/{n}/bias", shape=lambda *x: x) for n in _DENSE)
    layers = [
        VisionLayer(*(norms[0][i], *qkv[i], *qkv_bias[i], *out[i], norms[1][i], *up[i], *down[i]))
        for i in range(depth)
    ]
    patches = reader.whole(f"{_IMG}embedding/kernel")
    last = f"{_IMG}Transformer/encoder_norm"
    return VisionArrays(
        _on_device(patches.reshape(-1, patches.shape[-1])),
        _on_device(reader.whole(f"{_IMG}embedding/bias")),
        _on_device(reader.whole(f"{_IMG}pos_embedding")[0]),
        layers,
        Scaled(_on_device(reader.whole(f"{last}/scale")), _on_device(reader.whole(f"{last}/bias"))),
        _on_device(reader.whole(f"{_IMG}head/kernel")),
        _on_device(reader.whole(f"{_IMG}head/bias")),
    )


_DENSE = ("Dense_0", "Dense_1")


def _language(reader: _Reader) -> Language:
    depth = GEMMA[reader.recipe.model.paligemma.variant].depth
    scales = [
        [
            _on_device(each)
            for (each,) in reader.layers(depth if name == "attention" else depth - 1, f"{LAYERS}{path}/scale")
        ]
        for name, path in (("attention", "pre_attention_norm"), ("feed_forward", "pre_ffw_norm"))
    ]
    table = _on_device(reader.whole(EMBEDDING))
    layers = _layers(reader, "", depth - 1)
    # Of the last layer nothing but key and value is read.
    *_, (last,) = reader.layers(depth, f"{LAYERS}attn/kv_einsum/w")
    norms = [Norms(*each) for each in zip(scales[0][:-1], scales[1], strict=True)]
    return Language(table, layers, norms, _on_device(_joined(last)), scales[0][-1])


def _layers(reader: _Reader, suffix: str, count: int) -> list[Layer]:
    """The first `count` layers of the language model, or of the action expert (`_1`)."""
    attn = f"{LAYERS}attn/"
    qkv = [
        _on_device(np.concatenate([q.transpose(1, 0, 2).reshape(q.shape[1], -1), _joined(kv)], axis=1))
        for q, kv in reader.layers(count, f"{attn}q_einsum{suffix}/w", f"{attn}kv_einsum{suffix}/w")
    ]
    out = [
        _on_device(w.reshape(-1, w.shape[-1]))
        for (w,) in reader.layers(count, f"{attn}attn_vec_einsum{suffix}/w")
    ]
    gate_up = [
        _on_device(np.concatenate([w[0], w[1]], axis=1))
        for (w,) in reader.layers(count, f"{LAYERS}mlp{suffix}/gating_einsum")
    ]
    down = [_on_device(w) for (w,) in reader.layers(count, f"{LAYERS}mlp{suffix}/linear")]
    return [Layer(*each) for each in zip(qkv, out, gate_up, down, strict=True)]


def _joined(kv: Array) -> Array:
    """Key and value [2, 1, D, H] side by side, [D, 2·H]."""
    return np.concatenate([kv[0, 0], kv[1, 0]], axis=1)


def clean_modulations(source: Path, recipe: Recipe, *, base: str | Path | None = None) -> jax.Array:
    """The modulations of actions that are given clean, at time 0: [2·L + 1, 3, D], as in `Expert`.

    Raises: as `load`.
    """
    reader = _Reader(recipe, _as_trained(open_merging(source, recipe.model, base=base), recipe))
    params = {name: reader.whole(name) for name in _TIME}
    return _modulations(reader, jax.jit(_condition)(params, jnp.zeros(1))[None])[0]


def _expert(reader: _Reader, steps: int) -> Expert:
    recipe = reader.recipe
    step = np.float32(-1.0 / steps)
    return Expert(
        _layers(reader, "_1", GEMMA[recipe.model.action_expert.variant].depth),
        _modulations(reader, _conditions({name: reader.whole(name) for name in _TIME}, steps)),
        *(_on_device(reader.whole(f"action_in_proj/{x}")) for x in _KERNEL_BIAS),
        *(_on_device(reader.whole(f"action_out_proj/{x}") * step) for x in _KERNEL_BIAS),
    )


def _modulations(reader: _Reader, conditions: jax.Array) -> jax.Array:
    """The modulations [times, 2·L + 1, 3, D] of all norms, of conditions [times, D]."""
    recipe = reader.recipe
    depth = GEMMA[recipe.model.action_expert.variant].depth
    times = conditions.astype(recipe.model.compute_dtype)
    rows = [
        [
            _modulation(times, kernel, bias)
            for kernel, bias in reader.layers(depth, *(f"{LAYERS}{norm}/Dense_0/{x}" for x in _KERNEL_BIAS))
        ]
        for norm in ("pre_attention_norm_1", "pre_ffw_norm_1")
    ]
    final = _modulation(times, reader.whole(f"{_FINAL}kernel"), reader.whole(f"{_FINAL}bias"))
    ordered = [each for pair in zip(*rows, strict=True) for each in pair]
    return jnp.stack([*ordered, final], axis=1)


_KERNEL_BIAS = ("kernel", "bias")
_TIME = tuple(f"time_mlp_{end}/{x}" for end in ("in", "out") for x in _KERNEL_BIAS)


def _conditions(params: dict[str, Array], steps: int) -> jax.Array:
    """What the adaptive norms read at each Euler step, float32 [steps, D]: `Pi05._embed_time` there."""

    def at(params: dict[str, jax.Array], i: jax.Array) -> jax.Array:
        # The time as the loop of `Pi05.sample_actions` counts it, to the last bit: its fastest sine has 1,570
        # radians in a unit of time.
        return _condition(params, jnp.full((1,), 1.0 + i * (-1.0 / steps)))

    return jax.jit(lambda params: jax.lax.map(functools.partial(at, params), jnp.arange(steps)))(params)


def _condition(params: dict[str, jax.Array], time: jax.Array) -> jax.Array:
    """[D] of a time [1]."""

    def linear(x: jax.Array, name: str) -> jax.Array:
        return x @ params[f"{name}/kernel"] + params[f"{name}/bias"]

    x = time_embedding(time, params["time_mlp_in/kernel"].shape[0])
    return jax.nn.swish(linear(jax.nn.swish(linear(x, "time_mlp_in")), "time_mlp_out"))[0]


def _modulation(conditions: jax.Array, kernel: Array, bias: Array) -> jax.Array:
    """Scale, shift and gate of one norm at each step, [steps, 3, D]."""
    return (conditions @ jnp.asarray(kernel) + jnp.asarray(bias)).reshape(len(conditions), 3, -1)


def _on_device(array: Array) -> jax.Array:
    # What is on the device is no longer needed here: wait, so that the host's copies do not pile up.
    return jax.device_put(np.ascontiguousarray(array)).block_until_ready()


class _Frozen(Leaf):
    """A frozen parameter as the training computed with it: in bfloat16."""

    def read(self, dtype: np.dtype[Any] | None = None) -> Array:
        return super().read(np.dtype(jnp.bfloat16)).astype(dtype or self.dtype, copy=False)


class _Quantized(Leaf):
    """A frozen kernel as it is after it was quantized."""

    how: ClassVar[Kept]

    def read(self, dtype: np.dtype[Any] | None = None) -> Array:
        dense = super().read(np.dtype(jnp.bfloat16))
        axis = contraction_axis(self.path, self.shape)
        assert axis is not None
        # Blocks never cross the first axis, unless it is the blocked one.
        rows = max(1, _SLICE * len(dense) // dense.size) if dense.ndim + axis else len(dense)
        for start in range(0, len(dense), rows):
            codes = kept(self.path, jnp.asarray(dense[start : start + rows]), self.how)
            assert isinstance(codes, Quantized)
            dense[start : start + rows] = codes.on_host()
        return dense.astype(dtype or self.dtype, copy=False)


class _Int8(_Quantized):
    how = "int8"


class _Int4(_Quantized):
    how = "int4"


def _as_trained(opened: Merging, recipe: Recipe) -> Merging:
    """The checkpoint, with its frozen parameters as the training computed with them.

    The base of a step of only trained parameters may be in float32, and its kernels are not quantized yet.
    """
    quantized = {"bfloat16": _Frozen, "int8": _Int8, "int4": _Int4}[recipe.train.frozen]

    def form(path: str, leaf: Leaf) -> Leaf:
        if path not in opened.shapes or is_trained(path, recipe.model, recipe.train.trained):
            return leaf
        kernel = contraction_axis(path, leaf.shape) is not None
        return quantized(*leaf._replace(path=path)) if kernel else _Frozen(*leaf)

    return opened._replace(leaves={path: form(path, leaf) for path, leaf in opened.leaves.items()})
