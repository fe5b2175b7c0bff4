"""The engine: every shape compiled ahead, the bytes checked, then the weights loaded.

It is what the server asks for actions (`harness.serve.types.Engine`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.checkpoint.locate import Located
from harness.errors import HarnessError
from harness.predict.predict import Device
from harness.recipe.sampling import check_rows, check_steps, deviations
from harness.recipe.schema import Recipe
from harness.serve.lengths import Kernels, attention_named, buckets_of, cameras_of, kernels_for
from harness.serve.rtc import Form, PreviousRows, form_of
from harness.serve.types import Array, Inputs
from harness.units import format_bytes

if TYPE_CHECKING:
    import jax

    from harness.serve.compiled import Compiled, Shape
    from harness.serve.program import Arrays

Say = Callable[[str], None]
# XLA compiles a shape on one core for the most part.
_COMPILERS = 4


class FastEngine:
    """A policy that is ready to act. `deviations` says what changes its actions beyond rounding.

    `clean` are the modulations of `harness.serve.weights.clean_modulations`, where actions are continued.
    """

    def __init__(
        self,
        recipe: Recipe,
        steps: int,
        compiled: dict[Shape, Compiled],
        arrays: Arrays,
        clean: jax.Array | None = None,
        kernels: Kernels = "none",
    ) -> None:
        self.horizon, self.action_dim = recipe.model.action_horizon, recipe.model.action_dim
        self.buckets = tuple(sorted({shape.bucket for shape in compiled}))
        self.batches = tuple(sorted({shape.batch for shape in compiled}))
        self.cameras = cameras_of(recipe)
        self.deviations = deviations(steps)
        self.attention = attention_named(kernels)
        self.device_bytes = max(each.need for each in compiled.values())
        self._side = recipe.model.image_size
        self._form = form_of(recipe.train.most_delay)
        self.rtc = self._form if any(shape.rtc is not None for shape in compiled) else None
        self._compiled, self._arrays = compiled, arrays
        self._clean = () if clean is None else (clean,)

    def warm(self, say: Say) -> None:
        """Runs every shape once: the first run of a program is slower than all others."""
        for number, shape in enumerate(self._compiled, 1):
            say(f"warming {number} of {len(self._compiled)}: {_named(shape)}")
            batch, bucket = shape.batch, shape.bucket
            images = np.zeros((batch, self._side, self._side, 3), np.uint8)
            tokens = np.zeros((batch, bucket), np.int32)
            inputs = Inputs(dict.fromkeys(self.cameras, images), tokens, tokens == 0)
            noise = np.zeros((batch, self.horizon, self.action_dim), np.float32)
            previous = None if shape.rtc is None else PreviousRows(noise, noise[..., 0])
            self.sample(inputs, noise, previous)

    def sample(self, inputs: Inputs, noise: Array, previous: PreviousRows | None = None) -> Array:
        """Normalized actions float32 [B, H, D] from noise of that shape, that go on from `previous`.

        Raises: HarnessError "shape-not-compiled" for other rows or prompt lengths than those compiled.
        """
        from harness.serve.compiled import Shape

        shape = Shape(len(inputs.tokens), inputs.tokens.shape[1], None if previous is None else self._form)
        if shape not in self._compiled:
            raise HarnessError(
                "shape-not-compiled",
                f"nothing is compiled for {shape.batch} rows with prompts of {shape.bucket} tokens"
                + (", after a previous chunk" if previous is not None else ""),
                need=f"{_either(self.batches)} rows, {_either(self.buckets)} tokens",
                fix="pad the rows and prompts to the next of these"
                if previous is None or self.rtc
                else "harness serve STEP --rtc, which compiles the program for previous chunks",
            )
        given: tuple[Any, ...] = (self._call(inputs, noise),)
        if previous is not None:
            given += (self._after(previous), *self._clean)
        done = self._compiled[shape].run(self._arrays, *given)
        return np.asarray(done)[:, : self.horizon]

    def _call(self, inputs: Inputs, noise: Array) -> Any:
        """The inputs as the program takes them: all cameras in one array, lengths padded."""
        import jax.numpy as jnp

        from harness.serve.program import Call, padded

        batch, bucket = inputs.tokens.shape
        absent = np.zeros((batch, self._side, self._side, 3), np.uint8)
        images = np.stack([inputs.images.get(camera, absent) for camera in self.cameras], axis=1)
        seen = np.tile([camera in inputs.images for camera in self.cameras], (batch, 1))
        tokens = np.zeros((batch, padded(bucket)), np.int32)
        token_mask = np.zeros(tokens.shape, bool)
        tokens[:, :bucket], token_mask[:, :bucket] = inputs.tokens, inputs.token_mask
        start = np.zeros((batch, padded(self.horizon), self.action_dim), np.float32)
        start[:, : self.horizon] = noise
        return Call(*map(jnp.asarray, (images, seen, tokens, token_mask, start)))

    def _after(self, previous: PreviousRows) -> Any:
        """The previous chunks as the program takes them, padded to its rows."""
        import jax.numpy as jnp

        from harness.serve.program import padded
        from harness.serve.rtc_program import After

        behind = (0, padded(self.horizon) - self.horizon)
        chunk = np.pad(previous.chunk, ((0, 0), behind, (0, 0)))
        return After(jnp.asarray(chunk), jnp.asarray(np.pad(previous.weights, ((0, 0), behind))))


def _named(shape: Shape) -> str:
    after = "" if shape.rtc is None else f", {shape.rtc} after a previous chunk"
    rows = f"{shape.batch} row{'s' if shape.batch > 1 else ''}"
    return f"{rows}, prompts of {shape.bucket} tokens{after}"


def _either(numbers: tuple[int, ...]) -> str:
    return " or ".join(map(str, numbers))


def open_engine(
    located: Located,
    recipe: Recipe,
    *,
    on: Device,
    steps: int,
    batches: tuple[int, ...],
    say: Say,
    base: str | None = None,
    rtc: bool = False,
    own_kernels: bool = True,
) -> FastEngine:
    """The engine of the checkpoint, its bytes checked by the compiler before a weight is read.

    The environment names the device. `base` is the new directory of the weights that a step of only trained
    parameters needs. `rtc` compiles the second program as well, in the form that the recipe trained. Without
    `own_kernels` all is in XLA's operations.
    Raises: HarnessError "sampling-steps-invalid", "batch-invalid", "does-not-fit", "serve-kernels-differ",
    and those of the weights.
    """
    check_steps(steps)
    for rows in batches or (0,):
        check_rows(rows)
    form = form_of(recipe.train.most_delay) if rtc else None
    kernels = kernels_for(recipe.model, on.platform) if own_kernels else "none"
    compiled = compile_all(recipe, steps, batches, on, say, form, kernels)
    if kernels != "none":
        _check(recipe, batches, kernels, say)
    from harness.serve.weights import clean_modulations, load

    say(f"loading the weights of {located.path}")
    arrays = load(located.path, recipe, steps, base=base)
    clean = clean_modulations(located.path, recipe, base=base) if form == "continued" else None
    return FastEngine(recipe, steps, compiled, arrays, clean, kernels)


def _check(recipe: Recipe, batches: tuple[int, ...], kernels: Kernels, say: Say) -> None:
    from harness.serve.kernel_check import check_kernels

    worst = max(check_kernels(recipe, rows, kernels) for rows in batches)
    say(f"the kernels of the action rows differ from XLA's operations by {worst:.2g} of the largest value")


def compile_all(
    recipe: Recipe,
    steps: int,
    batches: tuple[int, ...],
    on: Device,
    say: Say,
    rtc: Form | None = None,
    kernels: Kernels = "none",
) -> dict[Shape, Compiled]:
    """Every shape compiled, the largest first, which decides whether the engine fits.

    With `rtc` each shape also has a program whose actions go on from a previous chunk.
    Raises: HarnessError "does-not-fit".
    """
    from harness.serve.compiled import Shape, compile_shape

    forms: tuple[Form | None, ...] = (None,) if rtc is None else (rtc, None)
    buckets = buckets_of(recipe.model)[::-1]
    shapes = [
        Shape(batch, bucket, form) for batch in sorted(batches)[::-1] for bucket in buckets for form in forms
    ]

    def one(number: int, shape: Shape) -> Compiled:
        say(f"compiling {number} of {len(shapes)}: {_named(shape)}")
        return compile_shape(recipe, steps, shape, kernels=kernels)

    first = one(1, shapes[0])
    _check_fits(first, shapes[0], on)
    with ThreadPoolExecutor(min(_COMPILERS, os.cpu_count() or 1)) as pool:
        rest = list(pool.map(one, range(2, len(shapes) + 1), shapes[1:]))
    found = dict(zip(shapes, [first, *rest], strict=True))
    for shape, compiled in found.items():
        _check_fits(compiled, shape, on)
    return found


def _check_fits(compiled: Compiled, shape: Shape, on: Device) -> None:
    if on.usable_bytes is None or compiled.need <= on.usable_bytes:
        return
    smaller = f"--batch 1, where {shape.batch} rows do not fit; or " if shape.batch > 1 else ""
    raise HarnessError(
        "does-not-fit",
        f"serving does not fit {on.name}; nothing was allocated",
        got=f"{format_bytes(on.usable_bytes)} usable",
        need=f"{format_bytes(compiled.need)} by XLA's buffer assignment, for {shape.batch} rows",
        fix=f"{smaller}free the device's memory (harness probe shows who holds it)"
        + (", or --device cpu" if on.platform == "cuda" else ""),
    )
