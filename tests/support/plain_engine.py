"""An engine around `Pi05.sample_actions` as it stands: the reference that a faster engine is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from harness.checkpoint.locate import Located
from harness.predict.predict import Say
from harness.recipe.sampling import STEPS, deviations
from harness.recipe.schema import Recipe
from harness.serve.lengths import cameras_of
from harness.serve.rtc import Form, PreviousRows
from harness.serve.types import Inputs

# sample(images, tokens, token_mask, noise) → actions.
Program = Callable[[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray], Any]


class PlainEngine:
    """`Pi05.sample_actions` in the recipe's type; prompts of one length, the recipe's.

    `programs` are the compiled ones, by batch size.
    """

    def __init__(
        self, recipe: Recipe, batches: tuple[int, ...], programs: dict[int, Program], steps: int = STEPS
    ) -> None:
        self.deviations = deviations(steps)
        self.attention: Literal["kernels", "xla"] = "xla"
        self.rtc: Form | None = None
        self.horizon, self.action_dim = recipe.model.action_horizon, recipe.model.action_dim
        self.buckets: tuple[int, ...] = (recipe.model.prompt_tokens,)
        self.batches = batches
        self.cameras = cameras_of(recipe)
        self._size, self._programs = recipe.model.image_size, programs

    def warm(self, say: Callable[[str], None]) -> None:
        """Runs every compiled shape once."""
        for rows in self.batches:
            say(f"warming the shape of {rows} row{'s' if rows > 1 else ''}")
            inputs = empty_inputs(self.cameras, rows, self.buckets[-1], self._size)
            self.sample(inputs, np.zeros((rows, self.horizon, self.action_dim), np.float32))

    def sample(self, inputs: Inputs, noise: np.ndarray, previous: PreviousRows | None = None) -> np.ndarray:
        """Normalized actions float32 [B, H, D] from noise float32 [B, H, D]; it has no second program."""
        assert previous is None
        program = self._programs[len(noise)]
        return np.asarray(program(inputs.images, inputs.tokens, inputs.token_mask, noise), np.float32)


def empty_inputs(cameras: tuple[str, ...], rows: int, length: int, size: int) -> Inputs:
    """Inputs of rows that nobody asked for: black pictures and no prompt."""
    return Inputs(
        {camera: np.zeros((rows, size, size, 3), np.uint8) for camera in cameras},
        np.zeros((rows, length), np.int32),
        np.zeros((rows, length), bool),
    )


def open_engine(
    located: Located,
    recipe: Recipe,
    *,
    steps: int,
    batches: tuple[int, ...],
    say: Say,
    base: str | None = None,
    **_on_and_rtc: Any,
) -> PlainEngine:
    """The engine of a checkpoint, with `steps` Euler steps, asked for as the product's own is."""
    import jax

    from harness.checkpoint.weights import load_params
    from harness.model.pi05 import bind, graph_of
    from harness.train.setup import keeper, setup_of
    from harness.train.sharding import Layout
    from harness.train.step import observe

    recipe = recipe.parts()[0]
    setup, model = setup_of(recipe, Layout(jax.local_devices()[:1])), recipe.model
    graph, cameras = graph_of(model, remat="none"), cameras_of(recipe)

    def sample(params: Any, images: Any, tokens: Any, token_mask: Any, noise: Any) -> Any:
        seen = observe({"images": images, "tokens": tokens, "token_mask": token_mask}, None)
        return bind(graph, params).sample_actions(seen, noise, steps)

    compiled = {}
    for rows in batches:
        say(f"compiling for {rows} row{'s' if rows > 1 else ''}")
        like = empty_inputs(cameras, rows, model.prompt_tokens, model.image_size)
        noise = np.zeros((rows, model.action_horizon, model.action_dim), np.float32)
        compiled[rows] = jax.jit(sample).lower(setup.shapes.state.params, *like, noise).compile()
    say(f"loading the parameters of {located.path}")
    params = load_params(located.path, setup.shapes.params, base=base, keep=keeper(setup)).params
    programs: dict[int, Program] = {rows: _with(params, one) for rows, one in compiled.items()}
    return PlainEngine(recipe, batches, programs, steps)


def _with(params: Any, compiled: Any) -> Program:
    return lambda images, tokens, token_mask, noise: compiled(params, images, tokens, token_mask, noise)
