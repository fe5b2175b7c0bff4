"""Adapters in the layout of PEFT, as LeRobot loads them: adapter_config.json and adapter_model.safetensors.

    tensor' = tensor + alpha / r · lora_B @ lora_A           [out, in], with lora_A [r, in], lora_B [out, r]

A linear layer of theirs holds all heads of an einsum of ours, so the pair is of another rank there:

    q, k, v       each head has its own pair: rank heads · R, lora_B is block-diagonal
    o             the heads share a bottleneck: rank R, lora_B is the sum over the heads
    feed-forward  rank R

Parameters that were trained without adapters are whole modules in the same file (`modules_to_save`).
Source: huggingface/peft 0.19 src/peft/tuners/lora/{config,layer}.py, utils/save_and_load.py.

Axes: L layers, C two halves, N heads, D width, H head dim, F mlp dim, R rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.checkpoint.format import DAMAGE, first_line
from harness.checkpoint.leaves import Leaf
from harness.checkpoint.merge import Adapters, add_matrices, check_finite
from harness.checkpoint.pytorch import ADAPTER_CONFIG
from harness.checkpoint.pytorch_names import PREFIX, TABLE_NAMES, Part, parts_of, put_back, turned
from harness.checkpoint.safetensors import read_tensor
from harness.checkpoint.tensor_writer import Planned, Written, write_tensors
from harness.checkpoint.tensors import Stored, open_tensors
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES
from harness.received.json import read_json
from harness.received.text import one_line
from harness.run.directory import write_atomic

Array = np.ndarray[Any, Any]
CONFIG, FILE = ADAPTER_CONFIG, "adapter_model.safetensors"
# PEFT wraps the policy, and the policy's network is its `model`.
_WRAPPED = "base_model.model."
_PREFIX = f"{_WRAPPED}{PREFIX['lerobot']}"
_PAIR = re.compile(r"\A(.+)\.lora_([AB])(?:\.default)?\.weight")
_LARGEST_RANK = 4096
# The ways to start adapters that leave the base as it is. The others (pissa, olora, corda, loftq, lora_ga)
# take from the base what the adapters start with, and PEFT does it again when it loads them. Source:
# huggingface/peft 0.19 src/peft/tuners/lora/layer.py `update_layer`.
_STARTS = {"true", "false", "none", "gaussian", "eva", "orthogonal"}
# What makes of the same two factors something else than a product that is added to the weight.
_OTHER_KINDS = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication")
# Far more than π0.5 has linear layers, each of which PEFT may name.
_MOST_PATTERNS = 2000
_NAME, _DIGITS = re.compile(r"\w+"), ("\\d+", "[0-9]+")
# Of each: whether it is the module's whole name, the parts of the name, the value.
_Patterns = list[tuple[bool, list[str], Any]]


class Pair(NamedTuple):
    """lora_A [r, in] and lora_B [out, r] of one linear layer, and alpha / r."""

    a: Array
    b: Array
    scale: float


def pair_of(path: str, part: Part, a: Array, b: Array, scale: float) -> Pair:
    """The pair of the tensor `part` of the weight at `path`, from the whole leaves of its adapters."""
    a, b = a[part.at], b[part.at]
    if a.ndim == 2:
        return Pair(a.T, b.T, scale)
    heads, _, rank = a.shape
    if "/attn_vec_einsum" in path:
        # a [N, H, R], b [N, R, D]
        return Pair(a.reshape(-1, rank).T, b.sum(axis=0).T, scale)
    # a [N, D, R], b [N, R, H]
    wide = np.zeros((heads, b.shape[2], heads, rank), b.dtype)
    for head in range(heads):
        wide[head, :, head] = b[head].T
    return Pair(a.transpose(0, 2, 1).reshape(heads * rank, -1), wide.reshape(-1, heads * rank), scale)


def write_peft(
    directory: Path,
    leaves: Mapping[str, Leaf],
    adapters: Adapters,
    trained: list[str],
    *,
    base: str,
    metadata: Mapping[str, str] | None = None,
) -> Written:
    """Writes both files. `trained` are the paths that were trained without adapters; `base` is their name.

    Raises: OSError, ValueError.
    """
    parts = parts_of({path: leaves[path].shape for path in [*adapters, *trained] if path in leaves})
    arrays = dict(_arrays(leaves, adapters, parts))
    whole = {f"{_PREFIX}{part.name}": (path, part) for path in trained for part in parts[path]}
    planned = [Planned(name, array.shape, "float32") for name, (array, _) in arrays.items()]
    planned += [Planned(name, part.shape, "float32") for name, (_, part) in whole.items()]

    def each() -> Iterator[tuple[str, Array]]:
        yield from ((name, array) for name, (array, _) in arrays.items())
        for path in trained:
            leaf = leaves[path].read(np.dtype(np.float32))
            for part in parts[path]:
                yield f"{_PREFIX}{part.name}", turned(leaf, part)

    written = write_tensors(directory / FILE, planned, each(), metadata=metadata)
    write_atomic(directory / CONFIG, json.dumps(_config(arrays, whole, base), indent=2) + "\n")
    return written


def _arrays(
    leaves: Mapping[str, Leaf], adapters: Adapters, parts: Mapping[str, list[Part]]
) -> Iterator[tuple[str, tuple[Array, float]]]:
    """Name → (array, alpha / r) of both factors of each linear layer."""
    for path, (first, second, scale) in adapters.items():
        a, b = (leaves[name].read(np.dtype(np.float32)) for name in (first, second))
        for part in parts[path]:
            pair = pair_of(path, part, a, b, scale)
            module = f"{_PREFIX}{part.name.removesuffix('.weight')}"
            yield f"{module}.lora_A.weight", (np.ascontiguousarray(pair.a), scale)
            yield f"{module}.lora_B.weight", (np.ascontiguousarray(pair.b), scale)


def _config(
    arrays: Mapping[str, tuple[Array, float]], whole: Mapping[str, tuple[str, Part]], base: str
) -> dict[str, Any]:
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, (array, scale) in arrays.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix(_WRAPPED).removesuffix(".lora_A.weight")
            # The same of every layer.
            key = re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(module))
            ranks[key], alphas[key] = array.shape[0], scale * array.shape[0]
    first = next(iter(ranks.values()), 1)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": first,
        "lora_alpha": next(iter(alphas.values()), 1.0),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "target_modules": "|".join(f"({key})" for key in ranks),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "modules_to_save": sorted({_module(name) for name in whole}) or None,
    }


def _module(name: str) -> str:
    return name.removeprefix(_WRAPPED).rpartition(".")[0]


class PeftAdapters(NamedTuple):
    """PEFT's adapters, opened: pairs and whole tensors by the plain name of the tensor that they change.

    `parts` are the tensors of each parameter of the base.
    """

    directory: Path
    parts: Mapping[str, list[Part]]
    pairs: dict[str, dict[str, Stored]]
    scales: dict[str, float]
    whole: dict[str, Stored]

    def touches(self, path: str) -> bool:
        return any(part.name in self.pairs or part.name in self.whole for part in self.parts[path])

    def add(self, w: Array, original: Array, path: str) -> None:
        """Adds what the adapters change of the leaf `w` at `path`, in place. `original` is the base's leaf.

        Raises: HarnessError "checkpoint-damaged", "weights-mismatch".
        """
        for part in self.parts[path]:
            if part.name in self.pairs:
                a, b = (self._read(self.pairs[part.name][half]) for half in "AB")
                if (
                    a.ndim != 2
                    or b.ndim != 2
                    or (b.shape[0], a.shape[1]) != part.shape
                    or a.shape[0] != b.shape[1]
                ):
                    raise _mismatch(self.directory, part.name, (b.shape, a.shape), part.shape)
                tensor = np.array(turned(w, part))
                add_matrices(tensor, b, a, self.scales[part.name])
                put_back(tensor, part, w)
            if part.name in self.whole:
                value = self._read(self.whole[part.name])
                if value.shape != part.shape:
                    raise _mismatch(self.directory, part.name, value.shape, part.shape)
                put_back(np.ascontiguousarray(turned(w, part) + (value - turned(original, part))), part, w)

    def _read(self, stored: Stored) -> Array:
        try:
            array = read_tensor(stored.tensor, stored.file, self.directory).astype(np.float32)
        except (OSError, *DAMAGE) as error:
            raise _damaged(self.directory, first_line(error)) from error
        check_finite(self.directory, one_line(stored.tensor.name), array)
        return array


def open_peft(directory: Path, parts: Mapping[str, list[Part]]) -> PeftAdapters:
    """The adapters in `directory`, of a base with these `parts`. Only header and configuration are read.

    Raises: HarnessError "checkpoint-damaged", "weights-base-differs"; UnsafeFile.
    """
    stored = open_tensors(directory / FILE)
    try:
        config = read_json(directory / CONFIG, directory, ARTIFACT_BYTES)
        if config.get("peft_type") != "LORA" or any(config.get(key) for key in _OTHER_KINDS):
            raise ValueError("adapters of another kind than LoRA")
        _check_start(directory, config)
        pairs, whole = _sorted(stored)
        alphas, ranks = (_patterns(config, f"{key}_pattern") for key in ("alpha", "rank"))
        scales = {
            name: _scale(config, alphas, ranks, name, pair["A"].tensor.shape[0])
            for name, pair in pairs.items()
        }
    except (OSError, *DAMAGE, AttributeError, IndexError) as error:
        raise _damaged(directory, first_line(error)) from error
    return PeftAdapters(directory, parts, pairs, scales, whole)


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


def _sorted(stored: Mapping[str, Stored]) -> tuple[dict[str, dict[str, Stored]], dict[str, Stored]]:
    """(pairs, whole tensors) by the plain name of the tensor that they change.

    Raises: ValueError if half of a pair is missing, if two tensors have one plain name, or if there are none.
    """
    pairs: dict[str, dict[str, Stored]] = {}
    whole: dict[str, Stored] = {}
    for name, each in stored.items():
        found = _PAIR.fullmatch(name)
        if found is not None:
            group, key = pairs.setdefault(f"{_plain(found[1])}.weight", {}), found[2]
        else:
            group, key = whole, _plain(re.sub(r"\.modules_to_save(?:\.default)?", "", name))
        if key in group:
            raise ValueError(f"two tensors are one: {group[key].tensor.name} and {name}")
        group[key] = each
    if any(len(pair) != 2 for pair in pairs.values()):
        raise ValueError("a lora_A without its lora_B, or the reverse")
    if not stored:
        raise ValueError("a file without tensors")
    return pairs, whole


def _scale(config: Mapping[str, Any], alphas: _Patterns, ranks: _Patterns, name: str, rank: int) -> float:
    """alpha / r of the linear layer of the tensor `name`, as PEFT computes it."""
    module = f"{PREFIX['lerobot']}{name.removesuffix('.weight')}"
    alpha = float(_named(alphas, module, config["lora_alpha"]))
    if not 0 < rank <= _LARGEST_RANK or rank != int(_named(ranks, module, config["r"])):
        raise ValueError(f"{one_line(name)} has rank {rank}, the configuration says another")
    if not math.isfinite(alpha):
        raise ValueError(f"{one_line(name)} has an alpha that is not finite")
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


def _named(patterns: _Patterns, module: str, default: Any) -> Any:
    """The value of the first pattern that names the module, or its last parts.

    Source: huggingface/peft 0.19 src/peft/utils/other.py `get_pattern_key`.
    """
    own = module.split(".")
    for whole, parts, value in patterns:
        last = own[-len(parts) :]
        if len(own if whole else last) == len(parts) and all(
            one == other or (one in _DIGITS and other.isdecimal())
            for one, other in zip(parts, last, strict=True)
        ):
            return value
    return default


def _plain(name: str) -> str:
    plain = name.removeprefix(_WRAPPED).removeprefix(PREFIX["lerobot"])
    return TABLE_NAMES[0] if plain == TABLE_NAMES[1] else plain


def _mismatch(directory: Path, name: str, got: object, need: object) -> HarnessError:
    return HarnessError(
        "weights-mismatch",
        f"{directory} holds adapters of another model: {one_line(name)} is of another shape",
        got=got,
        need=need,
        fix="name adapters that were trained on this base",
    )


def _damaged(directory: Path, why: str) -> HarnessError:
    return HarnessError(
        "checkpoint-damaged",
        f"{directory} holds no adapters that can be read: {one_line(why)[:400]}",
        need=f"{CONFIG} and {FILE} as PEFT saves them",
        fix="copy or download the adapters again",
    )
