"""Checks of the plan: it exists, and it keeps the recipe's own mathematics."""

from __future__ import annotations

from collections.abc import Iterator

from harness.artifacts.doctor import Finding
from harness.doctor.situation import Situation, error, unknown, warning, without_plan

# Refusals of the planner that another check reports in full.
_SAID_BY = {
    "no-gpu": "GPU and JAX",
    "gpu-too-old": "compute capability",
    "xla-flags-refused": "XLA flags",
    "weights-first": "weights directory",
}


def plan(situation: Situation) -> Iterator[Finding]:
    """Checks that a plan can be made for this machine."""
    refusal = situation.refusal
    if refusal is None:
        if situation.plan is None:
            yield unknown("plan", "no plan was made", "a plan", "harness plan")
        return
    other = _SAID_BY.get(refusal.code)
    if other is not None:
        # Keeps only the part of the fix that no other check gives: how to plan for an absent card.
        elsewhere = refusal.fix.rpartition("; or ")[2] if "harness plan" in refusal.fix else ""
        yield unknown(
            "plan",
            f"none could be made: see {other}",
            "a plan",
            f"mend what the check {other} names" + (f"; {elsewhere}" if elsewhere else ""),
        )
        return
    got = f"[{refusal.code}] {refusal.what}" + (f": {refusal.got}" if refusal.got else "")
    yield error("plan", got, refusal.need or "a plan", refusal.fix)


def deviations(situation: Situation) -> Iterator[Finding]:
    """Checks that the plan keeps the recipe's own mathematics.

    Each deviation gives a warning, before the run.
    """
    chosen = situation.plan.chosen if situation.plan else None
    if chosen is None:
        yield without_plan("deviation", situation)
        return
    for deviation in chosen.deviations:
        yield warning(
            "deviation",
            deviation,
            "the recipe as it is written",
            "harness plan --exact tells the smallest card that carries it out exactly",
        )
