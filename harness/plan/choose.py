"""The plan: how this machine carries out a recipe. For now there is one, the largest microbatch; it fits or it does not."""

from __future__ import annotations

from typing import NamedTuple

from harness.artifacts import Candidate, Dataset, Levers, Machine, Plan
from harness.errors import HarnessError
from harness.parameters import check_who_is_trained, counts
from harness.plan import cards
from harness.plan.compile import Request, compiled
from harness.recipe import Recipe
from harness.units import GIB, MIB, format_bytes, format_count

# A model of this size is trained on a GPU; on a CPU only when that is asked for in so many words.
_CPU_PARAMETERS = 100_000_000
# Not in XLA's number: the CUDA context and libraries (0.5 to 1 GiB), fragmentation, autotuning scratch.
_GPU_MARGIN_BYTES = int(1.5 * GIB)
_HOST_MARGIN_BYTES = 512 * MIB


def choose(recipe: Recipe, machine: Machine, dataset: Dataset | None, *, gpu: str | None = None, device: str | None = None, inputs: str = "") -> Plan:
    """The plan of `recipe` for this machine's GPU, for its CPU, or for the card called `gpu` that need not be here.

    `dataset` tells the longest prompt; without it the recipe's own padding is computed.
    Raises: HarnessError "no-gpu", "gpu-unknown", "compile-failed", "lora-trains-everything".
    """
    check_who_is_trained(recipe)
    place = _place(recipe, machine, dataset, gpu, device)
    levers, usable = place.levers, place.usable_bytes
    answer = compiled(Request(recipe=recipe, levers=levers, target=place.target))
    need = answer.bytes["device"]
    fits = usable is None or need <= usable
    unknown = {"seconds_per_step": "no cost model yet"}
    on_cpu = levers.platform == "cpu"
    if on_cpu:
        unknown["device_bytes"] = "on a CPU the device is the host: see host_bytes"
    else:
        unknown["host_bytes"] = "not compiled"
    reason = f"needs {format_bytes(need)}" + (f" of {format_bytes(usable)} usable" if usable is not None else "; how much is usable is not known")
    candidate = Candidate(
        levers=levers,
        device_bytes=None if on_cpu else need,
        host_bytes=need if on_cpu else None,
        disk_bytes=_checkpoint_bytes(recipe) * 2,
        flops_per_step=answer.flops,
        verdict="fits" if fits else "rejected",
        reason=reason if fits else f"{reason}: {format_bytes(need - (usable or 0))} too much",
        source="compiled",
        breakdown=_parts(answer.bytes),
        unknown=unknown,
    )
    total, trained = counts(recipe.model, recipe.train.trained)
    return Plan(
        inputs=inputs,
        recipe=recipe.name,
        recipe_sha256=recipe.sha256(),
        device=place.name,
        device_uuid=place.uuid,
        usable_bytes=usable,
        parameters_total=total,
        parameters_trained=trained,
        chosen=candidate if fits else None,
        candidates=[candidate],
    )


def _parts(sizes: dict[str, int]) -> dict[str, int]:
    """What the device bytes are made of; an output that takes the place of an argument is not counted twice."""
    return {"state and batch": sizes["argument"], "new outputs": sizes["output"] - sizes["alias"], "temporary": sizes["temp"]}


class _Place(NamedTuple):
    """Where a plan is to run; `target` describes a card that is not here."""

    name: str
    levers: Levers
    usable_bytes: int | None
    uuid: str | None = None
    target: str | None = None


def _place(recipe: Recipe, machine: Machine, dataset: Dataset | None, gpu: str | None, device: str | None) -> _Place:
    cameras = [camera for camera, feature in recipe.data.cameras.items() if feature]
    tokens = dataset.prompt_tokens if dataset else recipe.model.prompt_tokens
    levers = Levers(platform="cuda", microbatch=recipe.train.global_batch, prompt_tokens=tokens, cameras=cameras)
    if gpu:
        name = cards.find(gpu)
        card = cards.CARDS[name]
        return _Place(name, levers, card.memory_bytes - _GPU_MARGIN_BYTES, target=card.target())
    present = [card for card in machine.gpus if card.visible and not card.error]
    if present and device != "cpu":
        best = max(present, key=lambda card: card.free_bytes or 0)
        usable = None if best.free_bytes is None else best.free_bytes - _GPU_MARGIN_BYTES
        return _Place(best.name or f"GPU {best.index}", levers, usable, uuid=best.uuid)
    total_parameters, _ = counts(recipe.model, recipe.train.trained)
    if device == "cuda" or (device is None and total_parameters > _CPU_PARAMETERS):
        raise HarnessError(
            "no-gpu",
            f"recipe {recipe.name} trains a model of {format_count(total_parameters)} parameters, and there is no usable GPU here",
            got=machine.gpu_error or "no GPU visible",
            need="an NVIDIA GPU (see: harness probe)",
            fix=f"harness plan --recipe {recipe.name} --gpu rtx_4090 plans for a card that is not here; --recipe smoke trains a tiny model on the CPU",
        )
    available = machine.host.ram_available_bytes
    return _Place("cpu", levers.model_copy(update={"platform": "cpu"}), None if available is None else available - _HOST_MARGIN_BYTES)


def _checkpoint_bytes(recipe: Recipe) -> int:
    """Bytes of one checkpoint: float32 parameters trained, two moments, the raw copy beside an average; bfloat16 what is frozen."""
    total, trained = counts(recipe.model, recipe.train.trained)
    copies = 4 if recipe.train.ema_decay is not None else 3
    frozen = 0 if recipe.train.save == "trained" else 2 * (total - trained)
    return 4 * copies * trained + frozen
