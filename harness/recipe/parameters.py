"""Every parameter of π0.5: its path, shape and group, and whether it is trained.

Uses no JAX. All rooms use this module for these facts.

Paths are those of openpi's checkpoints, for example `PaliGemma/llm/layers/attn/q_einsum/w`; a suffix `_1`
marks the action expert. Source: openpi src/openpi/models/{pi0,gemma,siglip,lora}.py and pi0_config.py
`get_freeze_filter`, commit 15a9616.

Axes: L layers, N query heads, K key/value heads, D width, H head dim, F mlp dim, R adapter rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from harness.errors import HarnessError
from harness.recipe.schema import Expert, Model, Recipe, Trained
from harness.units import format_count

Group = Literal["vision", "language", "expert", "adapters", "projections"]
Shapes = dict[str, tuple[int, ...]]

# The token embedding, [V, D]: the largest parameter outside the layers.
EMBEDDING = "PaliGemma/llm/embedder/input_embedding"


class GemmaSize(NamedTuple):
    width: int
    depth: int
    mlp_dim: int
    heads: int
    kv_heads: int
    head_dim: int


class VisionSize(NamedTuple):
    width: int
    depth: int
    mlp_dim: int
    heads: int
    patch: int


# openpi src/openpi/models/gemma.py `get_config`, siglip.py `decode_variant`, commit 15a9616.
GEMMA: dict[str, GemmaSize] = {
    "gemma_2b": GemmaSize(2048, 18, 16_384, 8, 1, 256),
    "gemma_300m": GemmaSize(1024, 18, 4096, 8, 1, 256),
    "dummy": GemmaSize(64, 4, 128, 8, 1, 16),
}
VISION: dict[str, VisionSize] = {
    "So400m/14": VisionSize(1152, 27, 4304, 16, 14),
    "Ti/14": VisionSize(192, 12, 768, 3, 14),
    "mu/14": VisionSize(32, 1, 128, 2, 14),
}


def parameter_shapes(model: Model) -> Shapes:
    """Path → shape of every parameter of `model`, computed without building the model."""
    width = GEMMA[model.action_expert.variant].width
    shapes = _vision(model) | _language(model)
    for name, (inputs, outputs) in {
        "action_in_proj": (model.action_dim, width),
        "action_out_proj": (width, model.action_dim),
        "time_mlp_in": (width, width),
        "time_mlp_out": (width, width),
    }.items():
        shapes |= {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}
    return shapes


def _vision(model: Model) -> Shapes:
    size = VISION[model.vision]
    d, layers, head_dim = size.width, size.depth, size.width // size.heads
    tokens = (model.image_size // size.patch) ** 2
    out_width = GEMMA[model.paligemma.variant].width
    block: Shapes = {}
    for norm in ("LayerNorm_0", "LayerNorm_1"):
        block |= {f"{norm}/scale": (d,), f"{norm}/bias": (d,)}
    for name in ("query", "key", "value"):
        block |= {
            f"MultiHeadDotProductAttention_0/{name}/kernel": (d, size.heads, head_dim),
            f"MultiHeadDotProductAttention_0/{name}/bias": (size.heads, head_dim),
        }
    block |= {
        "MultiHeadDotProductAttention_0/out/kernel": (size.heads, head_dim, d),
        "MultiHeadDotProductAttention_0/out/bias": (d,),
    }
    for name, (inputs, outputs) in {"Dense_0": (d, size.mlp_dim), "Dense_1": (size.mlp_dim, d)}.items():
        block |= {f"MlpBlock_0/{name}/kernel": (inputs, outputs), f"MlpBlock_0/{name}/bias": (outputs,)}
    img = {f"Transformer/encoderblock/{path}": (layers, *shape) for path, shape in block.items()}
    img |= {
        "Transformer/encoder_norm/scale": (d,),
        "Transformer/encoder_norm/bias": (d,),
        "embedding/kernel": (size.patch, size.patch, 3, d),
        "embedding/bias": (d,),
        "pos_embedding": (1, tokens, d),
        "head/kernel": (d, out_width),
        "head/bias": (out_width,),
    }
    return {f"PaliGemma/img/{path}": shape for path, shape in img.items()}


def _language(model: Model) -> Shapes:
    language, expert = GEMMA[model.paligemma.variant], GEMMA[model.action_expert.variant]
    llm: Shapes = {
        "embedder/input_embedding": (model.vocab_size, language.width),
        "final_norm/scale": (language.width,),
    }
    llm |= {
        "final_norm_1/Dense_0/kernel": (expert.width, 3 * expert.width),
        "final_norm_1/Dense_0/bias": (3 * expert.width,),
    }
    for suffix, part in (("", model.paligemma), ("_1", model.action_expert)):
        layers = GEMMA[part.variant].depth
        llm |= {f"layers/{path}": (layers, *shape) for path, shape in _expert_block(part, suffix).items()}
    return {f"PaliGemma/llm/{path}": shape for path, shape in llm.items()}


def _expert_block(part: Expert, suffix: str) -> Shapes:
    size = GEMMA[part.variant]
    n, k, d, h, f = size.heads, size.kv_heads, size.width, size.head_dim, size.mlp_dim
    einsums: Shapes = {"q_einsum": (n, d, h), "kv_einsum": (2, k, d, h), "attn_vec_einsum": (n, h, d)}
    dense: Shapes = {"gating_einsum": (2, d, f), "linear": (f, d)}
    block = {f"attn/{name}{suffix}/w": shape for name, shape in einsums.items()}
    block |= {f"mlp{suffix}/{name}": shape for name, shape in dense.items()}
    for norm in ("pre_attention_norm", "pre_ffw_norm"):
        # The action expert's norms are adaptive: scale, shift and gate from the time embedding.
        block |= (
            {f"{norm}_1/Dense_0/kernel": (d, 3 * d), f"{norm}_1/Dense_0/bias": (3 * d,)}
            if suffix
            else {f"{norm}/scale": (d,)}
        )
    if part.lora:
        r = part.lora.rank
        for name, shape in einsums.items():
            block |= {
                f"attn/{name}{suffix}/lora_a": (*shape[:-1], r),
                f"attn/{name}{suffix}/lora_b": (*shape[:-2], r, shape[-1]),
            }
        for name, shape in dense.items():
            block |= {
                f"mlp{suffix}/{name}_lora_a": (*shape[:-1], r),
                f"mlp{suffix}/{name}_lora_b": (*shape[:-2], r, shape[-1]),
            }
    return block


def group_of(path: str) -> Group:
    """The part of the network to which the parameter at `path` belongs."""
    if "lora" in path:
        return "adapters"
    if path.startswith("PaliGemma/img/"):
        return "vision"
    if path.startswith("PaliGemma/llm/"):
        return "expert" if _is_action_expert(path) else "language"
    return "projections"


def _is_action_expert(path: str) -> bool:
    return re.search(r"\A(?>.*?llm).*_1", path) is not None


def is_trained(path: str, model: Model, trained: Trained) -> bool:
    """True if the parameter at `path` is trained. Every room uses this function.

    - full: all parameters.
    - lora: adapters, and all parameters outside the language model of an adapted expert (so the vision tower
      and the projections), as in upstream's `get_freeze_filter`.
    - lora_frozen_vision: the same without the vision tower.
    - action_expert: the action expert with its adaptive norms, and the projections.
    """
    group = group_of(path)
    if trained == "full" or group == "projections":
        return True
    if trained == "action_expert":
        return group == "expert" or (group == "adapters" and _is_action_expert(path))
    if group == "vision":
        return trained == "lora"
    if group == "adapters":
        return True
    return (model.action_expert if group == "expert" else model.paligemma).lora is None


def is_kernel(path: str, shape: tuple[int, ...]) -> bool:
    """True if `param_norm` counts this parameter: more than one axis, and neither bias, scale nor embedding.

    Source: openpi scripts/train.py `train_step`, commit 15a9616.
    """
    return len(shape) > 1 and path.rsplit("/", 1)[-1] not in (
        "bias",
        "scale",
        "pos_embedding",
        "input_embedding",
    )


def is_cast_before_use(path: str) -> bool:
    """True if the model casts this layer parameter to the compute type before any other operation.

    Norms' scales are not cast.
    """
    in_layer = "llm/layers/" in path or "encoderblock/" in path
    return in_layer and "LayerNorm" not in path and not path.endswith("/scale")


def counts(model: Model, trained: Trained) -> tuple[int, int]:
    """Number of all parameters, and number of trained parameters."""
    sizes = {path: math.prod(shape) for path, shape in parameter_shapes(model).items()}
    return sum(sizes.values()), sum(n for path, n in sizes.items() if is_trained(path, model, trained))


def halves(sizes: Sequence[float]) -> tuple[list[int], list[int]]:
    """The positions of `sizes` in two groups of about the same sum.

    Arrays of a parameter that lie in host memory pass through the device in these groups: one goes back while
    the other arrives.
    """
    groups: tuple[list[int], list[int]] = ([], [])
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        min(groups, key=lambda group: sum(sizes[each] for each in group)).append(at)
    return groups


def check_who_is_trained(recipe: Recipe) -> None:
    """Refuses adapters beside trained base weights.

    `full` with adapters would be a full fine-tune that is called LoRA.

    Raises: HarnessError "lora-trains-everything" with the counts.
    """
    model = recipe.model
    adapted = [
        name
        for name, part in (("paligemma", model.paligemma), ("action_expert", model.action_expert))
        if part.lora
    ]
    if recipe.train.trained not in ("full", "action_expert") or not adapted:
        return
    total, trained = counts(model, recipe.train.trained)
    _, real = counts(model, "lora")
    raise HarnessError(
        "lora-trains-everything",
        f"the recipe puts LoRA adapters on {' and '.join(adapted)}, yet train.trained is"
        f" {recipe.train.trained!r}: the base weights under the adapters would be trained too",
        got=f"{format_count(trained)} of {format_count(total)} parameters trained ({trained:,})",
        need=f"{format_count(real)} ({real:,}) trained, as LoRA is defined",
        fix=f"--set train.trained=lora, or remove model.{adapted[0]}.lora for a full fine-tune",
    )
