"""The plan of a run of upstream's own trainer: from the table, or for a tiny model by counting. No JAX.

The table of compiled answers holds the published model alone. A model so small that it may be trained on a
CPU needs no compiler's answer: its state and gradients are counted, and the plan says that the work beside
them is not known.
"""

from __future__ import annotations

from typing import Any

from harness.artifacts import Candidate, Levers, Machine, Plan
from harness.errors import HarnessError
from harness.openpi.plan import place_of, plan_upstream
from harness.openpi.table import COMMIT
from harness.plan.place import CPU_PARAMETERS, Place, present
from harness.recipe.parameters import counts
from harness.recipe.schema import CAMERAS, Recipe
from harness.units import format_bytes, format_count


def plan_run(
    recipe: Recipe, machine: Machine, device: str | None, fsdp: int | None, *, inputs: str = ""
) -> Plan:
    """The plan of upstream's step of `recipe` on this machine's cards, or of a tiny model on its CPU.

    Its `backend` is "openpi".

    Raises: HarnessError as `plan_upstream` and `place_of`, and "upstream-cannot" for shards of a tiny model.
    """
    total, _ = counts(recipe.model, recipe.train.trained)
    if total > CPU_PARAMETERS and device != "cpu":
        place = place_of(recipe, machine, gpu=None, vram_bytes=None, host_ram_bytes=None, fsdp=fsdp)
        made = plan_upstream(recipe, place, fsdp, inputs=inputs)
        # On an idle card the pool is upstream's. On a shared card it is what the others leave.
        fraction = min(made.memory_fraction or 1.0, place.memory_fraction or 1.0)
        return made.model_copy(update={"memory_fraction": fraction} | _as_asked(made))
    place = present(recipe, machine, device=device, vram_bytes=None, host_ram_bytes=None)
    if (fsdp or 1) > 1:
        raise HarnessError(
            "upstream-cannot",
            "a tiny model is not worth sharding",
            got=f"fsdp={fsdp}",
            need="fsdp=1",
            fix="leave --set fsdp out",
        )
    return _counted(recipe, place, inputs)


def _as_asked(made: Plan) -> dict[str, Any]:
    """The candidates without deviations.

    Those of `plan_upstream` are deviations from the published recipe. Here the recipe itself is carried out.
    """
    candidates = [candidate.model_copy(update={"deviations": []}) for candidate in made.candidates]
    return {"candidates": candidates, "chosen": candidates[0] if made.chosen is not None else None}


def _state_and_gradients(recipe: Recipe, total: int, trained: int) -> dict[str, int]:
    """Bytes by part. Trained parameters lie in float32, frozen ones in two bytes per number."""
    weights = 4 * trained + 2 * (total - trained)
    return {
        "weights": weights,
        "moments": 8 * trained,
        "ema": weights * (recipe.train.ema_decay is not None),
        "gradients": 4 * trained,
    }


def _counted(recipe: Recipe, place: Place, inputs: str) -> Plan:
    total, trained = counts(recipe.model, recipe.train.trained)
    breakdown = _state_and_gradients(recipe, total, trained)
    held = sum(breakdown.values())
    state = held - breakdown["gradients"]
    on_cpu = place.platform == "cpu"
    usable = place.usable_bytes
    fits = usable is None or held <= usable
    candidate = Candidate(
        levers=Levers(
            platform=place.platform,
            microbatch=recipe.train.global_batch,
            prompt_tokens=recipe.model.prompt_tokens,
            cameras=list(CAMERAS),
        ),
        device_bytes=None if on_cpu else held,
        host_bytes=held if on_cpu else None,
        disk_bytes=2 * state,
        verdict="fits" if fits else "rejected",
        reason=(
            f"openpi's own step of a tiny model ({format_count(total)} parameters): state and gradients"
            f" take {format_bytes(held)}; what the work takes is not known"
        ),
        source="counted",
        breakdown={name: size for name, size in breakdown.items() if size},
        unknown={"seconds_per_step": "no cost model of upstream's step"},
    )
    return Plan(
        backend="openpi",
        inputs=inputs,
        recipe=recipe.name,
        recipe_sha256=recipe.sha256(),
        device=place.name,
        device_uuid=place.uuids[0] if place.uuids else None,
        device_uuids=list(place.uuids[:1]),
        usable_bytes=usable,
        free_bytes=place.free_bytes,
        context_bytes=place.context_bytes,
        margin_bytes=place.margin_bytes,
        memory_fraction=place.memory_fraction,
        host_usable_bytes=place.host_usable_bytes,
        parameters_total=total,
        parameters_trained=trained,
        chosen=candidate if fits else None,
        candidates=[candidate],
        notes=[*place.notes, f"openpi's own step at commit {COMMIT}, as it is shipped"],
    )
