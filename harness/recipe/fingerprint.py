"""Recognizes the released weights by the norm of their parameters."""

from __future__ import annotations

from typing import Literal

from harness.recipe.schema import Lora, Model

# `param_norm` of the released pi05_base weights at step 0. The key says whether (language model, action
# expert) has freshly initialized adapters of upstream's ranks.
# Source: facts on the published recipe (computed from the released weights); 1803.159 is the value in the
# report's log.
RELEASED_PARAM_NORM = {(False, False): 1802.386, (True, True): 1803.770, (True, False): 1803.159}


# The values above lie 4e-4 apart. A bfloat16 rounding of the frozen weights moves them by less than 1e-5.
FINGERPRINT_TOLERANCE = 5e-5


def norm_verdict(model: Model, param_norm: float) -> tuple[Literal["released", "differs", "unknown"], str]:
    """The verdict on the weights by `param_norm` at step 0, and a sentence that gives it.

    The verdict is "released" for the released π0.5 weights, "differs" for others, and "unknown" if no norm is
    known for this model.
    """
    upstream = {
        "paligemma": (None, Lora(rank=16, alpha=16.0)),
        "action_expert": (None, Lora(rank=32, alpha=32.0)),
    }
    # None of these keys changes a parameter.
    same = model.model_copy(
        update={
            "compute_dtype": "bfloat16",
            "prompt_tokens": 200,
            "action_horizon": 10,
            "discrete_state_input": False,
        }
    )
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
