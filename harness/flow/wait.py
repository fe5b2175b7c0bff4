"""Waiting for a busy card."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from harness.artifacts import Dataset, Machine, Plan
    from harness.flow.chain import Chain

_POLL_S = 5.0


def nowhere() -> Machine:
    """A machine of which nothing is known."""
    from harness.artifacts import Host, Machine

    return Machine(host=Host())


def wait_for_cards(
    chain: Chain, dataset: Dataset | None, asked: dict[str, Any], say: Callable[[str], None]
) -> Plan:
    """The plan, as soon as it has no more deviations than the plan for the idle card.

    Returns at once if no other process holds memory. Ctrl-C ends the wait.

    Raises: HarnessError of `choose`.
    """
    from harness.plan.busy import holders, idle

    while True:
        machine = chain.machine()
        held = holders(machine)
        best = chain.plan(idle(machine), dataset, **asked, say=say) if held else None
        made = chain.plan(machine, dataset, **asked, say=say)
        if (
            best is None
            or best.chosen is None
            or (made.chosen is not None and len(made.chosen.deviations) <= len(best.chosen.deviations))
        ):
            return made
        say(f"waiting: {held}; Ctrl-C ends this")
        try:
            time.sleep(_POLL_S)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
