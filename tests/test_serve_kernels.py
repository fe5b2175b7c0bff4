"""Tests that the kernels of the action rows give what XLA's operations give, in an interpreter on the CPU."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from harness.checkpoint.locate import Located
from harness.errors import HarnessError
from harness.plan.cards import CARDS
from harness.plan.compile import ABSENT_GPU_OPTIONS
from harness.plan.launches import kernels_of
from harness.predict.predict import Device
from harness.serve.attention import Turn, attention_of_rows, turn_of
from harness.serve.compiled import Shape, compile_shape
from harness.serve.engine import FastEngine, open_engine
from harness.serve.kernel_check import NEAR, check_kernels
from harness.serve.lengths import kernels_for
from harness.serve.weights import load
from tests.support.exported import write_checkpoint
from tests.support.serving import inputs_of, sampled
from tests.support.tiny import random_params, tiny


@pytest.mark.parametrize(
    ("rows", "acting", "prefix", "heads", "head_dim"),
    [
        (1, 16, 536, 8, 256),  # π0.5 with two cameras: the last block of keys begins early
        (2, 56, 100, 4, 32),  # a horizon of 50, and a prefix that no block divides
        (3, 8, 24, 8, 64),  # as many keys as one block has
        (1, 8, 8, 2, 32),  # fewer keys than a block
    ],
)
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-6), ("bfloat16", NEAR)])
def test_kernels_attend_as_xla_does(
    rows: int, acting: int, prefix: int, heads: int, head_dim: int, dtype: str, near: float
) -> None:
    rng = np.random.default_rng(prefix)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), dtype)

    keys = jnp.asarray(rng.random((rows, 1, prefix + acting)) < 0.8)
    # A row of the batch without a prompt and without pictures still has its action rows.
    keys = keys.at[-1, :, :prefix].set(False).at[:, :, prefix].set(True)
    given: tuple[Any, ...] = (
        normal(rows, acting, heads + 2, head_dim),
        (normal(rows, prefix, head_dim), normal(rows, prefix, head_dim)),
        turn_of(jnp.asarray(rng.integers(0, 900, (rows, acting))), head_dim),
        keys,
    )
    got, want = (
        np.asarray(attention_of_rows(*given, kernels=each), np.float32) for each in ("interpreted", "none")
    )
    assert got.shape == (rows, acting, heads * head_dim)
    assert np.abs(got - want).max() <= near * np.abs(want).max()


# One card of each generation that tensor cores of bfloat16 have had.
@pytest.mark.parametrize("card", ["a100_80", "rtx_4090", "h100", "rtx_5090"])
def test_both_kernels_compile_for_a_card_that_is_not_here(card: str) -> None:
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=CARDS[card].target(), topology="1x1x1"
    )
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    rows, acting, prefix, heads, head_dim = 2, 56, 536, 8, 256

    def struct(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    keys = prefix + acting
    turn = struct(rows, acting, 1, 1, head_dim // 2, dtype="float32")
    given: tuple[Any, ...] = (
        struct(rows, acting, heads + 2, head_dim),
        (struct(rows, prefix, head_dim), struct(rows, prefix, head_dim)),
        Turn(turn, turn),
        struct(rows, 1, keys, dtype="bool"),
    )
    traced = jax.jit(functools.partial(attention_of_rows, kernels="compiled")).trace(*given)
    done = traced.lower(lowering_platforms=("cuda",)).compile(compiler_options=ABSENT_GPU_OPTIONS)
    logits, values = (each for each in kernels_of(done.as_text()) if each.operations)
    assert logits.operations == values.operations == 2 * rows * acting * heads * keys * head_dim
    assert (logits.written, values.written) == (
        rows * acting * heads * keys * 4,
        rows * acting * heads * head_dim * 2,
    )


def test_a_chunk_by_the_kernels_is_that_of_sample_actions(tmp_path: Path) -> None:
    recipe = tiny()
    step = write_checkpoint(tmp_path / "5", recipe, params=random_params(recipe))
    given, noise = inputs_of(recipe, 2, 16)
    shape = Shape(2, 16)
    compiled = {shape: compile_shape(recipe, 2, shape, kernels="interpreted")}
    engine = FastEngine(recipe, 2, compiled, load(step, recipe, 2), kernels="interpreted")
    got, want = engine.sample(given, noise), sampled(recipe, step, 2, given, noise)
    assert engine.attention == "kernels"
    assert np.abs(got - want).max() <= 1e-6 * max(1.0, np.abs(want).max())


def test_the_guided_form_is_differentiated_and_has_no_kernels() -> None:
    # Pallas refuses to compile a kernel for a CPU, so each form shows whether it has one.
    assert compile_shape(tiny(), 1, Shape(1, 16, "guided"), kernels="compiled").need > 0
    with pytest.raises(ValueError, match="interpret mode"):
        compile_shape(tiny(), 1, Shape(1, 16), kernels="compiled")


@pytest.mark.parametrize(("own", "expected"), [(True, "compiled"), (False, "none")])
def test_the_engine_has_kernels_on_a_gpu_unless_it_is_told_not_to(
    own: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def compile_all(*given: Any) -> None:
        asked.append(given[-1])
        raise InterruptedError

    monkeypatch.setattr("harness.serve.engine.compile_all", compile_all)
    recipe = tiny("model.compute_dtype=bfloat16", "model.action_expert.variant=gemma_300m")
    on, nowhere = Device("cuda", "a GPU", None, None), Located(Path("/nowhere"), None, None)
    with pytest.raises(InterruptedError):
        open_engine(nowhere, recipe, on=on, steps=1, batches=(1,), say=lambda _: None, own_kernels=own)
    assert asked == [expected]


@pytest.mark.parametrize(
    ("sets", "platform", "expected"),
    [
        (["model.compute_dtype=bfloat16", "model.action_expert.variant=gemma_300m"], "cuda", "compiled"),
        (["model.compute_dtype=bfloat16", "model.action_expert.variant=gemma_300m"], "cpu", "none"),
        (["model.compute_dtype=float32", "model.action_expert.variant=gemma_300m"], "cuda", "none"),
        (["model.compute_dtype=bfloat16"], "cuda", "none"),  # heads of 16 channels
    ],
)
def test_kernels_are_for_bfloat16_on_a_gpu(sets: list[str], platform: str, expected: str) -> None:
    assert kernels_for(tiny(*sets).model, platform) == expected


def test_kernels_are_compared_before_anybody_is_served() -> None:
    recipe = tiny("model.compute_dtype=bfloat16", "model.prompt_tokens=16")
    assert 0 <= check_kernels(recipe, 2, "interpreted") <= NEAR

    def wrong(*given: Any, kernels: str) -> jax.Array:
        found = attention_of_rows(*given, kernels="none")
        return found.at[0, 3].multiply(1.1) if kernels == "interpreted" else found

    with pytest.raises(HarnessError) as caught:
        check_kernels(recipe, 2, "interpreted", wrong)
    assert caught.value.code == "serve-kernels-differ"
    assert "--xla-attention" in str(caught.value)

    def broken(*given: Any, kernels: str) -> jax.Array:
        return attention_of_rows(*given, kernels="none") * (jnp.nan if kernels == "interpreted" else 1)

    with pytest.raises(HarnessError, match="nan"):
        check_kernels(recipe, 2, "interpreted", broken)
