"""Tests the planner's count of operations against the products in programs that XLA has optimized."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from harness.artifacts import Levers
from harness.plan.launches import product_operations
from harness.plan.operations import flops_per_sample
from harness.train.compiled import compile_step
from harness.train.setup import setup_of
from harness.train.sharding import local_layout
from tests.support.tiny import LORA, tiny

ROWS = 2


def program(function: object, *shapes: tuple[int, ...]) -> str:
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return str(jax.jit(function).lower(*given).compile().as_text())  # type: ignore[arg-type]


def test_products_count_as_often_as_their_loop_turns() -> None:
    def turns(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, one: (jnp.tanh(x @ one), None), x, w)[0]

    assert product_operations(program(turns, (4, 8), (5, 8, 8))) == 5 * 2 * 4 * 8 * 8


def test_a_loop_whose_turns_depend_on_data_may_hold_no_products() -> None:
    def drawn(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 1.5, x) @ w

    def multiplied(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: jnp.tanh(x @ w), x)

    assert product_operations(program(drawn, (4, 8), (8, 8))) == 2 * 4 * 8 * 8
    with pytest.raises(ValueError, match="and it has products"):
        product_operations(program(multiplied, (4, 8), (8, 8)))


@pytest.mark.parametrize(
    ("keys", "remat", "within"),
    [
        ([], "none", 1e-6),
        ([*LORA, "train.trained=lora_frozen_vision"], "none", 1e-6),
        # XLA for a CPU computes the last layer again, and a loop of one layer. These are a fiftieth of the
        # tiny step, and a three-thousandth of the published one.
        ([], "block", 0.025),
        ([], "mlp", 0.02),
        (LORA, "names", 0.012),
        (["train.trained=action_expert"], "names", 0.01),
    ],
    ids=[
        "full",
        "adapters, vision frozen",
        "blocks computed again",
        "all but the feed-forward computed again",
        "adapters, products kept",
        "the expert alone, products kept",
    ],
)
def test_the_planner_counts_the_products_of_the_compiled_step(
    keys: list[str], remat: str, within: float
) -> None:
    recipe = tiny(*keys)
    cameras = [camera for camera, feature in recipe.data.cameras.items() if feature]
    levers = Levers.model_validate(
        {
            "platform": "cpu",
            "microbatch": ROWS,
            "accumulation_steps": 3,
            "prompt_tokens": 16,
            "cameras": cameras,
            "remat": remat,
        }
    )
    step = compile_step(setup_of(recipe, local_layout(levers)), levers)
    found = product_operations(step.run.as_text()) / (3 * ROWS)
    assert flops_per_sample(recipe, levers) == pytest.approx(found, rel=within)
