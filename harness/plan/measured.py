"""Step times that were measured on cards, beside what the cost model predicts for them.

OURS are of this project's step, from the measured files of cards in `harness/plan/gpus/`. The model is held
to them: tests/test_plan_measured.py bounds their error. A card without a file has rates that are assumed
(`plan.cost`). The calibration of this machine's own card is not among them: `plan.calibrated`.

A file has the hash of the step that was measured. Where it is not today's, the measured seconds are those of
an earlier step, and the prediction beside them is of today's. Steps have only become shorter, so such a point
is an upper bound. Where its state lay in host memory it says nothing of the model. The H200's are of the step
before attention had its own backward pass, cameras passed the vision tower together, results were kept for
the backward pass, copies to host memory went both ways at once and updates wrote what the model reads of
masters there.

OTHERS are published step times of other programs for the same model: openpi's on JAX, and LeRobot's on
PyTorch. They are not modelled. The prediction beside them is that of our step for the same card, batch,
cameras and prompt. Their distance says how far apart the two programs are, and whether the rate that is
assumed for an architecture is absurd.

Source of OTHERS, in samples a second and card: public training logs and model cards, among them
hf.co/Adam-YAN/pi05-liberox-base; LeRobot's hardware_guide.mdx. A range is given by its middle. Where the
source does not say how the state lies, it is taken as sharded over all cards.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import NamedTuple

from harness.artifacts import Calibration, CalibrationStage, Levers
from harness.plan.calibrated import step_sha256
from harness.plan.candidates import Changes, changed
from harness.plan.cards import CARDS
from harness.plan.cost import seconds_per_step
from harness.received.litter import named
from harness.recipe.load import recipe_to_look_at
from harness.units import GIB

_OPENPI, _LEROBOT = "openpi, published logs", "LeRobot, hardware guide"
# A pool that is smaller than this share of the card was made so, and is a part of what was measured.
_WHOLE = 0.7


class Point(NamedTuple):
    """One measured step. `card` is a key of CARDS; `seconds` are of one step of the whole batch.

    `earlier`: the code of the step was another one than today's.
    """

    name: str
    source: str
    card: str
    seconds: float
    levers: Levers
    recipe: str = "pi05_libero"
    changes: Changes = {}
    earlier: bool = False

    @property
    def predicted(self) -> float:
        """Seconds by the cost model, with no loader to wait for."""
        recipe = changed(recipe_to_look_at(self.recipe), self.changes)
        return seconds_per_step(recipe, self.levers, CARDS[self.card], None)

    @property
    def error(self) -> float:
        """Share by which the prediction is too long; negative where it is too short."""
        return self.predicted / self.seconds - 1

    @property
    def gone(self) -> bool:
        """Whether what was measured copied otherwise to host memory, so that `error` is not of the model."""
        return self.earlier and bool(self.levers.host)


@functools.cache
def measured_cards() -> dict[str, Calibration]:
    """The measured files of cards in this package, by the key of the card in CARDS."""
    folder = resources.files("harness.plan") / "gpus"
    return {
        file.name.removesuffix(".json"): Calibration.model_validate_json(file.read_bytes())
        for file in named(folder.iterdir(), ".json")
    }


def name_of(stage: CalibrationStage, total_bytes: int | None) -> str:
    """A measured plan in a few words: its batch, what is trained, where the state lies, its pool."""
    plan = stage.plan
    assert plan is not None
    levers = plan.levers
    host = set(levers.host)
    words = [f"{plan.rows} = {levers.microbatch} x {levers.accumulation_steps}"]
    words += [f"{key.rpartition('.')[2]} {value}" for key, value in plan.changes.items() if _is_telling(key)]
    lies = (
        "in host memory" if host >= {"masters", "moments"} else f"on the card, {', '.join(levers.host)} not"
    )
    words += [f"state {lies if host else 'on the card'}"]
    if plan.limit_bytes and total_bytes and plan.limit_bytes < _WHOLE * total_bytes:
        words += [f"pool of {plan.limit_bytes / GIB:.2f} GiB"]
    return ", ".join(words)


def _is_telling(key: str) -> bool:
    return key not in ("weights.source", "train.global_batch") and not key.endswith(".lora")


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


OURS = tuple(
    Point(
        name_of(stage, card.total_bytes),
        f"{card.origin}",
        key,
        stage.plan.step_s,
        stage.plan.levers,
        stage.plan.recipe,
        stage.plan.changes,
        card.step_sha256 != step_sha256(),
    )
    for key, card in measured_cards().items()
    for stage in card.plans()
    if stage.plan is not None
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
    points = [point for point in of_device(device) if not point.gone]
    if not points:
        return "cost model, never measured on this card"
    most = max(abs(point.error) for point in points)
    said = f"cost model; at most {100 * most:.0f} % off in {len(points)} steps measured on this card"
    said += ", of an earlier version of the step" if any(point.earlier for point in points) else ""
    return said if devices == 1 else f"{said}, never measured on several"
