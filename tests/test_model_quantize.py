"""Tests frozen kernels in 8 and 4 bits.

They are compared with independent numpy. The laws that checkpoints and the model rely on are tested too.
"""

from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.model import quantize as module
from harness.model.pi05 import Observation, bind, graph_of
from harness.model.quantize import NF4, Quantized, contraction_axis, kept, quantize
from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from tests.support.tiny import LORA, random_params, tiny

SHAPES = [((3, 2, 192, 8), -2, 64), ((2, 128, 4, 8), -3, 64), ((100, 48), -1, 48), ((128, 96), -2, 64)]
# 4304 = 16 · 269, the width of SigLIP's feed-forward.
SHAPES += [((1, 4304, 4), -2, 16)]


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array(jnp.asarray(rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 0, shape), jnp.bfloat16))


def test_nf4_is_made_of_quantiles_of_the_normal_distribution() -> None:
    """Appendix E: 8 positive and 7 negative quantiles, evenly spaced between 1/2 and 0.9677083, 0 and scaled
    to 1.
    """
    offset, quantile = 0.9677083, NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.array(sorted([*positive, 0.0, *negative])) / max(positive)
    np.testing.assert_allclose(NF4, expected, atol=2e-6)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("shape", "axis", "block"), SHAPES)
def test_each_weight_becomes_the_nearest_value_of_its_block(
    shape: tuple[int, ...], axis: int, block: int, bits: int
) -> None:
    w = weights(shape)
    q = quantize(jnp.asarray(w), axis, bits)
    assert q.shape == shape
    assert q.codes.size * (8 // bits) == w.size
    dense = np.moveaxis(np.asarray(q.dense(), np.float64), axis, -1).reshape(-1, block)
    blocks = np.moveaxis(w.astype(np.float64), axis, -1).reshape(-1, block)
    scale = np.abs(blocks).max(-1, keepdims=True)
    table = NF4.astype(np.float64) if bits == 4 else np.arange(-127, 128) / 127
    nearest = table[np.abs(blocks[..., None] / scale[..., None] - table).argmin(-1)] * scale
    tie = np.abs(np.abs(dense - blocks) - np.abs(nearest - blocks)) <= 2**-8 * np.abs(blocks) + 1e-12
    assert (np.isclose(dense, nearest, rtol=2**-8, atol=0) | tie).all()
    rows = np.arange(len(blocks)), np.abs(blocks).argmax(-1)
    np.testing.assert_array_equal(
        np.abs(dense[rows]), scale[:, 0]
    )  # the largest is exact (NF4 and 127 reach both ends)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("shape", "axis", "block"), SHAPES)
def test_what_was_dequantized_quantizes_to_the_same_codes(
    shape: tuple[int, ...], axis: int, block: int, bits: int
) -> None:
    """Checkpoints hold the dequantized weights: this is why a resumed run is the run that was not
    interrupted.
    """
    del block
    w = weights(shape, seed=1)
    w[..., 0, 0] = 0
    q = jax.jit(quantize, static_argnums=(1, 2))(jnp.asarray(w), axis, bits)
    again = jax.jit(quantize, static_argnums=(1, 2))(jnp.asarray(q.on_host()), axis, bits)
    np.testing.assert_array_equal(q.codes, again.codes)
    np.testing.assert_array_equal(q.scale, again.scale)
    np.testing.assert_array_equal(np.asarray(jax.jit(Quantized.dense)(q)), q.on_host())
    np.testing.assert_allclose(
        jax.jit(Quantized.squares)(q), np.sum(np.square(q.on_host().astype(np.float64))), rtol=1e-5
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_a_block_of_zeros_stays_zeros(bits: int) -> None:
    q = quantize(jnp.zeros((2, 64, 8), jnp.bfloat16), -2, bits)
    np.testing.assert_array_equal(q.dense(), np.zeros((2, 64, 8)))


@pytest.mark.parametrize("bits", [8, 4])
def test_pieces_and_layers_are_those_of_the_whole(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    w = jnp.asarray(weights((5, 2, 64, 8)))
    whole = quantize(w, -2, bits)
    monkeypatch.setattr(module, "_SLICE", 2 * 64 * 8 * 2)
    cut = quantize(w, -2, bits)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(cut.on_host(), np.asarray(whole.dense()))
    np.testing.assert_array_equal(np.asarray(whole[3].dense()), np.asarray(whole.dense())[3])
    assert whole[3].shape == (2, 64, 8)
    assert whole.astype(jnp.float32).dtype == jnp.float32


def test_errors_are_those_that_are_stated() -> None:
    """Normal weights: root mean square relative error."""
    w = jnp.asarray(np.random.default_rng(0).standard_normal((4, 256, 64)), jnp.bfloat16)
    exact = np.asarray(w, np.float32)
    for bits, limit in ((8, 0.007), (4, 0.1)):
        error = np.asarray(quantize(w, -2, bits).dense(), np.float32) - exact
        assert limit / 2 < np.sqrt(np.mean(error**2) / np.mean(exact**2)) < limit


def test_kernels_of_the_real_model_are_blocked_along_what_a_product_sums_over() -> None:
    shapes = parameter_shapes(load_recipe("pi05_libero_lora").model)
    axes = {path: contraction_axis(path, shape) for path, shape in shapes.items()}
    dense = {path for path, axis in axes.items() if axis is None}
    llm, img = "PaliGemma/llm/layers", "PaliGemma/img/Transformer/encoderblock"
    wanted = {
        f"{llm}/attn/q_einsum/w": 2048, f"{llm}/attn/attn_vec_einsum_1/w": 256,
        f"{llm}/mlp/linear": 16_384, f"{llm}/mlp_1/gating_einsum": 1024,
        f"{img}/MultiHeadDotProductAttention_0/query/kernel": 1152,
        f"{img}/MultiHeadDotProductAttention_0/out/kernel": 72,
        f"{img}/MlpBlock_0/Dense_1/kernel": 4304, "PaliGemma/llm/embedder/input_embedding": 2048,
        "PaliGemma/img/head/kernel": 1152,
        f"{llm}/pre_ffw_norm_1/Dense_0/kernel": 1024,
    }  # fmt: skip
    for path, size in wanted.items():
        axis = axes[path]
        assert axis is not None
        assert shapes[path][axis] == size
    assert all(
        "lora" in path
        or path.endswith(("bias", "scale", "pos_embedding", "action_in_proj/kernel", "img/embedding/kernel"))
        for path in dense
    )
    # No stacked kernel is blocked along its layers.
    assert all(
        axis is None or len(shapes[path]) + axis > 0
        for path, axis in axes.items()
        if "layers/" in path or "encoderblock/" in path
    )


def test_only_frozen_kernels_change_and_bfloat16_changes_nothing() -> None:
    w = jnp.ones((2, 64, 8))
    assert isinstance(kept("PaliGemma/llm/layers/mlp/linear", w, "int4"), Quantized)
    for path, how in (
        ("PaliGemma/llm/layers/mlp/linear", "bfloat16"),
        ("PaliGemma/llm/final_norm/scale", "int4"),
    ):
        value = kept(path, w, how)  # type: ignore[arg-type]
        assert isinstance(value, jax.Array)
        assert value.dtype == jnp.bfloat16
    q = kept("PaliGemma/llm/layers/mlp/linear", w, "int4")
    assert kept("PaliGemma/llm/layers/mlp/linear", q, "int4") is q


def test_the_model_with_codes_is_the_model_with_the_weights_that_a_checkpoint_holds() -> None:
    recipe = tiny(*LORA)
    params = {
        path: kept(path, jnp.asarray(x), "int4") if "lora" not in path else jnp.asarray(x)
        for path, x in random_params(recipe).items()
    }
    params |= {
        path: jnp.asarray(x)
        for path, x in random_params(recipe).items()
        if path.startswith(("action_", "time_"))
    }
    dense = {path: x.dense() if isinstance(x, Quantized) else x for path, x in params.items()}
    assert sum(isinstance(x, Quantized) for x in params.values()) > 15
    graph, rng = graph_of(recipe.model, remat="none"), np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(-1, 1, (1, 56, 56, 3)), jnp.float32)
    observation = Observation(
        {"base_0_rgb": image}, {"base_0_rgb": jnp.ones(1, bool)}, jnp.arange(8)[None], jnp.ones((1, 8), bool)
    )
    actions, noise = (jnp.asarray(rng.standard_normal((1, 10, 32)), jnp.float32) for _ in range(2))
    loss = jax.jit(lambda params: bind(graph, params).loss(observation, actions, noise, jnp.full(1, 0.5)))
    np.testing.assert_allclose(loss(params), loss(dense), rtol=1e-6)
