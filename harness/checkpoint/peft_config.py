"""What PEFT's adapter_config.json says of adapters: their kind, how they were started, alpha / r of each.

Source: huggingface/peft 0.19 src/peft/tuners/lora/{config,layer}.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.checkpoint.pytorch import ADAPTER_CONFIG
from harness.checkpoint.safetensors import Tensor
from harness.errors import HarnessError
from harness.received.text import one_line

CONFIG = ADAPTER_CONFIG
# PEFT wraps the policy, and the policy's network is its `model`.
WRAPPED = "base_model.model."
_LARGEST_RANK = 4096
# The ways to start adapters that leave the base as it is. The others (pissa, olora, corda, loftq, lora_ga)
# take from the base what the adapters start with, and PEFT does it again when it loads them. Source:
# huggingface/peft 0.19 src/peft/tuners/lora/layer.py `update_layer`.
_STARTS = {"true", "false", "none", "gaussian", "eva", "orthogonal"}
# What makes of the same two factors something else than a product that is added to the weight.
# The later ones are of PEFT 0.21, src/peft/tuners/lora/variants.py.
_OTHER_KINDS = (
    *("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication"),
    *("use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config"),
)
# Far more than π0.5 has linear layers, each of which PEFT may name.
_MOST_PATTERNS = 2000
_NAME, _DIGITS = re.compile(r"\w+"), ("\\d+", "[0-9]+")
# Of each: whether it is the module's whole name, the parts of the name, the value.
_Patterns = list[tuple[bool, list[str], Any]]


def check_kind(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuses adapters that are not, or not only, products that are added to the base's own weights.

    Raises: HarnessError "checkpoint-damaged", "weights-base-differs".
    """
    kind = one_line(str(config.get("peft_type")))[:40]
    other = [key for key in _OTHER_KINDS if config.get(key)]
    if kind != "LORA" or other:
        raise HarnessError(
            "checkpoint-damaged",
            f"{directory} holds adapters of another kind than LoRA: their weights cannot be added to a base",
            got=f"{CONFIG} with " + (", ".join(other) or f"peft_type {kind}"),
            need="LoRA, also with use_rslora or modules_to_save",
            fix="merge them into their base with PEFT (merge_and_unload), and name what that saves",
        )
    _check_start(directory, config)


def _check_start(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuses adapters whose start was taken from the base, so that they do not belong to the base itself."""
    start = one_line(str(config.get("init_lora_weights")))[:40]
    if start.lower() not in _STARTS:
        raise HarnessError(
            "weights-base-differs",
            f"{directory} holds adapters that were started with {start}, which takes their start out of the"
            " base: they belong to the changed base",
            got=f"init_lora_weights {start}",
            need="adapters of the base as it is",
            fix=(
                "let PEFT write them for the base as it is (save_pretrained with"
                " path_initial_model_for_weight_conversion), or merge them with PEFT"
            ),
        )


def scales_of(config: Mapping[str, Any], first: Mapping[str, Tensor]) -> dict[str, float]:
    """alpha / r of each pair, by its name. `first` has its lora_A.

    Raises: ValueError, TypeError or KeyError for a configuration that is not that of these pairs.
    """
    alphas, ranks = (_patterns(config, f"{key}_pattern") for key in ("alpha", "rank"))
    return {name: _scale(config, alphas, ranks, tensor) for name, tensor in first.items()}


def _scale(config: Mapping[str, Any], alphas: _Patterns, ranks: _Patterns, first: Tensor) -> float:
    """alpha / r of the linear layer whose lora_A is `first`, as PEFT computes it."""
    whole = re.sub(r"\.lora_A(?:\.default)?\.weight\Z", "", first.name)
    # PEFT's patterns name the modules of what it wrapped.
    module, rank = whole.partition(WRAPPED)[2] or whole, first.shape[0]
    named = _named(alphas, module) or [config["lora_alpha"]]
    alpha, known = float(named[0]), [int(each) for each in _named(ranks, module) or [config["r"]]]
    # PEFT sorts patterns as it saves them. So the tensor says which of them was the first in training; PEFT
    # itself cannot load such adapters again.
    sorted_since = rank in known and len(set(named)) == 1
    if not 0 < rank <= _LARGEST_RANK or not (rank == known[0] or sorted_since):
        raise ValueError(f"{one_line(module)} has rank {rank}, the configuration says another")
    if not math.isfinite(alpha):
        raise ValueError(f"{one_line(module)} has an alpha that is not finite")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _patterns(config: Mapping[str, Any], key: str) -> _Patterns:
    """The patterns of modules at `key`, as parts of names, and the value of each.

    A stranger's pattern is not run as a regular expression: read are names, the digits of a layer, and "^".
    Raises: ValueError for any other, because its modules would get a value that PEFT does not give them.
    """
    given = (config.get(key) or {}).items()
    if len(given) > _MOST_PATTERNS:
        raise ValueError(f"{key} has {len(given)} patterns, the model has fewer modules")
    found = []
    for pattern, value in given:
        parts = pattern.removeprefix("^").replace("\\.", ".").split(".")
        if not all(part in _DIGITS or _NAME.fullmatch(part) for part in parts):
            raise ValueError(f"{key} has {pattern[:200]!r}, which is more than names and numbers of layers")
        found.append((pattern.startswith("^"), parts, value))
    return found


def _named(patterns: _Patterns, module: str) -> list[Any]:
    """The values of the patterns that name the module, or its last parts. PEFT takes the first.

    Source: huggingface/peft 0.19 src/peft/utils/other.py `get_pattern_key`.
    """
    own = module.split(".")
    found = []
    for whole, parts, value in patterns:
        last = own[-len(parts) :]
        if len(own if whole else last) == len(parts) and all(
            one == other or (one in _DIGITS and other.isdecimal())
            for one, other in zip(parts, last, strict=True)
        ):
            found.append(value)
    return found
