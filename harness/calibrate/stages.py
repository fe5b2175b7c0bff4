"""The stages of a calibration, the most telling first, and what passes between a stage and its parent.

A stage is `python -m harness.calibrate.stage`: a request as JSON on stdin, lines of JSON on stdout. Each line
says what is being done; the last one is the answer.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from harness.artifacts import Ceilings, Context, Latency, MeasuredPlan
from harness.artifacts.plan import Levers
from harness.strict import Strict
from harness.units import GIB

# The pool in which the plan with its state in host memory runs: a card of 24 GB has as much.
POOL_BYTES = 22 * GIB
# A stage that has less time than this is not begun: JAX alone takes some seconds to start.
LEAST_S = 15.0
_PUBLISHED, _LORA = "pi05_libero", "pi05_libero_lora"
_NO_WEIGHTS: dict[str, Any] = {"weights.source": None}


class Work(Strict):
    """What a stage measures.

    `changes` are those of a shipped `recipe`. `pool_bytes` is the size that JAX's pool is made; None: what
    the plan gives it. `levers` are taken instead of a plan's. The products are those of `rows` samples, and
    one program has `chained` of them. `bytes` is the size of an array that is copied. `steps` are timed.
    """

    kind: Literal["ceilings", "context", "plan", "sampling"]
    recipe: str = _PUBLISHED
    changes: dict[str, Any] = {}
    exact: bool = True
    pool_bytes: int | None = None
    levers: Levers | None = None
    rows: int = 32
    chained: int = 20
    bytes: int = GIB
    steps: int = 3


class Request(Strict):
    """One stage for one device. `used_bytes` were in use on the card before it began.

    `index` is the card's number in NVML's order; None where NVML's figures are not of this device alone.
    """

    work: Work
    platform: Literal["cuda", "cpu"] = "cuda"
    index: int | None = 0
    total_bytes: int | None = None
    used_bytes: int | None = None


class Answer(Strict):
    """What a stage has found, or why it measured nothing: `skipped`, or `refused` by an error with a code."""

    skipped: str | None = None
    refused: str | None = None
    code: str | None = None
    ceilings: Ceilings | None = None
    context: Context | None = None
    plan: MeasuredPlan | None = None
    sampling: list[Latency] | None = None


class Stage(NamedTuple):
    """One stage: its name, what it is in words, its work, and the seconds that it may take."""

    name: str
    title: str
    work: Work
    limit_s: float


STAGES = (
    Stage("full", "the published recipe, as the planner chooses", Work(kind="plan"), 240),
    Stage("ceilings", "products, copies and the host's link", Work(kind="ceilings"), 90),
    Stage("context", "memory outside of the pool", Work(kind="context"), 60),
    Stage("lora", "LoRA", Work(kind="plan", recipe=_LORA, exact=False), 240),
    Stage("sampling", "one action chunk", Work(kind="sampling"), 240),
    Stage(
        "host_state",
        "state in host memory, in a pool of 22 GiB",
        Work(kind="plan", pool_bytes=POOL_BYTES),
        360,
    ),
    Stage(
        "moments_8bit",
        "moments in 8 bits",
        Work(kind="plan", changes={"train.optimizer.moments": "int8"}),
        240,
    ),
    Stage(
        "frozen_vision",
        "LoRA with the vision tower frozen",
        Work(kind="plan", recipe=_LORA, changes={"train.trained": "lora_frozen_vision"}, exact=False),
        240,
    ),
)
