"""The weights, and the trained part of them, recognized by `param_norm` at the first step."""

from __future__ import annotations

import math

from harness.artifacts.curve import CurveFinding
from harness.recipe.fingerprint import FINGERPRINT_TOLERANCE, RELEASED_PARAM_NORM, norm_verdict
from harness.recipe.parameters import counts
from harness.recipe.schema import Expert, Lora, Model, Recipe
from harness.units import format_count

# The usual loss of step 0; and its standard deviation at a batch of 8, from the four lines of the report that
# started this project. Source: facts on the published recipe.
FIRST_LOSS, _SPREAD_OF_8 = (0.085, 0.11), 0.0143
_RELEASED, _LIBERO = "pi05_base/params", "physical-intelligence/libero"

_ADAPTERS = {
    (False, False): "no adapters (a full fine-tune)",
    (True, True): "adapters on both experts (LoRA as upstream defines it)",
    (True, False): "adapters on PaliGemma alone",
}


def about_weights(recipe: Recipe, param_norm: float, *, named: bool) -> list[CurveFinding]:
    """The findings that `param_norm` at the start gives.

    `named`: the recipe is known to be this run's, and not just assumed.
    """
    nearest = min(RELEASED_PARAM_NORM, key=lambda key: abs(RELEASED_PARAM_NORM[key] - param_norm))
    is_released = abs(param_norm / RELEASED_PARAM_NORM[nearest] - 1) <= FINGERPRINT_TOLERANCE
    mine = (recipe.model.paligemma.lora is not None, recipe.model.action_expert.lora is not None)
    if is_released and nearest == (True, False) and mine != nearest:
        return [_forgotten_filter(param_norm)]
    if recipe.train.trained != "full" and recipe.train.frozen != "bfloat16":
        text = (
            f"param_norm {param_norm:.3f} is that of weights frozen in {recipe.train.frozen};"
            " manifest.json has the norm of the weights as they were read"
        )
        return [
            CurveFinding.model_validate(
                {"severity": "info", "code": "fingerprint-unknown", "text": text, "fix": None}
            )
        ]
    answer, text = norm_verdict(recipe.model, param_norm)
    if is_released and nearest != mine and (named or answer == "differs"):
        there, here = _ADAPTERS[nearest], _ADAPTERS.get(mine, "other adapters")
        said = (
            f"param_norm {param_norm:.3f} is that of the released weights with {there}, and recipe"
            f" {recipe.name} has {here}"
        )
        fix: str | None = (
            f"--recipe {'pi05_libero_lora' if nearest[0] else 'pi05_libero'} if that is what was trained"
        )
        return [
            CurveFinding(
                severity="error" if named else "warning",
                code="fingerprint-of-another-recipe",
                text=said,
                steps=[],
                fix=fix,
            )
        ]
    if is_released and nearest == (True, False):
        return [_forgotten_filter(param_norm)]
    severity = {"released": "info", "differs": "warning", "unknown": "info"}[answer]
    fix = (
        "name the recipe: --recipe NAME|FILE"
        if answer == "differs" and not named
        else "check weights.source of the recipe"
        if answer == "differs"
        else None
    )
    return [
        CurveFinding.model_validate(
            {"severity": severity, "code": f"fingerprint-{answer}", "text": text, "fix": fix}
        )
    ]


def about_first_loss(recipe: Recipe, loss: float, *, named: bool) -> list[CurveFinding]:
    """A finding that compares the loss before any learning with that of the released weights on LIBERO.

    If it differs, the weights see other data than they were made for.
    """
    known = (recipe.weights.source or "").rstrip("/").endswith(_RELEASED) and recipe.data.dataset.partition(
        "@"
    )[0] == _LIBERO
    if not known or recipe.data.normalization != "quantile":
        return []
    low, high = FIRST_LOSS
    # A batch is a sample. This is the uncertainty of its mean at this size.
    spread = 3 * _SPREAD_OF_8 * math.sqrt(8 / recipe.train.global_batch)
    told = f"the first loss, {loss:.4f}, at a batch of {recipe.train.global_batch}"
    usual = (
        f"{low:g} to {high:g} is usual for the released weights on LIBERO, give or take {spread:.3f} at this"
        " batch"
    )
    if low - spread <= loss <= high + spread:
        return [
            CurveFinding(
                severity="info",
                code="first-loss-released",
                text=f"{told}, is where these weights begin: {usual}",
                steps=[],
            )
        ]
    fix = "look at the statistics (harness stats --compare FILE), at data.cameras and at camera_views.png"
    severity = "warning" if named else "info"
    return [
        CurveFinding.model_validate(
            {
                "severity": severity,
                "code": "first-loss-differs",
                "text": f"{told}, is not where these weights begin: {usual}",
                "fix": fix,
            }
        )
    ]


def _forgotten_filter(param_norm: float) -> CurveFinding:
    """The finding for adapters on PaliGemma alone, which no configuration of upstream's has."""
    model = Model(paligemma=Expert(variant="gemma_2b", lora=Lora(rank=16, alpha=16.0)))
    total, _ = counts(model, "full")
    _, real = counts(model, "lora")
    both = Model(
        paligemma=model.paligemma, action_expert=Expert(variant="gemma_300m", lora=Lora(rank=32, alpha=32.0))
    )
    _, upstream = counts(both, "lora")
    return CurveFinding(
        severity="error",
        code="not-everything-was-lora",
        text=(
            f"param_norm {param_norm:.4f} is neither the full model's"
            f" ({RELEASED_PARAM_NORM[False, False]:.3f}) nor that of LoRA on both experts"
            f" ({RELEASED_PARAM_NORM[True, True]:.3f}): adapters were added to PaliGemma alone"
            f" ({RELEASED_PARAM_NORM[True, False]:.3f}), so not all was LoRA. openpi's command line does that"
            " with --model.paligemma-variant gemma_2b_lora, and leaves freeze_filter empty and the average"
            f" of parameters (EMA) on: then not only the adapters but all {format_count(total)} ({total:,})"
            f" parameters are trained. With the filter it would be {format_count(real)}, with LoRA on both"
            f" experts {format_count(upstream)}"
        ),
        fix=(
            "harness train --recipe pi05_libero_lora; in openpi a TrainConfig of your own with"
            " freeze_filter=model.get_freeze_filter() and ema_decay=None"
        ),
    )
