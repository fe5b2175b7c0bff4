"""Predicts how long a step takes, to rank plans of one recipe on one card: a stated model, not a measurement.

    microbatch = max(operations / product rate, reads of the weights / bandwidth)     the matrix products
               + (activations + kept results + casts + gradient sums) / bandwidth     what is no product
               + kernels x the time of one
    step = accumulation x microbatch
         + state traffic / bandwidth                   the update
         + offloaded bytes / link                      both ways at once, beside nothing else
         + gathered and summed bytes / link            several devices
         + bytes over the network / its rate           several machines
    and never less than the loader needs for the global batch.

Rates are shares of a card's nominal ones:
- Products: 0.65 of the dense bfloat16 peak on Hopper. On one H200, products of the model's large shapes gave
  631, 646 and 649 TFLOP/s of 989 with their dispatch (about 736 without it), and smaller ones 194 to 354.
  One share stands for all of them. It is not fitted to a step, but the steps that check it are of the same
  card. No other architecture was measured: all others are assumed to give the same share.
- Memory and links: 0.8 of the nominal rate, assumed. On that H200 pinned host memory gave 53 of 63 GB/s, one
  way. Both ways at once are assumed to give as much each. Of the copies of an update, one piece of a leaf in
  each way has none beside it (`train.host`): 2 to 4 % of them, which are not counted.
- A kernel takes 1.7 µs beside its work (`plan.serving` has its source), and a layer's pass counts as 36:
  XLA's program of a microbatch has 6,373 kernels for 180 of them.
- Bytes of activations are counted in that program: `plan.activations`. A result that is kept for the backward
  pass costs 3.5 times its bytes there: its stack is filled with zeros, copied once, and updated.
How far the sum is from what was measured: `plan.measured`, `python -m benchmarks.cost_points`.

The peak is multiprocessors x operations a clock x boost clock. It agrees with the dense bfloat16 rate
(float32 accumulation) of the cards' documents to 2.5 percent:
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
from harness.plan.activations import kept_bytes, passed_bytes
from harness.plan.cards import Card
from harness.plan.memory import counted, exchanged_bytes, pinned_bytes, state_parts, table_bytes
from harness.plan.operations import (
    Passes,
    flops_per_sample,
    forward_flops,
    part_of,
    prefix_flops,
    tokens_of,
)
from harness.recipe.parameters import (
    GEMMA,
    VISION,
    is_cast_before_use,
    is_kernel,
    is_trained,
    parameter_shapes,
)
from harness.recipe.schema import Model, Recipe, Trained

SUSTAINED_BYTES = 0.8
# Beside its work, a kernel takes so long; `plan.serving` has the source.
KERNEL_SECONDS = 1.7e-6
_KERNELS_A_LAYER = 36
# Bytes moved for each byte that is kept for the backward pass.
_KEPT_TRAFFIC = 3.5
# Of the dense peak, by compute capability: measured on one H200. All others are assumed to sustain as much.
_PRODUCT_SHARE = {(9, 0): 0.65}
_ASSUMED_SHARE = 0.65
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


def product_rate(card: Card) -> float:
    """Operations a second that the model's matrix products sustain."""
    return peak_flops(card) * _PRODUCT_SHARE.get(card.capability, _ASSUMED_SHARE)


def held_out_seconds(recipe: Recipe, levers: Levers, card: Card, rows: int, sampling_steps: int) -> float:
    """Predicted seconds of a held-out pass over so many rows, by the same model.

    A row is a forward pass for the loss, another for the prefix that sampling begins with, and the action
    expert at each step of sampling. The vision tower is computed in both. An average in host memory is read
    once for every piece of rows, else an embedding table there.
    """
    model, tokens = recipe.model, tokens_of(recipe.model, len(levers.cameras), levers.prompt_tokens)
    each = max(1, min(levers.microbatch, -(-rows // levers.devices)))
    calls = -(-rows // (each * levers.devices))
    expert = sum(
        2.0 * math.prod(shape) * model.action_horizon
        for path, shape in parameter_shapes(model).items()
        if is_kernel(path, shape) and part_of(path) in ("expert", "projections")
    )
    total, _ = counted(model, recipe.train.trained)
    bandwidth = card.bandwidth * 1e6 * SUSTAINED_BYTES
    once = forward_flops(model, tokens) + prefix_flops(model, tokens)
    compute = each * (once + sampling_steps * expert) / product_rate(card)
    read = 2.0 * (2 * total + sampling_steps * expert / (2.0 * model.action_horizon)) / bandwidth
    activations = each * 2 * passed_bytes(model, tokens, Passes(None)) / bandwidth
    layers = VISION[model.vision].depth * 2
    layers += GEMMA[model.paligemma.variant].depth * (2 + sampling_steps)
    average = levers.model_copy(update={"host": [part for part in levers.host if part == "ema"]})
    hosted = table_bytes(recipe, levers) if recipe.train.ema_decay is None else pinned_bytes(recipe, average)
    fetched = hosted * levers.hosts / levers.devices / (host_link(card) * SUSTAINED_BYTES)
    return calls * (max(compute, read) + activations + _launches(layers) + fetched)


def seconds_per_step(
    recipe: Recipe,
    levers: Levers,
    card: Card,
    cores: float | None,
    net_bytes_per_s: float | None = None,
    *,
    pace: float = 1.0,
) -> float:
    """Predicted seconds of one optimizer step on `levers.devices` such cards.

    `cores` of each host prepare its batches (None: not counted). `net_bytes_per_s` is the rate of a host's
    network, one way; None: no network is between the hosts. `pace` is how many times the model's seconds one
    card was measured to take (`plan.calibrated`); what passes between devices is not in it.
    """
    bandwidth, link = card.bandwidth * 1e6 * SUSTAINED_BYTES, device_link(card) * SUSTAINED_BYTES
    total, trained = counted(recipe.model, recipe.train.trained)
    step = levers.accumulation_steps * _microbatch_seconds(recipe, levers, card, bandwidth)
    parts = state_parts(recipe, levers.model_copy(update={"host": []}))
    step += 2 * sum(parts[name] for name in ("weights", "moments", "ema", "gradients") if trained) / bandwidth
    # Each offloaded byte goes to the card and back, over each card's own link. The embedding table goes there
    # once more: for the rows that the microbatches read. The copies of the other masters stay on the card.
    passed = exchanged_bytes(recipe, levers) + table_bytes(recipe, levers)
    step += passed * levers.hosts / levers.devices / (host_link(card) * SUSTAINED_BYTES)
    step *= pace
    step += _exchanged(levers, total, trained) / link
    step += exchange_seconds(recipe, levers, net_bytes_per_s)
    rows = levers.microbatch * levers.accumulation_steps * levers.devices / levers.hosts
    return step if cores is None else max(step, rows / (LOADER_SAMPLES_PER_CORE * cores))


def _microbatch_seconds(recipe: Recipe, levers: Levers, card: Card, bandwidth: float) -> float:
    """Seconds of a microbatch's forward and backward passes on one card."""
    model, who = recipe.model, recipe.train.trained
    total, trained = counted(model, who)
    passes = Passes(who, levers.remat)
    # Forward, recomputed forward and backward read the weights in bfloat16.
    again = 0 if passes.remat == "none" else 1
    compute = levers.microbatch * flops_per_sample(recipe, levers) / product_rate(card)
    products = max(compute, (2 + again) * 2.0 * total / bandwidth)
    # Forward and backward take a layer's parameters out of their stack, in bfloat16: a trained one from
    # float32, unless a copy is at hand. Its gradient is read, added to and written in float32.
    from_stack = 4 if levers.compute_copy or "masters" in levers.host else 6
    moved = 2 * (from_stack * trained + 4.0 * (total - trained)) + 3 * 4.0 * trained
    tokens = tokens_of(model, len(levers.cameras), levers.prompt_tokens)
    moved += levers.microbatch * passed_bytes(model, tokens, passes)
    moved += _KEPT_TRAFFIC * kept_bytes(recipe, levers)
    layers = VISION[model.vision].depth * (4 if passes.gradient("vision") else 1)
    layers += GEMMA[model.paligemma.variant].depth * (4 if passes.gradient("language") else 1)
    return products + moved / bandwidth + _launches(layers)


def exchange_seconds(recipe: Recipe, levers: Levers, net_bytes_per_s: float | None) -> float:
    """Predicted seconds of a step in which bytes pass the network of a host, as if nothing overlapped.

    A ring over all devices crosses each host's network once each way. Gradients are summed over it once a
    microbatch. Shards of the weights are gathered over it only where a replica's shards lie on several hosts.
    """
    if levers.hosts == 1 or net_bytes_per_s is None:
        return 0.0
    total, _ = counted(recipe.model, recipe.train.trained)
    share = (levers.devices - 1) / levers.devices
    across = levers.fsdp > levers.devices // levers.hosts
    gathered = 2 * 2.0 * total * (levers.fsdp - 1) / levers.fsdp if across else 0.0
    summed = share * 2 * gradient_bytes(recipe.model, recipe.train.trained)
    return levers.accumulation_steps * (summed + gathered) / (net_bytes_per_s * SUSTAINED_BYTES)


@functools.cache
def gradient_bytes(model: Model, trained: Trained) -> int:
    """Bytes of the gradients as they are summed over devices: of layers in the compute type, else float32.

    The collectives of the compiled step of two hosts have these types. Source: harness/train/sharding.py.
    """
    layer = 2 if model.compute_dtype == "bfloat16" else 4
    return sum(
        math.prod(shape) * (layer if is_cast_before_use(path) else 4)
        for path, shape in parameter_shapes(model).items()
        if is_trained(path, model, trained)
    )


def _launches(layers: int) -> float:
    """Seconds that the kernels of so many passes of a layer take beside their work."""
    return KERNEL_SECONDS * _KERNELS_A_LAYER * layers


def _exchanged(levers: Levers, total: int, trained: int) -> float:
    """Bytes that each card sends.

    Gradients are summed over all cards once a microbatch. Shards of the weights are gathered twice a
    microbatch.
    """
    share = (levers.devices - 1) / levers.devices
    gathered = 2 * 2.0 * total * (levers.fsdp - 1) / levers.fsdp
    return levers.accumulation_steps * (share * 2 * 4.0 * trained + gathered)
