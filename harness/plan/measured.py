"""Step times that were measured on cards, beside what the cost model predicts for them.

OURS are of this project's step. The model is held to them: tests/test_plan_measured.py bounds their error.
They are of one card of one architecture, so for every other card the model's rates are assumed (`plan.cost`).

OTHERS are published step times of other programs for the same model: openpi's on JAX, and LeRobot's on
PyTorch. They are not modelled. The prediction beside them is that of our step for the same card, batch,
cameras and prompt. Their distance says how far apart the two programs are, and whether the rate that is
assumed for an architecture is absurd.

Source of OURS: this project at 1c676cc on one NVIDIA H200 (driver 580.159), 2026-11-28, with jax 0.11.2 and
CUDA 13, which are not the pinned ones; random weights, synthetic batches; the median of three steps, or the
mean of two.
Source of OTHERS, in samples a second and card: public training logs and model cards, among them
hf.co/Adam-YAN/pi05-liberox-base; LeRobot's hardware_guide.mdx. A range is given by its middle. Where the
source does not say how the state lies, it is taken as sharded over all cards.
"""

from __future__ import annotations

from typing import NamedTuple

from harness.artifacts import Levers
from harness.plan.cards import CARDS
from harness.plan.cost import seconds_per_step
from harness.recipe.load import load_recipe

_H200, _OPENPI, _LEROBOT = "our run, 2026-11-28", "openpi, published logs", "LeRobot, hardware guide"
_HOST: list[str] = ["ema", "moments", "masters"]


class Point(NamedTuple):
    """One measured step. `card` is a key of CARDS; `seconds` are of one step of the whole batch."""

    name: str
    source: str
    card: str
    seconds: float
    levers: Levers
    recipe: str = "pi05_libero"

    @property
    def predicted(self) -> float:
        """Seconds by the cost model, with no loader to wait for."""
        return seconds_per_step(load_recipe(self.recipe), self.levers, CARDS[self.card], None)

    @property
    def error(self) -> float:
        """Share by which the prediction is too long; negative where it is too short."""
        return self.predicted / self.seconds - 1


def _ours(microbatch: int, accumulation: int, host: list[str]) -> Levers:
    return Levers.model_validate(
        {
            "platform": "cuda",
            "microbatch": microbatch,
            "accumulation_steps": accumulation,
            "prompt_tokens": 48,
            "cameras": ["base_0_rgb", "left_wrist_0_rgb"],
            "host": host,
        }
    )


def _theirs(name: str, source: str, card: str, batch: int, per_gpu: float, devices: int = 1) -> Point:
    """A point of a program that computes three images and 200 prompt tokens, without accumulation."""
    levers = Levers(
        platform="cuda",
        devices=devices,
        fsdp=devices,
        microbatch=batch // devices,
        prompt_tokens=200,
        cameras=["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"],
    )
    return Point(name, source, card, batch / devices / per_gpu, levers)


OURS = (
    Point("256 = 32 x 8, state on the card", _H200, "h200", 5.20, _ours(32, 8, [])),
    Point("64 = 32 x 2, state on the card", _H200, "h200", 1.33, _ours(32, 2, [])),
    Point("64 = 8 x 8, state in host memory, pool of 21.25 GiB", _H200, "h200", 3.95, _ours(8, 8, _HOST)),
)
OTHERS = (
    _theirs("batch 32", _OPENPI, "a100_80", 32, 8.65),
    _theirs("batch 32 on 4 cards (15 to 17.6 samples/s each)", _OPENPI, "h100", 32, 16.3, 4),
    _theirs("batch 256 on 4 cards, FSDP", _OPENPI, "h200", 256, 23.6, 4),
    _theirs("batch 32 on 8 cards", _OPENPI, "a40", 32, 1.7, 8),
    _theirs("batch 128 on 4 cards", _LEROBOT, "h100", 128, 12.6, 4),
)


def of_device(device: str) -> list[Point]:
    """Our points that were measured on the card which a plan's `device` names."""
    name = device.rpartition(" of ")[2]
    count, cross, rest = name.partition(" x ")
    if cross and count.isdigit():
        name = rest
    return [point for point in OURS if name in (point.card, CARDS[point.card].device)]


def known_error(device: str, devices: int) -> str:
    """What is known of the cost model's error on this card, in words for a plan."""
    points = of_device(device)
    if not points:
        return "cost model, never measured on this card"
    most = max(abs(point.error) for point in points)
    said = f"cost model; at most {100 * most:.0f} % off in {len(points)} steps measured on this card"
    return said if devices == 1 else f"{said}, never measured on several"
