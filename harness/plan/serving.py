"""Plans serving: what a card needs for the program of `harness.serve`, and how fast it may be.

    a call = sum over kernels of max(bytes moved / memory bandwidth, operations / tensor rate)
           + kernels x the time that each takes beside its work

Bytes, operations and kernels are those of the program that XLA compiled for the card. Bandwidth and rate are
shares of the card's nominal ones: the bandwidth's as in `plan.cost`, the rate's smaller, because the products
of a few rows are smaller than those of training. The time of a kernel is fitted to one measurement: π0.5
sampled by `Pi05.sample_actions` on an H200, bfloat16, one row, two cameras and 48 tokens, takes 28.7 ms. Of
that program XLA makes 6,771 kernels with 17.3 ms of work by these rates, which leaves 1.7 µs a kernel. A
graph of kernels may need less, a slow host more. So the prediction is a model, and not a measurement.

    floor = operations of the prefix / peak rate + weights read by the Euler steps / nominal bandwidth

The child is `python -m harness.plan.serving`: a question as JSON on stdin, the answer as JSON on stdout.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.artifacts import Machine, ServedShape, ServingPlan
from harness.errors import HarnessError
from harness.plan.cards import Card
from harness.plan.compile import ABSENT_GPU_OPTIONS, in_child
from harness.plan.cost import KERNEL_SECONDS, SUSTAINED_BYTES, peak_flops
from harness.plan.launches import kernels_of
from harness.plan.place import Place, absent, present
from harness.plan.source import source_hash
from harness.recipe.parameters import GEMMA, VISION
from harness.recipe.sampling import STEPS, check_rows
from harness.recipe.schema import Model, Recipe
from harness.run.directory import cache_root, sha256_file, sha256_json, write_atomic
from harness.run.ending import end_quickly
from harness.strict import Strict

# Of the dense peak, by products of one or a few rows: assumed. KERNEL_SECONDS is fitted beside it.
SUSTAINED_COMPUTE = 0.4
MODEL = (
    f"sum over kernels of max(bytes / {SUSTAINED_BYTES:g} of the bandwidth, operations /"
    f" {SUSTAINED_COMPUTE:g} of the peak), and {KERNEL_SECONDS * 1e6:g} us a kernel (fitted to one"
    " measurement on an H200)"
)


class Question(Strict):
    """One shape of the program. `target` as in `plan.compile.Request`; None means this machine's device.

    Without `own_kernels` it is asked of XLA's operations alone.
    """

    recipe: Recipe
    batch: int
    prompt_tokens: int
    target: str | None = None
    platform: str = "cuda"
    own_kernels: bool = True


class Answer(Strict):
    """The compiler's answer.

    `weights` are bytes. `work`: (how often, bytes moved, operations) of kernels; empty on a CPU, whose
    program is no list of kernels.
    """

    bytes: dict[str, int]
    weights: int
    work: list[tuple[int, int, int]]


def device_of(recipe: Recipe, machine: Machine, asked: dict[str, Any]) -> Place:
    """The device that is asked for: a card that is not here, or this machine's. `asked`: see plan.choose.Ask.

    Raises: HarnessError "no-gpu", "gpu-unknown", "gpu-too-old", "gpu-memory-unknown".
    """
    vram, ram = asked["vram_bytes"], asked["host_ram_bytes"]
    if asked["gpu"] is not None or (vram is not None and not machine.gpus and asked["device"] != "cpu"):
        return absent(asked["gpu"], vram, ram)
    return present(recipe, machine, device=asked["device"], vram_bytes=vram, host_ram_bytes=ram)


def plan_serving(
    recipe: Recipe, place: Place, batch: int, say: Callable[[str], None], *, recompile: bool = False
) -> ServingPlan:
    """How `place` would serve the recipe's policy: its shortest and its longest prompts.

    Raises: HarnessError "batch-invalid", "serve-devices", and those of `plan.compile.in_child`.
    """
    check_rows(batch)
    if place.devices > 1 and not place.here:
        raise HarnessError(
            "serve-devices",
            "one device serves a policy; several servers share the clients",
            got=f"{place.devices} devices",
            need="one",
            fix="--gpu NAME without a count",
        )
    from harness.serve.lengths import buckets_of, cameras_of

    lengths = sorted({buckets_of(recipe.model)[0], recipe.model.prompt_tokens})
    shapes = []
    for length in lengths[::-1]:
        rows = f"{batch} row{'s' if batch > 1 else ''}"
        say(f"compiling for {place.name}: {rows}, prompts of {length} tokens")
        target = None if place.here or place.card is None else place.card.target()
        question = Question(
            recipe=recipe, batch=batch, prompt_tokens=length, target=target, platform=place.platform
        )
        shapes.append(_shape(question, answered(question, place.uuids[:1], recompile=recompile), place.card))
    need = max(shape.device_bytes for shape in shapes)
    return ServingPlan(
        recipe=recipe.name,
        device=place.name,
        cameras=list(cameras_of(recipe)),
        batch=batch,
        steps=STEPS,
        usable_bytes=place.usable_bytes,
        fits=None if place.usable_bytes is None else need <= place.usable_bytes,
        shapes=shapes[::-1],
        model=MODEL,
        notes=list(place.notes),
    )


def answered(question: Question, uuids: tuple[str, ...] = (), *, recompile: bool = False) -> Answer:
    """XLA's answer, from the cache if nothing that affects it has changed.

    Raises: those of `plan.compile.in_child`.
    """
    kept = cache_root() / "plans" / f"serve-{_key(question)}.json"
    # One that cannot be read, for another user wrote it, costs time, and not the answer.
    with contextlib.suppress(OSError):
        try:
            if not recompile:
                return Answer.model_validate_json(kept.read_text())
        except ValueError:
            kept.unlink()
    said = in_child(
        "harness.plan.serving",
        question.model_dump_json(),
        platform="cpu" if question.target else question.platform,
        cuda=question.platform == "cuda",
        what="the program that serves",
        uuids=uuids,
    )
    with contextlib.suppress(HarnessError):  # a cache that cannot be written costs time, not the answer
        write_atomic(kept, said + "\n")
    return Answer.model_validate_json(said)


def _key(question: Question) -> str:
    package = Path(__file__).parent.parent
    sources = [*sorted((package / "serve").glob("*.py")), package / "plan" / "launches.py"]
    return sha256_json(
        {
            "question": question.model_dump(mode="json"),
            "versions": {name: metadata.version(name) for name in ("jax", "jaxlib")},
            "source": [source_hash(), *(sha256_file(path) for path in sources)],
            "flags": os.environ.get("XLA_FLAGS"),
        }
    )


def _shape(question: Question, answer: Answer, card: Card | None) -> ServedShape:
    from harness.serve.lengths import cameras_of

    size, recipe = answer.bytes, question.recipe
    shape = ServedShape(
        prompt_tokens=question.prompt_tokens,
        device_bytes=size["device"],
        breakdown={"weights": answer.weights, "workspace": size["device"] - answer.weights},
    )
    if card is None or not answer.work:
        names = ("kernels", "moved_bytes", "operations", "seconds", "floor_seconds")
        reason = "a CPU's program is no list of kernels with known rates"
        return shape.model_copy(update={"unknown": dict.fromkeys(names, reason)})
    kernels = sum(times for times, _, _ in answer.work)
    work, launch = work_seconds(answer.work, card), KERNEL_SECONDS * kernels
    return shape.model_copy(
        update={
            "kernels": kernels,
            "moved_bytes": sum(times * moved for times, moved, _ in answer.work),
            "operations": sum(times * operations for times, _, operations in answer.work),
            "work_seconds": work,
            "launch_seconds": launch,
            "seconds": work + launch,
            "floor_seconds": floor_seconds(
                recipe.model, len(cameras_of(recipe)), question.prompt_tokens, question.batch, card
            ),
        }
    )


def work_seconds(work: list[tuple[int, int, int]], card: Card) -> float:
    """Seconds in which the card moves the bytes, or does the operations, of each kernel."""
    bandwidth, rate = card.bandwidth * 1e6 * SUSTAINED_BYTES, peak_flops(card) * SUSTAINED_COMPUTE
    return sum(times * max(moved / bandwidth, operations / rate) for times, moved, operations in work)


def floor_seconds(model: Model, cameras: int, prompt_tokens: int, batch: int, card: Card) -> float:
    """Seconds below which no call can be: the prefix at the peak rate, the steps at the nominal bandwidth."""
    once, read = prefix_operations(model, cameras, prompt_tokens), steps_bytes(model, STEPS)
    return batch * once / peak_flops(card) + read / (card.bandwidth * 1e6)


def prefix_operations(model: Model, cameras: int, prompt_tokens: int) -> float:
    """Operations of one row before the first Euler step; of the last layer only keys and values."""
    v, g = VISION[model.vision], GEMMA[model.paligemma.variant]
    patches = (model.image_size // v.patch) ** 2
    seen, tokens = cameras * patches, cameras * patches + prompt_tokens
    inside = v.depth * (4 * v.width**2 + 2 * v.width * v.mlp_dim) + v.width * (3 * v.patch**2 + g.width)
    vision = 2.0 * seen * inside + 4.0 * seen * patches * v.width * v.depth
    projections = (2 * g.heads + 2 * g.kv_heads) * g.width * g.head_dim + 3 * g.width * g.mlp_dim
    layer = 2.0 * tokens * projections + 4.0 * tokens**2 * g.heads * g.head_dim
    return vision + (g.depth - 1) * layer + 2.0 * tokens * 2 * g.kv_heads * g.width * g.head_dim


def steps_bytes(model: Model, steps: int) -> float:
    """Bytes of weights that the Euler steps read, with the modulations of their times computed before."""
    g = GEMMA[model.action_expert.variant]
    width = 2 if model.compute_dtype == "bfloat16" else 4
    layer = (2 * g.heads + 2 * g.kv_heads) * g.width * g.head_dim + 3 * g.width * g.mlp_dim
    return float(width * steps * (g.depth * layer + 3 * g.width * (2 * g.depth + 1)))


def _main() -> None:
    question = Question.model_validate_json(sys.stdin.buffer.read())
    from harness.train import device

    device.start()
    import jax
    from jax.experimental import topologies

    from harness.serve.compiled import Shape, compile_shape
    from harness.serve.lengths import Kernels
    from harness.serve.shapes import abstract_arrays

    shape = Shape(question.batch, question.prompt_tokens)
    if question.target:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=question.target, topology="1x1x1"
        )
        where = {"device": topology.devices[0], "options": ABSENT_GPU_OPTIONS, "platform": "cuda"}
    else:
        where = {}
    ours: Kernels | None = None if question.own_kernels else "none"
    done = compile_shape(question.recipe, STEPS, shape, kernels=ours, **where)
    arrays = jax.tree.leaves(abstract_arrays(question.recipe, STEPS))
    kernels = kernels_of(done.run.as_text()) if question.platform == "cuda" else []
    answer = Answer(
        bytes=done.bytes,
        weights=sum(x.size * x.dtype.itemsize for x in arrays),
        work=[(each.times, each.bytes, each.operations) for each in kernels],
    )
    print(answer.model_dump_json())


if __name__ == "__main__":
    end_quickly()
    _main()
