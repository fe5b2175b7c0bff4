"""The norm of the released parameters, by which weights are recognized."""

from __future__ import annotations

from typing import Literal

from harness.recipe.schema import Lora, Model

# `param_norm` of the released pi05_base weights at step 0, by which experts carry freshly initialized
# adapters of upstream's ranks.
# Source: facts on the published recipe (computed from the released weights); 1803.159 is what the report's
# log shows.
RELEASED_PARAM_NORM = {(False, False): 1802.386, (True, True): 1803.770, (True, False): 1803.159}


# The values above lie 4e-4 apart, a bfloat16 rounding of the frozen weights moves them by less than 1e-5.
FINGERPRINT_TOLERANCE = 5e-5


def norm_verdict(model: Model, param_norm: float) -> tuple[Literal["released", "differs", "unknown"], str]:
    """Whether `param_norm` at step 0 is that of the released π0.5 weights in this model, and a sentence that
    says so.
    """
    upstream = {
        "paligemma": (None, Lora(rank=16, alpha=16.0)),
        "action_expert": (None, Lora(rank=32, alpha=32.0)),
    }
    same = model.model_copy(update={"compute_dtype": "bfloat16", "prompt_tokens": 200, "action_horizon": 10})
    plain = {name: getattr(same, name).model_copy(update={"lora": None}) for name in upstream}
    known = all(getattr(same, name).lora in allowed for name, allowed in upstream.items())
    expected = RELEASED_PARAM_NORM.get(
        (model.paligemma.lora is not None, model.action_expert.lora is not None)
    )
    if same.model_copy(update=plain) != Model() or not known or expected is None:
        return "unknown", f"param_norm {param_norm:.3f} at step 0; no fingerprint is known for this model"
    if abs(param_norm / expected - 1) <= FINGERPRINT_TOLERANCE:
        return (
            "released",
            f"param_norm {param_norm:.3f} at step 0 is that of the released weights ({expected:.3f})",
        )
    return (
        "differs",
        (
            f"param_norm {param_norm:.3f} at step 0 is not that of the released weights ({expected:.3f}):"
            " these are other weights"
        ),
    )
