"""The plan of openpi's own trainer: whether exactly the requested configuration fits. No JAX.

Nothing is searched and nothing is changed.

The device bytes are those of plan.upstream. Usable is 90 % of the card, the pool that upstream's README sets
(XLA_PYTHON_CLIENT_MEM_FRACTION=0.9), and never more than what is free without a context and a margin. The one
published failure, two A100-80 with a pool of 75 GiB, lies above that line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from harness.artifacts import Candidate, Levers, Machine, Plan
from harness.errors import HarnessError
from harness.openpi.table import (
    ADAPTERS,
    COMMIT,
    MAKE,
    Answer,
    Setup,
    adapters_of,
    batches,
    initialization,
    model_with,
    need,
    state_parts,
)
from harness.plan import memory
from harness.plan.place import Place, absent, present
from harness.received.text import word
from harness.recipe.deviations import deviations
from harness.recipe.load import load_recipe
from harness.recipe.parameters import counts
from harness.recipe.schema import CAMERAS, Model, Recipe
from harness.units import format_bytes, format_count

PUBLISHED = "pi05_libero"
# Source: openpi README.md, "Training", commit 15a9616.
POOL_FRACTION = 0.9
_BARE = {"global_batch": "train.global_batch", "ema": "train.ema_decay"}
# The same keys in the words of upstream's command line. Source: openpi src/openpi/training/config.py
# `TrainConfig`, commit 15a9616.
_UPSTREAMS = {
    "batch_size": "global_batch",
    "ema_decay": "ema",
    "fsdp_devices": "fsdp",
    "num_train_steps": "train.steps",
    "seed": "train.seed",
}
_VARIANTS = {"model.paligemma_variant": "gemma_2b", "model.action_expert_variant": "gemma_300m"}
_EMA_WORDS = {
    "on": "0.999",
    "true": "0.999",
    "yes": "0.999",
    "off": "null",
    "false": "null",
    "none": "null",
    "no": "null",
}


def options(sets: Iterable[str]) -> tuple[int | None, list[str]]:
    """(fsdp, the rest as recipe overrides).

    `global_batch=B`, `fsdp=F` and `ema=on|off|DECAY` need no path here. Upstream's own names are understood
    too.

    Raises: HarnessError "override-invalid".
    """
    fsdp, overrides = None, []
    for one in sets:
        written, equals, value = one.partition("=")
        plain = written.strip().lstrip("-").replace("-", "_")
        key = _UPSTREAMS.get(plain, plain)
        if not equals:
            overrides.append(one)
        elif key == "fsdp":
            if not value.isdigit() or not 1 <= int(value) <= 1024:
                raise HarnessError(
                    "override-invalid",
                    f"--set {one!r} does not say into how many shards",
                    got=value,
                    need="a count from 1",
                    fix="--set fsdp=2",
                )
            fsdp = int(value)
        elif key in _VARIANTS:
            overrides.append(_variant(key, value))
        elif key in _BARE:
            overrides.append(
                f"{_BARE[key]}={_EMA_WORDS.get(value.lower(), value) if key == 'ema' else value}"
            )
        elif "." in key or key in Recipe.model_fields:
            overrides.append(f"{key}={value}")
        else:
            known = [*_BARE, "fsdp", *_UPSTREAMS, *Recipe.model_fields]
            nearest = (difflib.get_close_matches(key, known, n=1, cutoff=0.4) or ["global_batch"])[0]
            raise HarnessError(
                "override-invalid",
                f"--set {one!r}: {written!r} is neither an option of --backend openpi nor a key of the"
                " recipe",
                need=f"{', '.join([*_BARE, 'fsdp'])}, or a path such as train.seed",
                fix=f"--set {word(f'{nearest}={value}')}",
            )
    return fsdp, overrides


def _variant(key: str, value: str) -> str:
    """The override for upstream's name of an expert with or without adapters."""
    name, plain = key.removeprefix("model.").removesuffix("_variant"), _VARIANTS[key]
    if value == plain:
        return f"model.{name}.lora=null"
    if value == f"{plain}_lora":
        return f"model.{name}.lora={{rank: {ADAPTERS[name].rank}, alpha: {ADAPTERS[name].alpha}}}"
    need = f"{plain} or {plain}_lora"
    raise HarnessError(
        "override-invalid",
        f"--set {key}={value}: bytes are known for another {name} only",
        got=value,
        need=need,
        fix=f"--set {key}={plain}_lora",
    )


def setup_of(recipe: Recipe, devices: int, fsdp: int) -> Setup:
    """The parts of `recipe` that change the bytes of upstream's step.

    Raises: HarnessError "upstream-cannot" for what upstream lacks, "upstream-not-compiled" for another model
    than LIBERO's.
    """
    train, model = recipe.train, recipe.model
    for key, got, only in (
        ("train.optimizer.moments", train.optimizer.moments, "float32"),
        ("train.frozen", train.frozen, "bfloat16"),
        ("train.ema_every_steps", train.ema_every_steps, 1),
    ):
        if got != only:
            raise HarnessError(
                "upstream-cannot",
                f"openpi's trainer has no {key} but {only}",
                got=got,
                need=only,
                fix=f"--set {key}={only}, or --backend ours",
            )
    for name, lora in ADAPTERS.items():
        asked = getattr(model, name).lora
        if asked is not None and (asked.rank, asked.alpha) != (lora.rank, lora.alpha):
            fix = f"--set 'model.{name}.lora={{rank: {lora.rank}, alpha: {lora.alpha}}}', or --backend ours"
            raise HarnessError(
                "upstream-cannot",
                f"openpi has one kind of adapter on {name}",
                got=f"rank {asked.rank}",
                need=f"rank {lora.rank}",
                fix=fix,
            )
    adapters = adapters_of(model)
    differing = _differing(model, model_with(adapters))
    if differing:
        raise HarnessError(
            "upstream-not-compiled",
            f"upstream's step has been compiled for the model of {PUBLISHED}, and this is another:"
            f" {', '.join(differing)}",
            need="the published model: no bytes are known for another",
            fix=f"--recipe {PUBLISHED} or {PUBLISHED}_lora; --backend ours compiles any model",
        )
    return Setup(adapters, train.trained, train.ema_decay is not None, train.global_batch, devices, fsdp)


def _differing(model: Model, published: Model) -> list[str]:
    # What is written in the prompt changes no shape.
    ours, theirs = (each.model_dump(exclude={"discrete_state_input"}) for each in (model, published))
    for side in (ours, theirs):
        for name in ADAPTERS:
            side[name] = side[name]["variant"]
    return [f"model.{key} {ours[key]} instead of {theirs[key]}" for key in ours if ours[key] != theirs[key]]


def place_of(
    recipe: Recipe,
    machine: Machine | None,
    *,
    gpu: str | None,
    vram_bytes: int | None,
    host_ram_bytes: int | None,
    fsdp: int | None,
) -> Place:
    """The requested cards, else this machine's, of which JAX takes all.

    Without a count, there are as many requested cards as shards.

    Raises: HarnessError "no-gpu", "gpu-unknown", "gpu-memory-unknown".
    """
    if gpu is not None or (vram_bytes is not None and not (machine and machine.gpus)):
        place = absent(gpu, vram_bytes, host_ram_bytes)
        if fsdp and fsdp > 1 and ":" not in (gpu or ""):
            return place._replace(devices=fsdp, name=f"{fsdp} x {place.name}")
        return place
    assert machine is not None
    try:
        return present(recipe, machine, device="cuda", vram_bytes=vram_bytes, host_ram_bytes=host_ram_bytes)
    except HarnessError as error:
        if error.code != "no-gpu":
            raise
        what = "openpi's trainer is planned for GPUs, and there is none to be used here"
        raise HarnessError(
            "no-gpu",
            what,
            got=error.got,
            need=error.need,
            fix="--gpu rtx_4090 or --vram-gib 24 plans for a card that is not here",
        ) from error


def plan_upstream(recipe: Recipe, place: Place, fsdp: int | None, *, inputs: str = "") -> Plan:
    """The plan of upstream's own step of `recipe` on each device of `place`: it fits, or it does not.

    Raises: HarnessError as `setup_of` and `upstream.need`.
    """
    setup = setup_of(recipe, place.devices, fsdp or 1)
    answer = need(setup)
    # With many shards and few samples the largest need is at the start, when the released weights lie whole
    # on each device.
    answer = answer._replace(bytes=max(answer.bytes, initialization(setup)))
    usable = usable_bytes(place)
    fits = answer.bytes <= usable
    candidate = _candidate(recipe, setup, answer, usable)
    total, trained = counts(recipe.model, recipe.train.trained)
    free = place.free_bytes or 0
    return Plan(
        backend="openpi",
        inputs=inputs,
        recipe=recipe.name,
        recipe_sha256=recipe.sha256(),
        device=place.name,
        device_uuid=place.uuids[0] if place.uuids else None,
        device_uuids=list(place.uuids),
        usable_bytes=usable,
        free_bytes=place.free_bytes,
        context_bytes=place.context_bytes,
        margin_bytes=max(0, free - place.context_bytes - usable),
        memory_fraction=POOL_FRACTION,
        host_usable_bytes=place.host_usable_bytes,
        parameters_total=total,
        parameters_trained=trained,
        chosen=candidate if fits else None,
        candidates=[candidate],
        notes=[*place.notes, *_notes(recipe, setup, answer, usable, fits=fits)],
    )


def usable_bytes(place: Place) -> int:
    """Bytes of each device that upstream's step may take."""
    assert place.usable_bytes is not None
    return min(place.usable_bytes, int(POOL_FRACTION * (place.total_bytes or 0)))


def _candidate(recipe: Recipe, setup: Setup, answer: Answer, usable: int) -> Candidate:
    fits = answer.bytes <= usable
    each = " a device" if setup.devices > 1 else ""
    reason = f"needs {format_bytes(answer.bytes)}{each} of {format_bytes(usable)} usable"
    reason += "" if fits else f": {format_bytes(answer.bytes - usable)} too much"
    explained = explanation(setup)
    total, trained = counts(recipe.model, recipe.train.trained)
    copies = 1 + setup.ema
    state = state_parts(setup)
    gradients = min(4 * trained // setup.fsdp, answer.bytes - sum(state.values()))
    parts = {name: size for name, size in state.items() if size} | {"gradients": gradients}
    return Candidate(
        levers=Levers(
            platform="cuda",
            devices=setup.devices,
            fsdp=setup.fsdp,
            microbatch=setup.batch // setup.devices,
            prompt_tokens=recipe.model.prompt_tokens,
            cameras=list(CAMERAS),
        ),
        deviations=deviations(load_recipe(PUBLISHED), recipe),
        device_bytes=answer.bytes,
        disk_bytes=2 * (copies * (4 * trained + 2 * (total - trained)) + 8 * trained),
        phases={"init": initialization(setup), "step": need(setup).bytes},
        verdict="fits" if fits else "rejected",
        reason=f"{explained}; {reason}" if explained else reason,
        source=answer.source,
        breakdown=parts | {memory.REST: answer.bytes - sum(parts.values())},
        unknown={
            "seconds_per_step": "no cost model of upstream's step",
            "host_bytes": "upstream's loader and its saving are not modelled",
        },
    )


def explanation(setup: Setup) -> str:
    """The explanation of what is really trained if there are adapters but no filter. Empty in other cases."""
    if setup.adapters == "none" or setup.trained != "full":
        return ""
    model = model_with(setup.adapters)
    total, trained = counts(model, "full")
    _, real = counts(model, "lora")
    where = "both experts" if setup.adapters == "both" else setup.adapters
    return (
        f"this is not LoRA: there are adapters on {where}, but no freeze filter, so all {trained:,} of"
        f" {total:,} parameters are trained, with their moments{' and average' if setup.ema else ''}; LoRA"
        f" trains {real:,}"
    )


def _notes(recipe: Recipe, setup: Setup, answer: Answer, usable: int, *, fits: bool) -> list[str]:
    notes = [
        f"openpi's own step at commit {COMMIT}, as it is shipped: {recipe.model.prompt_tokens} prompt tokens"
        f" and {len(CAMERAS)} cameras computed"
    ]
    if answer.how:
        notes.append(
            f"the bytes are {answer.how}"
            + (f"; {MAKE} compiles more" if answer.source == "interpolated" else "")
        )
    pool = f"XLA_PYTHON_CLIENT_MEM_FRACTION={POOL_FRACTION}"
    notes.append(
        f"usable is a pool of {POOL_FRACTION:.0%} of the card: start openpi with {pool} (JAX takes 75 % by"
        " itself)"
    )
    if explanation(setup):
        real = need(setup._replace(trained="lora", ema=False)) if setup.adapters == "both" else None
        bytes_ = f", {format_bytes(real.bytes)} at this batch" if real else ""
        notes.append(
            f"real LoRA: --recipe {PUBLISHED}_lora{bytes_}; no option of openpi's sets a freeze filter on"
            f" {PUBLISHED} (see harness import openpi)"
        )
    if not fits:
        fitting = [batch for batch in batches(setup) if need(setup._replace(batch=batch)).bytes <= usable]
        notes.append(
            f"the largest batch of this that fits: {max(fitting)}" if fitting else "no batch of this fits"
        )
        notes.append(
            "without --backend openpi, harness plan says what our own step needs for the same recipe, which"
            " is less"
        )
    elif setup.trained != "full":
        _, trained = counts(recipe.model, recipe.train.trained)
        notes.append(
            f"{format_count(trained)} parameters are trained only with a freeze filter, which belongs to a"
            " configuration: pi05_libero has none"
        )
    return notes
