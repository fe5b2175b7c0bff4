"""How a device would serve a recipe's policy: `harness plan --serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.flow.trainer import Question

if TYPE_CHECKING:
    from harness.artifacts import ServingPlan


def plan_of(question: Question, batch: int) -> ServingPlan:
    """The plan that was asked for. It is written into the run that the question names.

    Raises: HarnessError "no-gpu", "gpu-unknown", "batch-invalid", and others of the device and the compiler.
    """
    from harness.flow.chain import chain_for
    from harness.flow.wait import nowhere
    from harness.plan.serving import device_of, plan_serving
    from harness.show.progress import spinner

    chain = chain_for(question.run, question.recipe, question.sets, "ours")
    with spinner("planning") as say:
        # This machine says nothing about a card that it does not have.
        machine = chain.machine() if question.asked["gpu"] is None else nowhere()
        device = device_of(chain.recipe, machine, question.asked)
        planned = plan_serving(chain.recipe, device, batch, say, recompile=question.asked["recompile"])
    if chain.run is not None:
        chain.run.write(planned)
    return planned
