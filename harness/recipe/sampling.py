"""The number of Euler steps that actions are sampled with."""

from __future__ import annotations

from harness.errors import HarnessError

# What π0.5 is sampled with. Source: openpi src/openpi/models/pi0.py `sample_actions`, commit 15a9616.
STEPS = 10


def check_steps(steps: int) -> None:
    """Refuses a number of Euler steps that is none.

    Raises: HarnessError "sampling-steps-invalid".
    """
    if steps < 1:
        raise HarnessError(
            "sampling-steps-invalid",
            "sampling takes at least one step",
            got=steps,
            need="1 or more",
            fix=f"--steps {STEPS}",
        )


def deviations(steps: int) -> list[str]:
    """What so many steps change of the actions beyond rounding, a sentence each."""
    if steps == STEPS:
        return []
    return [f"--steps {steps}: {steps} Euler steps instead of {STEPS}; what it costs in success is not known"]
