"""How a device would serve a recipe's policy: `harness plan --serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.flow.trainer import Question

if TYPE_CHECKING:
    from harness.artifacts import ServingPlan


def plan_of(question: Question, batch: int) -> ServingPlan:
    """The plan that was asked for. It is written into the run that the question names.

    Raises: HarnessError "no-gpu", "gpu-unknown", "batch-invalid", and others of the place and the compiler.
    """
    from harness.flow.chain import chain_for
    from harness.flow.wait import nowhere
    from harness.plan import place as places
    from harness.plan.serving import plan_serving
    from harness.show.progress import spinner

    chain = chain_for(question.run, question.recipe, question.sets, "ours")
    asked = question.asked
    vram, ram = asked["vram_bytes"], asked["host_ram_bytes"]
    with spinner("planning") as say:
        # This machine says nothing about a card that it does not have.
        machine = chain.machine() if asked["gpu"] is None else nowhere()
        elsewhere = vram is not None and not machine.gpus and asked["device"] != "cpu"
        if asked["gpu"] is not None or elsewhere:
            place = places.absent(asked["gpu"], vram, ram)
        else:
            place = places.present(
                chain.recipe, machine, device=asked["device"], vram_bytes=vram, host_ram_bytes=ram
            )
        planned = plan_serving(chain.recipe, place, batch, say, recompile=asked["recompile"])
    if chain.run is not None:
        chain.run.write(planned)
    return planned
