"""Finds the memory that one plan needs.

It is asked in this order: the atlas; the compiler; counting, if state and gradients alone are already too
much.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from harness.artifacts.plan import STREAMED_DEVICE_BYTES, Levers
from harness.errors import HarnessError
from harness.plan import memory
from harness.plan.atlas import Atlas, Known
from harness.plan.compile import Request
from harness.plan.place import Place
from harness.recipe.schema import Recipe
from harness.units import format_bytes

# A phase that is counted to need no more than this share of its step's bytes is not compiled.
_FAR_BELOW = 0.9
_GONE = ("compile-failed", "device-unavailable", "devices-missing")
Phase = Literal["step", "init", "load", "save"]
Source = Literal["atlas", "compiled", "interpolated", "counted"]


class Need(NamedTuple):
    """The memory that a plan needs. `device_bytes` is the largest of `phases`.

    `host_bytes` are those that the compiled program keeps in host memory.
    """

    device_bytes: int
    host_bytes: int
    source: Source
    phases: dict[str, int]
    activations: int | None = None


class Oracle:
    """Answers for one place; no question is compiled twice."""

    def __init__(
        self,
        place: Place,
        atlas: Atlas | None,
        compile: Callable[..., Any],
        say: Callable[[str], None],
        *,
        recompile: bool,
    ) -> None:
        self._place, self._compile = place, compile
        # The CPU has only one question, and its answer takes seconds.
        self._say = say if place.platform == "cuda" else lambda _: None
        self._atlas, self._recompile = None if recompile or place.platform == "cpu" else atlas, recompile
        self._told: dict[tuple[str, str, str], Known] = {}

    def need(self, recipe: Recipe, levers: Levers, *, hopeless: bool = False) -> Need:
        """The need of this plan: of its step, and, if the step fits, of the phases around it.

        A `hopeless` plan, refused already, is not compiled.

        Raises: HarnessError "compile-failed", "compile-timeout", "no-target-compiler".
        """
        usable, streamed = self._place.usable_bytes, levers.save == "streamed"
        levers = _compiled_as(levers)
        step = self._known(recipe, levers, "step")
        # A bound that does not fit is accepted only for a card that nothing was compiled for.
        if step is None or (self._is_loose(step) and not hopeless and not self._place.stands_in):
            least = memory.least_bytes(recipe, levers)
            if hopeless or (usable is not None and least > usable):
                return Need(least, 0, "counted", {})
            step = self._compiled(recipe, levers, "step")
        phases = {"step": step.bytes["device"]}
        if not hopeless and self._place.platform == "cuda" and (usable is None or phases["step"] <= usable):
            around: tuple[Phase, ...] = ("init" if recipe.weights.source is None else "load", "save")
            for phase in around:
                phases[phase] = self._phase(recipe, levers, phase, phases["step"])
            if streamed:
                phases["save"] += STREAMED_DEVICE_BYTES
        return Need(max(phases.values()), step.bytes.get("host", 0), step.source, phases, step.activations)

    def has_step(self, recipe: Recipe, levers: Levers) -> bool:
        """Whether the step of this plan is known, or bounded, without the compiler."""
        return self._known(recipe, _compiled_as(levers), "step") is not None

    def tells(self, recipe: Recipe, levers: Levers) -> bool:
        """Whether the compiler need not be asked about the step of this plan."""
        step = self._known(recipe, _compiled_as(levers), "step")
        return step is not None and not self._is_loose(step)

    def _is_loose(self, step: Known) -> bool:
        """An upper bound that fits is an answer. A bound that does not fit decides nothing."""
        usable = self._place.usable_bytes
        return step.source == "interpolated" and usable is not None and step.bytes["device"] > usable

    def _phase(self, recipe: Recipe, levers: Levers, phase: Phase, step: int) -> int:
        alike = beside_steps(levers)
        known = self._known(recipe, alike, phase)
        if known is None and not self._recompile:
            # A phase that is far below the step decides nothing, and a compilation takes as long as a step's.
            counted = memory.phase_bytes(recipe, alike, phase)
            if counted <= _FAR_BELOW * step:
                return counted
        known = known or self._compiled(recipe, alike, phase)
        return known.bytes["device"]

    def _known(self, recipe: Recipe, levers: Levers, phase: Phase) -> Known | None:
        told = self._told.get((recipe.sha256(), levers.model_dump_json(), phase))
        return told or (self._atlas.look_up(recipe, levers, phase) if self._atlas is not None else None)

    def _compiled(self, recipe: Recipe, levers: Levers, phase: Phase) -> Known:
        what = f"{recipe.train.trained}, " + (f"microbatch {levers.microbatch}" if phase == "step" else phase)
        what += f", {' and '.join(levers.host)} in host memory" if levers.host else ""
        what += f", remat {levers.remat}" if levers.remat != "block" else ""
        self._say(f"compiling for {self._place.name}: {what}")
        answer = self._ask(recipe, levers, phase)
        self._say(f"{what}: {format_bytes(answer.bytes['device'])}")
        known = Known(answer.bytes, "compiled", answer.program_sha256, None)
        self._told[recipe.sha256(), levers.model_dump_json(), phase] = known
        return known

    def _ask(self, recipe: Recipe, levers: Levers, phase: Phase) -> Any:
        place = self._place
        # A compiler for cards reaches those of this machine alone. CPUs of other machines are as this one.
        if place.here and (place.hosts == 1 or place.platform == "cpu"):
            try:
                return self._compile(
                    Request(recipe=recipe, levers=levers, phase=phase), uuids=place.uuids[: levers.devices]
                )
            except HarnessError as error:
                # NVML may list a card on which JAX cannot start at the moment. The compiler then takes the
                # card's description instead.
                if place.card is None or error.code not in _GONE:
                    raise
        assert place.card is not None
        return self._compile(Request(recipe=recipe, levers=levers, phase=phase, target=place.card.target()))


def _compiled_as(levers: Levers) -> Levers:
    """The levers that the compiler and the atlas are asked about: how a save is made changes no program."""
    return levers.model_copy(update={"save": "async"})


def beside_steps(levers: Levers) -> Levers:
    """These levers as the phases before and between steps are asked about.

    Those depend neither on batches nor on how a step is computed, nor on when a save is written.
    """
    ones = dict.fromkeys(("microbatch", "accumulation_steps", "prompt_tokens"), 1)
    return _compiled_as(levers).model_copy(update=ones | {"attention": "full", "remat": "block"})


def not_asked(*_: object, **__: object) -> object:
    """Replaces the compiler, for answers from the atlas alone.

    Raises: HarnessError "not-in-atlas".
    """
    raise HarnessError(
        "not-in-atlas",
        "the atlas does not know, and the compiler is not asked here",
        fix="harness plan --compile",
    )


def shortage(need: int, have: int | None, what: str, *, at_least: bool = False) -> str | None:
    """Why `need` bytes of `what` are too much, or None. `at_least`: the true need may be larger."""
    if have is None or need <= have:
        return None
    least = "at least " if at_least else ""
    return (
        f"needs {least}{format_bytes(need)} {what}".rstrip()
        + f" of {format_bytes(have)} usable: {least}{format_bytes(need - have)} too much"
    )


def enough(need: Need, place: Place) -> str:
    """A sentence on what the plan needs of the usable bytes."""
    usable = place.usable_bytes
    return f"needs {format_bytes(need.device_bytes)}" + (
        f" of {format_bytes(usable)} usable" if usable is not None else "; how much is usable is not known"
    )
