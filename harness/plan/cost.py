"""Predicts how long a step takes, to rank plans of one recipe on one card: a stated model, not a measurement.

    step = accumulation x (max(operations / sustained rate, weight traffic / memory bandwidth) + launches)
         + state traffic / memory bandwidth            the update
         + offloaded bytes / link                      counted as if nothing overlapped
         + gathered and summed bytes / link            several devices
         + bytes over the network / its rate           several machines
    and never less than the loader needs for the global batch.

Sustained rates are 0.4 of a card's dense bfloat16 peak, and 0.8 of the nominal bandwidth of its memory and of
its link. A layer's pass counts as 30 kernels of 5 µs each, which makes a small microbatch slow. These are
assumptions, to be corrected by the step times of real runs. The peak is multiprocessors x operations a clock
x boost clock. It agrees with the dense bfloat16 rate (float32 accumulation) of the cards' documents to 2.5
percent:
RTX 3060 25.5, 4090 165, 5090 210, A6000 155, L4 121, L40S 366, A100 312 TFLOP/s.

Source: tensor-core operations a clock and multiprocessor: the white papers named in plan.cards. GeForce cards
run them at half rate when they accumulate in float32. Hopper and B200 do not hold their boost clock: their
documents' 989 and 2250 TFLOP/s are at the clocks below.
Link: PCIe 4.0 x16 is 31.5 GB/s each way, 5.0 x16 63 GB/s (PCI-SIG); NVLink of the SXM boards, each way, by
their documents.
"""

from __future__ import annotations

import functools
import math

from harness.artifacts import Levers
from harness.plan.cards import Card
from harness.plan.memory import counted, pinned_bytes, state_parts
from harness.recipe.parameters import GEMMA, VISION, group_of, is_trained, parameter_shapes
from harness.recipe.schema import Model, Recipe, Trained

SUSTAINED_COMPUTE = 0.4
SUSTAINED_BYTES = 0.8
LAUNCHES_S = 30 * 5e-6
# Samples of two 256-pixel images a second and core: an assumption on the low side. benchmarks/data_loader.py
# measures the figure, and a run reports when it is lower.
LOADER_SAMPLES_PER_CORE = 150.0
_PER_CLOCK = {(8, 0): 2048, (9, 0): 4096, (10, 0): 8192}
_PER_CLOCK_PROFESSIONAL, _PER_CLOCK_GEFORCE = 1024, 512
_HELD_CLOCK_MHZ = {(9, 0): 1830, (10, 0): 1856}
_PCIE_4, _PCIE_5 = 31.5e9, 63e9
_NVLINK = {"A100-SXM": 300e9, "H100 80GB HBM3": 450e9, "H200": 450e9, "B200": 900e9}


def peak_flops(card: Card) -> float:
    """Dense bfloat16 operations a second with float32 accumulation."""
    if card.tflops is not None:
        return card.tflops * 1e12
    usual = _PER_CLOCK_GEFORCE if "GeForce" in card.device else _PER_CLOCK_PROFESSIONAL
    clock = _HELD_CLOCK_MHZ.get(card.capability, card.clock)
    return card.processors * _PER_CLOCK.get(card.capability, usual) * clock * 1e6


def host_link(card: Card) -> float:
    """Bytes a second between the card and host memory, one way."""
    return _PCIE_5 if card.capability >= (9, 0) else _PCIE_4


def device_link(card: Card) -> float:
    """Bytes a second between two such cards, one way; optional bridges are not counted."""
    return next((rate for name, rate in _NVLINK.items() if name in card.device), host_link(card))


def flops_per_sample(recipe: Recipe, levers: Levers) -> float:
    """Operations of one sample, forward and backward.

    A kernel element counts 2 for each token; attention counts 4·T·S·N·H a layer. Where a gradient passes, a
    block's forward is computed again (`remat` block) and the gradients of its inputs are computed. The
    gradients of its kernels are computed only if these are trained.
    """
    return _flops(
        recipe.model,
        recipe.train.trained,
        len(levers.cameras),
        levers.prompt_tokens,
        1 if levers.remat == "block" else 0,
    )


def held_out_seconds(recipe: Recipe, levers: Levers, card: Card, rows: int, sampling_steps: int) -> float:
    """Predicted seconds of a held-out pass over so many rows, by the same model.

    A row is a forward pass for the loss, another for the prefix that sampling begins with, and the action
    expert at each step of sampling. The vision tower is counted in both. Parameters in host memory are read
    once for every piece of rows.
    """
    model, cameras = recipe.model, len(levers.cameras)
    each = max(1, min(levers.microbatch, -(-rows // levers.devices)))
    calls = -(-rows // (each * levers.devices))
    whole = _flops(model, None, cameras, levers.prompt_tokens, 0)
    expert = sum(
        2.0 * math.prod(shape) * model.action_horizon
        for path, shape in parameter_shapes(model).items()
        if len(shape) > 1 and group_of(path) in ("expert", "projections")
    )
    total, _ = counted(model, recipe.train.trained)
    in_expert = expert / (2.0 * model.action_horizon)
    compute = each * (2 * whole + sampling_steps * expert) / (peak_flops(card) * SUSTAINED_COMPUTE)
    traffic = 2.0 * (2 * total + sampling_steps * in_expert) / (card.bandwidth * 1e6 * SUSTAINED_BYTES)
    layers = VISION[model.vision].depth * cameras + GEMMA[model.paligemma.variant].depth * (
        2 + sampling_steps
    )
    kept = "ema" if recipe.train.ema_decay is not None else "masters"
    read = pinned_bytes(recipe, levers.model_copy(update={"host": [p for p in levers.host if p == kept]}))
    hosted = read * levers.hosts / levers.devices / (host_link(card) * SUSTAINED_BYTES)
    return calls * (max(compute, traffic) + LAUNCHES_S * layers + hosted)


@functools.cache
def _flops(model: Model, trained: Trained | None, cameras: int, prompt_tokens: int, again: int) -> float:
    """Operations of one sample. `trained` None: the forward pass alone."""
    patches = (model.image_size // VISION[model.vision].patch) ** 2
    prefix, actions = cameras * patches + prompt_tokens, model.action_horizon
    tokens = {"vision": cameras * patches, "language": prefix, "expert": actions, "projections": actions}
    total = 0.0
    for path, shape in parameter_shapes(model).items():
        if len(shape) < 2 or path.endswith(("bias", "scale", "pos_embedding", "input_embedding")):
            continue
        group = group_of(path)
        part = ("expert" if "_1/" in path else "language") if group == "adapters" else group
        # The adaptive norms read the time embedding once a sample; their kernels are [.., D, 3D].
        rows = 1 if "Dense_0" in path and part == "expert" else tokens[part]
        learns = trained is not None and is_trained(path, model, trained)
        passes = 1 + (again + 1 if _gradient_passes(trained, part) else 0) + learns
        total += 2.0 * math.prod(shape) * rows * passes
    vision, language = VISION[model.vision], GEMMA[model.paligemma.variant]
    # The attention products hold no parameters. Their backward pass costs twice the forward.
    attended = {part: 3 + again if _gradient_passes(trained, part) else 1 for part in ("vision", "language")}
    images = 4.0 * tokens["vision"] * patches * vision.width * vision.depth
    joint = (
        4.0
        * (prefix * prefix + actions * (prefix + actions))
        * language.heads
        * language.head_dim
        * language.depth
    )
    return total + images * attended["vision"] + joint * attended["language"]


def _gradient_passes(trained: Trained | None, part: str) -> bool:
    """Whether anything at or before this part of the network is trained, so that a gradient must pass it."""
    if trained is None:
        return False
    return {"vision": trained in ("full", "lora"), "language": trained != "action_expert"}.get(part, True)


def seconds_per_step(
    recipe: Recipe, levers: Levers, card: Card, cores: float | None, net_bytes_per_s: float | None = None
) -> float:
    """Predicted seconds of one optimizer step on `levers.devices` such cards.

    `cores` of each host prepare its batches (None: not counted). `net_bytes_per_s` is the rate of a host's
    network, one way; None: no network is between the hosts.
    """
    bandwidth, link = card.bandwidth * 1e6 * SUSTAINED_BYTES, device_link(card) * SUSTAINED_BYTES
    total, trained = counted(recipe.model, recipe.train.trained)
    compute = levers.microbatch * flops_per_sample(recipe, levers) / (peak_flops(card) * SUSTAINED_COMPUTE)
    # Forward, recomputed forward and backward read the weights in bfloat16. A gradient is added to the
    # gradient buffer.
    traffic = 3 * 2.0 * total + 3 * 4.0 * trained
    step = levers.accumulation_steps * (max(compute, traffic / bandwidth) + _launches(recipe, levers))
    parts = state_parts(recipe, levers.model_copy(update={"host": []}))
    step += 2 * sum(parts[name] for name in ("weights", "moments", "ema", "gradients") if trained) / bandwidth
    # Each offloaded byte goes to the card and back, over each card's own link.
    step += (
        2 * pinned_bytes(recipe, levers) * levers.hosts / levers.devices / (host_link(card) * SUSTAINED_BYTES)
    )
    step += _exchanged(levers, total, trained) / link
    step += exchange_seconds(recipe, levers, net_bytes_per_s)
    rows = levers.microbatch * levers.accumulation_steps * levers.devices / levers.hosts
    return step if cores is None else max(step, rows / (LOADER_SAMPLES_PER_CORE * cores))


def exchange_seconds(recipe: Recipe, levers: Levers, net_bytes_per_s: float | None) -> float:
    """Predicted seconds of a step in which bytes pass the network of a host, as if nothing overlapped.

    A ring over all devices crosses each host's network once each way. Gradients are summed over it once a
    microbatch. Shards of the weights are gathered over it only where a replica's shards lie on several hosts.
    """
    if levers.hosts == 1 or net_bytes_per_s is None:
        return 0.0
    total, trained = counted(recipe.model, recipe.train.trained)
    share = (levers.devices - 1) / levers.devices
    across = levers.fsdp > levers.devices // levers.hosts
    gathered = 2 * 2.0 * total * (levers.fsdp - 1) / levers.fsdp if across else 0.0
    moved = levers.accumulation_steps * (share * 2 * 4.0 * trained + gathered)
    return moved / (net_bytes_per_s * SUSTAINED_BYTES)


def _launches(recipe: Recipe, levers: Levers) -> float:
    """Seconds that starting a microbatch's kernels takes, however few samples there are."""
    vision, language = (
        VISION[recipe.model.vision].depth * len(levers.cameras),
        GEMMA[recipe.model.paligemma.variant].depth,
    )
    passes = {
        part: 4 if _gradient_passes(recipe.train.trained, part) else 1 for part in ("vision", "language")
    }
    return LAUNCHES_S * (vision * passes["vision"] + language * passes["language"])


def _exchanged(levers: Levers, total: int, trained: int) -> float:
    """Bytes that each card sends.

    Gradients are summed over all cards once a microbatch. Shards of the weights are gathered twice a
    microbatch.
    """
    share = (levers.devices - 1) / levers.devices
    gathered = 2 * 2.0 * total * (levers.fsdp - 1) / levers.fsdp
    return levers.accumulation_steps * (share * 2 * 4.0 * trained + gathered)
