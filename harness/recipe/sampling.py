"""How actions are sampled: the number of Euler steps, and of rows at once."""

from __future__ import annotations

from harness.errors import HarnessError

# What π0.5 is sampled with. Source: openpi src/openpi/models/pi0.py `sample_actions`, commit 15a9616.
STEPS = 10
# More rows at once than any evaluation has workers on a machine.
MOST_ROWS = 256


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


def check_rows(rows: int) -> None:
    """Refuses a number of rows that no call has.

    Raises: HarnessError "batch-invalid".
    """
    if not 1 <= rows <= MOST_ROWS:
        raise HarnessError(
            "batch-invalid",
            "a call has at least one row, and no device takes thousands",
            got=rows,
            need=f"1 to {MOST_ROWS}",
            fix="--batch 1",
        )


def deviations(steps: int) -> list[str]:
    """What so many steps change of the actions beyond rounding, a sentence each."""
    if steps == STEPS:
        return []
    return [f"--steps {steps}: {steps} Euler steps instead of {STEPS}; what it costs in success is not known"]
