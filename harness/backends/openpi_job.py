"""The job from which `openpi_entry` starts openpi's own trainer: a recipe of ours in upstream's words, with the freeze filter written out.

Source of the names: openpi src/openpi/training/{config,optimizer}.py and models/pi0_config.py, commit 15a9616.
"""

from __future__ import annotations

from typing import Any

from harness.errors import HarnessError
from harness.parameters import counts, is_trained, parameter_shapes
from harness.plan.upstream import ADAPTERS, COMMIT
from harness.plan.upstream_plan import PUBLISHED
from harness.recipe import Recipe

# What upstream's configuration says of a run and a recipe of ours does not; taken from the command as it is.
_OF_THE_RUN = ("exp-name", "project-name", "assets-base-dir", "checkpoint-base-dir", "num-workers", "overwrite", "resume", "wandb-enabled", "fsdp-devices")


def job_of(recipe: Recipe, options: dict[str, Any], run_name: str) -> dict[str, Any]:
    """What `openpi_entry` reads. `options` are a command's effective ones; `run_name` stands where they name no experiment.

    Raises: HarnessError "upstream-cannot" for what openpi's trainer has not.
    """
    train, model = recipe.train, recipe.model
    if (train.optimizer.moments, train.frozen, train.ema_every_steps) != ("float32", "bfloat16", 1):
        what = "openpi's trainer keeps moments in float32, what is frozen in bfloat16, and an average of every step"
        raise HarnessError("upstream-cannot", what, need="those of the published recipe", fix="--set train.optimizer.moments=float32, or train with ours")
    total, trained = counts(model, train.trained)
    schedule, adam = train.optimizer.schedule, train.optimizer
    of_the_run = {name.replace("-", "_"): options[name] for name in _OF_THE_RUN}
    return {
        "commit": COMMIT,
        "config": PUBLISHED,
        "parameters_total": total,
        "parameters_trained": trained,
        "frozen": sorted(path for path in parameter_shapes(model) if not is_trained(path, model, train.trained)),
        "model": {
            "dtype": model.compute_dtype,
            "paligemma_variant": _variant(recipe, "paligemma"),
            "action_expert_variant": _variant(recipe, "action_expert"),
            "action_dim": model.action_dim,
            "action_horizon": model.action_horizon,
            "max_token_len": model.prompt_tokens,
        },
        "weights": recipe.weights.source,
        "repo_id": recipe.data.dataset,
        "assets": {"assets_dir": options.get("data.assets.assets-dir"), "asset_id": recipe.data.asset_id},
        "lr_schedule": {
            "warmup_steps": schedule.warmup_steps,
            "peak_lr": schedule.peak,
            "decay_steps": schedule.decay_steps,
            "decay_lr": schedule.end,
        },
        "optimizer": {"b1": adam.b1, "b2": adam.b2, "eps": adam.eps, "weight_decay": adam.weight_decay, "clip_gradient_norm": adam.clip_norm},
        "train": of_the_run
        | {
            "exp_name": run_name if options["exp-name"].startswith("<") else options["exp-name"],
            "ema_decay": train.ema_decay,
            "seed": train.seed,
            "batch_size": train.global_batch,
            "num_train_steps": train.steps,
            "log_interval": train.log_every_steps,
            "save_interval": train.save_every_steps,
            "keep_period": train.keep_every_steps,
        },
    }


def _variant(recipe: Recipe, expert: str) -> str:
    part = getattr(recipe.model, expert)
    if part.lora is None:
        return str(part.variant)
    upstream = ADAPTERS[expert]
    if (part.lora.rank, part.lora.alpha) != (upstream.rank, upstream.alpha):
        need = f"rank {upstream.rank}, alpha {upstream.alpha}"
        raise HarnessError("upstream-cannot", f"openpi has one kind of adapter on {expert}", got=f"rank {part.lora.rank}", need=need, fix="that rank")
    return f"{part.variant}_lora"
