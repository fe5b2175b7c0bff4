"""The job from which `openpi_entry` starts openpi's own trainer.

It is a recipe of the harness in upstream's words, with the freeze filter written out.

Source of the names: openpi src/openpi/training/{config,optimizer}.py, models/{gemma,siglip,pi0_config}.py and
policies/libero_policy.py, commit 15a9616.
"""

from __future__ import annotations

from typing import Any

from harness.errors import HarnessError
from harness.openpi.plan import PUBLISHED
from harness.openpi.table import ADAPTERS, COMMIT
from harness.recipe.parameters import counts, is_trained, parameter_shapes
from harness.recipe.schema import Data, Model, Recipe

# Keys of upstream's configuration that concern a run and are in none of our recipes.
OF_THE_RUN = (
    "exp-name",
    "project-name",
    "assets-base-dir",
    "checkpoint-base-dir",
    "num-workers",
    "overwrite",
    "resume",
    "wandb-enabled",
    "fsdp-devices",
)
# The columns that upstream's reader of LIBERO takes, whatever the dataset calls them.
_CAMERAS = {"base_0_rgb": "image", "left_wrist_0_rgb": "wrist_image", "right_wrist_0_rgb": None}


def job_of(recipe: Recipe, options: dict[str, Any], run_name: str) -> dict[str, Any]:
    """The job that `openpi_entry` reads.

    `options` are a command's effective ones. `run_name` is used if they name no experiment.

    Raises: HarnessError "upstream-cannot" for what openpi's trainer lacks.
    """
    check_upstream_can(recipe)
    train, model = recipe.train, recipe.model
    total, trained = counts(model, train.trained)
    schedule, adam = train.optimizer.schedule, train.optimizer
    of_the_run = {name.replace("-", "_"): options[name] for name in OF_THE_RUN}
    return {
        "commit": COMMIT,
        "config": PUBLISHED,
        "parameters_total": total,
        "parameters_trained": trained,
        "frozen": sorted(
            path for path in parameter_shapes(model) if not is_trained(path, model, train.trained)
        ),
        "sizes": sizes_of(model),
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
        "optimizer": {
            "b1": adam.b1,
            "b2": adam.b2,
            "eps": adam.eps,
            "weight_decay": adam.weight_decay,
            "clip_gradient_norm": adam.clip_norm,
        },
        "train": (
            of_the_run
            | {
                "exp_name": run_name if options["exp-name"][:1] in ("", "<") else options["exp-name"],
                "ema_decay": train.ema_decay,
                "seed": train.seed,
                "batch_size": train.global_batch,
                "num_train_steps": train.steps,
                "log_interval": train.log_every_steps,
                "save_interval": train.save_every_steps,
                "keep_period": train.keep_every_steps,
            }
        ),
    }


def sizes_of(model: Model) -> dict[str, Any]:
    """The model's sizes for which upstream's configurations have no option. Empty if as published."""
    own, published = ({"vision": each.vision, "vocab_size": each.vocab_size} for each in (model, Model()))
    return own if own != published else {}


def check_upstream_can(recipe: Recipe) -> None:
    """Checks that openpi's trainer can do what `recipe` says.

    Raises: HarnessError "upstream-cannot" with the first key that it cannot follow.
    """
    train, data, model = recipe.train, recipe.data, recipe.model
    only: list[tuple[str, Any, Any]] = [
        ("train.optimizer.moments", train.optimizer.moments, "float32"),
        ("train.frozen", train.frozen, "bfloat16"),
        ("train.ema_every_steps", train.ema_every_steps, 1),
        ("train.save", train.save, "all"),
        ("train.holdout", train.holdout, None),
        ("train.action_delay", train.action_delay, None),
        ("data.augment", data.augment, True),
        ("data.normalization", data.normalization, "quantile"),
        ("data.state", data.state, "state"),
        ("data.actions", data.actions, "actions"),
        ("model.discrete_state_input", model.discrete_state_input, False),
        *((f"data.cameras.{camera}", data.cameras[camera], column) for camera, column in _CAMERAS.items()),  # type: ignore[index]
        ("model.image_size", model.image_size, Model().image_size),
        *((f"data.{key}", getattr(data, key), None) for key in sorted(Data.LATER - {"norm_stats"})),
    ]
    for key, got, need in only:
        if got != need:
            said = "null" if need is None else str(need).lower() if isinstance(need, bool) else str(need)
            raise HarnessError(
                "upstream-cannot",
                f"openpi's trainer runs as {PUBLISHED} here, which has no {key} but {said}",
                got=got,
                need=said,
                fix=f"--set {key}={said}, or --backend ours",
            )


def _variant(recipe: Recipe, expert: str) -> str:
    part = getattr(recipe.model, expert)
    if part.lora is None:
        return str(part.variant)
    upstream = ADAPTERS[expert]
    if part.variant == "dummy" or (part.lora.rank, part.lora.alpha) != (upstream.rank, upstream.alpha):
        need = (
            f"rank {upstream.rank}, alpha {upstream.alpha} on"
            f" {Model().paligemma.variant if expert == 'paligemma' else 'gemma_300m'}"
        )
        got = f"rank {part.lora.rank}, alpha {part.lora.alpha} on {part.variant}"
        fix = (
            f"--set 'model.{expert}.lora={{rank: {upstream.rank}, alpha: {upstream.alpha}}}', or --backend"
            " ours"
        )
        raise HarnessError(
            "upstream-cannot", f"openpi has one kind of adapter on {expert}", got=got, need=need, fix=fix
        )
    return f"{part.variant}_lora"
