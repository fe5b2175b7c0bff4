"""Tests that the second program that serves goes on from previous chunks as `Pi05` does, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.checkpoint.locate import Located
from harness.errors import HarnessError
from harness.predict.predict import Device
from harness.recipe.schema import Recipe
from harness.serve.engine import FastEngine, compile_all, open_engine
from harness.serve.rtc import Previous, PreviousRows, form_of, rows_of, weights_of
from harness.serve.types import Inputs
from tests.support.exported import recipe_of_kind, write_checkpoint
from tests.support.serving import engine_of, inputs_of, sampled, sampled_after
from tests.support.tiny import random_params, tiny

NEAR = 1e-6
STEPS, ROWS, TOKENS = 3, 4, 16
CPU = Device("cpu", "cpu", None, None)
# (delay, execution horizon) of each row of a batch; the last row is nobody's.
ASKED = ((1, 2), (3, 3), (4, 6))
CONTINUED = "train.action_delay.max=4"


def near(got: np.ndarray, want: np.ndarray) -> None:
    """Differences relative to the largest action, which is above 1."""
    assert np.abs(got - want).max() <= NEAR * max(1.0, np.abs(want).max())


def chunks(recipe: Recipe, asked: tuple[tuple[int, int], ...] = ASKED, seed: int = 9) -> list[Previous]:
    """A previous chunk for each, of the model's size."""
    rng = np.random.default_rng(seed)
    shape = (1, recipe.model.action_horizon, recipe.model.action_dim)
    return [Previous(rng.standard_normal(shape).astype(np.float32), *each) for each in asked]


def batch_of(recipe: Recipe, previous: list[Previous]) -> PreviousRows:
    return rows_of(previous, ROWS, form_of(recipe.train.most_delay))


@pytest.fixture(scope="module", params=["guided", "continued"])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Path, FastEngine]:
    recipe = tiny(*([CONTINUED] if request.param == "continued" else []))
    step = write_checkpoint(tmp_path_factory.mktemp("step") / "5", recipe)
    engine = engine_of(recipe, step, STEPS, (ROWS, TOKENS), rtc=True)
    assert engine.rtc == request.param
    return recipe, step, engine


def test_actions_are_those_of_the_model_for_each_rows_delay_and_horizon(
    scene: tuple[Recipe, Path, FastEngine],
) -> None:
    recipe, step, engine = scene
    given, noise = inputs_of(recipe, ROWS, TOKENS)
    previous = chunks(recipe)
    got = engine.sample(given, noise, batch_of(recipe, previous))
    plain = sampled(recipe, step, STEPS, given, noise)
    for row, one in enumerate(previous):
        every = one._replace(chunk=np.broadcast_to(one.chunk, noise.shape))
        near(got[row], sampled_after(recipe, step, STEPS, given, noise, every)[row])
        assert np.abs(got[row] - plain[row]).max() > 1e-2
        if engine.rtc == "continued":
            np.testing.assert_array_equal(got[row, : one.delay], one.chunk[0, : one.delay])
    # A row of which nothing is known is that of plain sampling.
    near(got[len(previous) :], plain[len(previous) :])


@pytest.mark.parametrize("more", [[], [CONTINUED]], ids=["guided", "continued"])
def test_adapters_that_are_merged_go_on_as_unmerged_ones(tmp_path: Path, more: list[str]) -> None:
    recipe = recipe_of_kind("lora", *more)
    # Weights as small as a model's: large ones would magnify that a merged product rounds otherwise.
    step = write_checkpoint(tmp_path / "5", recipe, params=random_params(recipe))
    engine = engine_of(recipe, step, STEPS, (1, TOKENS), rtc=True, plain=False)
    given, noise = inputs_of(recipe, 1, TOKENS)
    (one,) = chunks(recipe, ((3, 4),))
    got = engine.sample(given, noise, rows_of([one], 1, form_of(recipe.train.most_delay)))
    near(got, sampled_after(recipe, step, STEPS, given, noise, one))


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["model.action_horizon=13"], 2),
        (["model.action_horizon=13", CONTINUED], 2),
        (["model.action_horizon=16", "model.discrete_state_input=true", CONTINUED], 10),
    ],
)
def test_horizons_that_are_no_multiple_of_eight_and_other_prompts(
    tmp_path: Path, overrides: list[str], steps: int
) -> None:
    recipe = tiny(*overrides)
    step = write_checkpoint(tmp_path / "5", recipe)
    engine = engine_of(recipe, step, steps, (1, 32), rtc=True, plain=False)
    given, noise = inputs_of(recipe, 1, 32)
    (one,) = chunks(recipe, ((3, 4),))
    got = engine.sample(given, noise, rows_of([one], 1, form_of(recipe.train.most_delay)))
    near(got, sampled_after(recipe, step, steps, given, noise, one))


def test_a_rows_bits_do_not_depend_on_the_other_rows(scene: tuple[Recipe, Path, FastEngine]) -> None:
    recipe, _, engine = scene
    mine, noise = inputs_of(recipe, ROWS, TOKENS)
    others, other_noise = inputs_of(recipe, ROWS, TOKENS, seed=5)
    previous, other = chunks(recipe), chunks(recipe, ((4, 4), (3, 3)), seed=2)
    other[1] = previous[1]
    others.token_mask[2:] = False
    for each, filled in zip(mine.images.values(), others.images.values(), strict=True):
        filled[1] = each[1]
    others.tokens[1], others.token_mask[1], other_noise[1] = mine.tokens[1], mine.token_mask[1], noise[1]
    first = engine.sample(mine, noise, batch_of(recipe, previous))
    second = engine.sample(others, other_noise, batch_of(recipe, other))
    np.testing.assert_array_equal(first[1], second[1])
    assert np.isfinite(second).all()
    assert np.abs(first[0] - second[0]).max() > 1e-3


def test_without_a_previous_chunk_the_plain_program_runs(scene: tuple[Recipe, Path, FastEngine]) -> None:
    recipe, step, engine = scene
    given, noise = inputs_of(recipe, ROWS, TOKENS)
    plain = engine_of(recipe, step, STEPS, (ROWS, TOKENS))
    np.testing.assert_array_equal(engine.sample(given, noise), plain.sample(given, noise))
    shapes = list(engine._compiled)
    assert [shape.rtc for shape in shapes] == [None, engine.rtc]
    ran: list[Any] = []
    compiled = {
        shape: each._replace(run=lambda *_, shape=shape: ran.append(shape) or noise)
        for shape, each in engine._compiled.items()
    }
    told = FastEngine(recipe, STEPS, compiled, engine._arrays)
    told.sample(given, noise)
    assert ran == [shapes[0]]


def test_what_stands_behind_the_rows_that_count_is_not_read(scene: tuple[Recipe, Path, FastEngine]) -> None:
    recipe, _, engine = scene
    given, noise = inputs_of(recipe, ROWS, TOKENS)
    rows = batch_of(recipe, chunks(recipe))
    changed = PreviousRows(np.where(rows.weights[..., None] > 0, rows.chunk, 7), rows.weights)
    np.testing.assert_array_equal(engine.sample(given, noise, changed), engine.sample(given, noise, rows))


def test_in_bfloat16_actions_are_those_of_the_model_to_its_rounding(tmp_path: Path) -> None:
    for form in ([], [CONTINUED]):
        recipe = tiny("model.compute_dtype=bfloat16", *form)
        step = write_checkpoint(tmp_path / f"of-{len(form)}", recipe)
        given, noise = inputs_of(recipe, 1, TOKENS)
        (one,) = chunks(recipe, ((2, 3),))
        engine = engine_of(recipe, step, 2, (1, TOKENS), rtc=True, plain=False)
        got = engine.sample(given, noise, rows_of([one], 1, form_of(recipe.train.most_delay)))
        want = sampled_after(recipe, step, 2, given, noise, one)
        assert 0 < np.abs(got - want).max() <= 5e-2 * np.abs(want).max()


def test_weights_are_those_of_the_form() -> None:
    one = Previous(np.ones((1, 10, 2), np.float32), 3, 3)
    np.testing.assert_array_equal(weights_of(one, "guided"), one.mask)
    assert weights_of(one, "continued").tolist() == [1.0] * 3 + [0.0] * 7
    found = rows_of([one], 3, "continued")
    assert not found.chunk[1:].any()
    assert not found.weights[1:].any()


def quiet(_: str) -> None: ...


@pytest.mark.parametrize("form", ["guided", "continued"])
def test_an_opened_engine_has_both_programs_of_each_shape_and_warms_them(form: str, tmp_path: Path) -> None:
    recipe = tiny("model.prompt_tokens=16", *([CONTINUED] if form == "continued" else []))
    step = write_checkpoint(tmp_path / "5", recipe)
    said: list[str] = []
    located = Located(step, 5, None)
    engine = open_engine(located, recipe, on=CPU, steps=1, batches=(1,), say=said.append, rtc=True)
    assert said[:2] == [
        f"compiling 1 of 2: 1 row, prompts of 16 tokens, {form} after a previous chunk",
        "compiling 2 of 2: 1 row, prompts of 16 tokens",
    ]
    said.clear()
    engine.warm(said.append)
    assert [line.partition(": ")[2].count(form) for line in said] == [1, 0]
    assert (engine.buckets, engine.batches) == ((16,), (1,))


def test_the_second_programs_bytes_are_checked_too() -> None:
    recipe = tiny("model.prompt_tokens=16")
    plain = compile_all(recipe, 1, (1,), CPU, quiet)
    both = compile_all(recipe, 1, (1,), CPU, quiet, "guided")
    (least,) = (each.need for each in plain.values())
    needs = {shape.rtc: each.need for shape, each in both.items()}
    assert needs[None] == least < needs["guided"]
    enough = CPU._replace(usable_bytes=least)
    compile_all(recipe, 1, (1,), enough, quiet)
    with pytest.raises(HarnessError) as raised:
        compile_all(recipe, 1, (1,), enough, quiet, "guided")
    assert raised.value.code == "does-not-fit"


def test_an_engine_without_the_second_program_refuses_a_previous_chunk(tmp_path: Path) -> None:
    recipe = tiny()
    step = write_checkpoint(tmp_path / "5", recipe)
    engine = engine_of(recipe, step, 1, (1, TOKENS))
    given, noise = inputs_of(recipe, 1, TOKENS)
    assert engine.rtc is None
    with pytest.raises(HarnessError, match="--rtc") as raised:
        engine.sample(Inputs(*given), noise, rows_of(chunks(recipe, ((1, 2),)), 1, "guided"))
    assert raised.value.code == "shape-not-compiled"
