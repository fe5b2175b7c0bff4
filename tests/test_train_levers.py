"""Tests laws of the exact levers: whatever levers a plan uses, three steps of a recipe learn the same.

Results are equal bit for bit if the order of operations is the same. Otherwise they agree within 1e-6
relative to the largest entry, in float32. Adam's eps is 1e-4: at 1e-8 it would divide rounding noise by
rounding noise for gradients that are zero in exact arithmetic (a key's bias).
"""

from __future__ import annotations

import functools
import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.artifacts.plan import Remat
from harness.errors import HarnessError
from harness.model import remat
from harness.recipe.parameters import EMBEDDING, is_cast_before_use, parameter_shapes
from harness.recipe.schema import Recipe
from harness.train import host
from harness.train.accumulate import accumulate, read_copies
from harness.train.copies import with_copies
from harness.train.setup import setup_of
from harness.train.sharding import Layout
from harness.train.state import TrainState, state_from
from tests.support.learned import LEARNS, learned, without_copies
from tests.support.tiny import LORA, random_params, tiny

# A moment of a gradient that is zero in exact arithmetic is below this.
NOISE = 1e-12
EVERYTHING = ("ema", "moments", "masters")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's leaves are cut as the real ones are, into many pieces and along more than one axis."""
    monkeypatch.setattr(host, "_PIECE", 2**12)


def run(
    overrides: tuple[str, ...] = (), *, in_host: tuple[str, ...] = (), **levers: Any
) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after three steps, and their metrics."""
    return learned((*LEARNS, *overrides), in_host=in_host, **levers)


def check(
    one: tuple[TrainState, list[dict[str, float]]],
    other: tuple[TrainState, list[dict[str, float]]],
    *,
    bitwise: bool = False,
) -> None:
    (state, lines), (changed, other_lines) = one, other
    # Only the plans with masters in host memory carry copies of them.
    state, changed = (without_copies(each) for each in (state, changed))
    for (keys, a), b in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(changed), strict=True
    ):
        if bitwise:
            np.testing.assert_array_equal(a, b, err_msg=str(keys))
        else:
            np.testing.assert_allclose(
                a, b, rtol=1e-6, atol=1e-6 * np.abs(a).max(initial=0) + NOISE, err_msg=str(keys)
            )
    for line, other_line in zip(lines, other_lines, strict=True):
        assert line == pytest.approx(other_line, rel=0 if bitwise else 1e-6)


@pytest.mark.parametrize("lever", [{"compute_copy": True}, {"attention": "chunked"}])
def test_equal_bit_for_bit(lever: dict[str, Any]) -> None:
    check(run(), run(**lever), bitwise=True)


def test_a_compute_copy_in_bfloat16_is_the_cast_that_the_model_would_make() -> None:
    """Two layers, two microbatches: value and summed gradient with the copy are those with the cast."""
    keys = jax.random.split(jax.random.key(0), 3)
    w, x, y = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(2, 8, 8), (4, 8), (4, 8)], strict=True)
    )

    def loss(params: dict[str, Any], inputs: dict[str, Any]) -> jax.Array:
        def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ read_copies(w).astype(jnp.bfloat16)), None

        out, _ = jax.lax.scan(layer, inputs["x"].astype(jnp.bfloat16), params["w"])
        return jnp.mean(jnp.square(out.astype(jnp.float32) - inputs["y"]))

    @functools.partial(jax.jit, static_argnums=0)
    def run(copied: bool, w: jax.Array) -> tuple[jax.Array, Any]:
        given, copies = ({}, {"w": w.astype(jnp.bfloat16)}) if copied else ({"w": w}, {})
        return accumulate(
            loss, given, copies, None, {}, {"x": x, "y": y}, 2, Layout(jax.local_devices()[:1]), vocabulary=0
        )

    (value, gradient), (copied_value, copied_gradient) = run(False, w), run(True, w)
    assert copied_gradient["w"].dtype == jnp.float32
    assert np.abs(gradient["w"]).min() > 0
    np.testing.assert_array_equal(value, copied_value)
    np.testing.assert_array_equal(gradient["w"], copied_gradient["w"])


@pytest.mark.parametrize("in_host", [("ema",), EVERYTHING])
def test_host_memory_changes_nothing(in_host: tuple[str, ...]) -> None:
    check(run(), run(in_host=in_host))


def test_streamed_arrays_are_those_of_whole_arrays_bit_for_bit() -> None:
    """Leaves of many pieces and of one, with one to four arrays in host memory, one of them of bytes."""
    place = Layout(jax.local_devices()[:1]).replicated
    there, here = host.in_host_memory(place), place

    def function(moved: host.Arrays, read: host.Arrays) -> tuple[host.Arrays, jax.Array]:
        return tuple(2 * x + read[0].astype(x.dtype) for x in moved), jnp.sum(read[0] * moved[0])

    leaves = [
        ((6, 3, 8, 256), [there] * 4),
        ((4, 2048), [there, here, there]),
        ((3, 8), [there] * 2),
        ((8, 2048), [here, there]),
        ((16, 1024), [there] * 3),
    ]
    state = [
        tuple(
            jax.device_put(
                (jnp.arange(math.prod(shape)) % (7 + k))
                .reshape(shape)
                .astype("int8" if k == 1 else "float32"),
                place,
            )
            for k, place in enumerate(places)
        )
        for shape, places in leaves
    ]
    read = [jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape) % 5 for shape, _ in leaves]
    whole = [function(jax.device_put(moved, here), (x,)) for moved, x in zip(state, read, strict=True)]

    @functools.partial(
        jax.jit, donate_argnums=0, out_shardings=[(tuple(places), here) for _, places in leaves]
    )
    def streamed(state: list[host.Arrays], read: list[jax.Array]) -> list[tuple[host.Arrays, jax.Array]]:
        jobs = [host.Job(function, moved, (x,), x.ndim) for moved, x in zip(state, read, strict=True)]
        return host.stream(jobs, after=jnp.sum(read[0]))

    for a, b in zip(jax.tree.leaves(streamed(state, read)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("lever", [{"accumulation_steps": 4}, {"accumulation_steps": 2, "remat": "none"}])
def test_equal_but_for_the_order_of_summation(lever: dict[str, Any]) -> None:
    check(run(), run(**lever))


def test_a_plan_has_the_models_levels() -> None:
    assert get_args(Remat) == get_args(remat.Remat)


@pytest.mark.parametrize("overrides", [(), tuple(LORA)], ids=["full", "adapters"])
@pytest.mark.parametrize("level", ["mlp", "names", "none"])
def test_what_the_backward_pass_keeps_changes_only_roundings(level: str, overrides: tuple[str, ...]) -> None:
    (state, lines), (other, other_lines) = (
        learned((*LEARNS, *overrides), 1, remat=each) for each in ("block", level)
    )
    check((state, lines), (other, other_lines))
    assert other_lines[0]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-6)
    assert other_lines[0]["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=2e-6)


@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(
    overrides=st.sampled_from(
        [
            (),
            tuple(LORA),
            (*LORA, "train.trained=lora_frozen_vision"),
            ("train.ema_decay=null", "train.trained=action_expert"),
        ]
    ),
    accumulation_steps=st.sampled_from([1, 2, 4]),
    remat=st.sampled_from(get_args(Remat)),
    attention=st.sampled_from(["full", "chunked"]),
    compute_copy=st.booleans(),
    in_host=st.sampled_from([(), ("ema",), ("moments",), ("moments", "masters"), EVERYTHING]),
)
def test_any_plan_learns_the_same(
    overrides: tuple[str, ...], in_host: tuple[str, ...], **levers: Any
) -> None:
    in_host = tuple(part for part in in_host if part != "ema" or "train.ema_decay=null" not in overrides)
    check(run(overrides), run(overrides, in_host=in_host, **levers))


def test_what_the_model_casts_is_known_by_name() -> None:
    """Changing a parameter by less than bfloat16 can tell changes a bfloat16 model only where the parameter
    is used in float32.
    """
    recipe = tiny(*LORA)
    layers = [
        path for path in parameter_shapes(recipe.model) if "llm/layers/" in path or "encoderblock/" in path
    ]
    used_in_float32 = [path for path in layers if not is_cast_before_use(path)]
    assert {path.rsplit("/", 2)[-2] for path in used_in_float32} == {
        "LayerNorm_0",
        "LayerNorm_1",
        "pre_attention_norm",
        "pre_ffw_norm",
    }
    assert not is_cast_before_use(EMBEDDING)


@pytest.mark.parametrize(
    ("shape", "cuttable"),
    [
        ((18, 2, 2048, 16_384), 4),
        ((257_152, 2048), 2),
        ((18, 16_384, 2048), 3),
        ((18, 2, 2048, 16_384), 2),
        ((1_152,), 1),
        ((3, 7), 2),
    ],
)
def test_pieces_tile_a_leaf(shape: tuple[int, ...], cuttable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_PIECE", 2**23)
    piece = host.piece_of(shape, cuttable)
    assert all(whole % part == 0 for whole, part in zip(shape, piece, strict=True))
    assert piece[min(cuttable, len(shape) - 1) :] == list(shape[min(cuttable, len(shape) - 1) :])
    if cuttable >= len(shape) - 1 and len(shape) > 1:
        assert np.prod(piece) <= 2**23


def test_moments_rounded_at_random_are_not_streamed() -> None:
    with pytest.raises(HarnessError) as error:
        run(("train.optimizer.moments=bfloat16",), in_host=("moments",))
    assert error.value.code == "plan-invalid"


def test_a_checkpoint_of_one_plan_goes_on_under_another(tmp_path: Any) -> None:
    from harness.checkpoint.store import Store
    from harness.train.snapshot import restore, save, saved

    recipe: Recipe = tiny(*LEARNS)
    states = {}
    for in_host in ((), EVERYTHING):
        layout = Layout(jax.local_devices()[:1], host=in_host)
        store = Store(tmp_path / str(len(in_host)), keep_every_steps=1)
        state = state_from(
            {path: jnp.asarray(value) for path, value in random_params(recipe).items()}, recipe
        )
        state = with_copies(
            jax.device_put(state, layout.of(state)), setup_of(recipe, layout).shapes.state, layout
        )
        assert bool(state.copies) == bool(in_host)
        # Copies are not saved.
        for tree in saved(state, only_trained=False):
            assert not any(x is copy for x in jax.tree.leaves(tree) for copy in state.copies.values())
        save(
            store,
            state,
            step=1,
            norm_stats_json="{}",
            asset_id="a",
            record={"recipe_sha256": recipe.sha256()},
        )
        other = Layout(jax.local_devices()[:1], host=() if in_host else EVERYTHING)
        setup = setup_of(recipe, other)
        restored = restore(store, setup, 1)
        assert bool(restored.copies) != bool(in_host)
        assert jax.tree.map(lambda x: x.sharding, restored) == other.of(setup.shapes.state)
        states[in_host] = without_copies(jax.device_get(restored))
        store.close()
    for a, b in zip(jax.tree.leaves(states[()]), jax.tree.leaves(states[EVERYTHING]), strict=True):
        np.testing.assert_array_equal(a, b)
