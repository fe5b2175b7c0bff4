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
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.checkpoint.format import DAMAGE, first_line
from harness.checkpoint.leaves import Leaf
from harness.checkpoint.merge import Adapters, add_matrices, check_finite
from harness.checkpoint.peft_config import CONFIG, WRAPPED, check_kind, scales_of
from harness.checkpoint.pytorch_names import (
    PREFIX,
    TABLE_NAMES,
    Part,
    is_buffer,
    is_unread,
    parts_of,
    plain_name,
    prefix_of,
    put_back,
    turned,
)
from harness.checkpoint.safetensors import NUMPY, read_tensor
from harness.checkpoint.tensor_writer import Planned, Written, write_tensors
from harness.checkpoint.tensors import Stored, open_tensors
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES
from harness.received.json import read_json
from harness.received.pointers import holds_pointer, pointer
from harness.received.text import one_line
from harness.run.directory import write_atomic

Array = np.ndarray[Any, Any]
FILE = "adapter_model.safetensors"
_PREFIX = f"{WRAPPED}{PREFIX['lerobot']}"
# A module that was trained whole, and the bias of a layer that has adapters.
_WHOLE = re.compile(r"\.modules_to_save(?:\.default)?|\.base_layer(?=\.bias\Z)")
# What a module was before it was trained whole: nothing reads it.
_ORIGINAL = ".original_module."
_PAIR = re.compile(r"\A(.+)\.lora_([AB])(?:\.default)?\.weight")


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
    whole = {_whole_name(part): (path, part) for path in trained for part in parts[path]}
    planned = [Planned(name, array.shape, "float32") for name, (array, _) in arrays.items()]
    planned += [Planned(name, part.shape, "float32") for name, (_, part) in whole.items()]

    def each() -> Iterator[tuple[str, Array]]:
        yield from ((name, array) for name, (array, _) in arrays.items())
        for path in trained:
            leaf = leaves[path].read(np.dtype(np.float32))
            for part in parts[path]:
                yield _whole_name(part), turned(leaf, part)

    written = write_tensors(directory / FILE, planned, each(), metadata=metadata)
    write_atomic(directory / CONFIG, json.dumps(_config(arrays, whole, base), indent=2) + "\n")
    return written


def _whole_name(part: Part) -> str:
    """The name of a tensor that was trained whole: the table's own, not that of the head that shares it."""
    return f"{_PREFIX}{part.name}".replace(*TABLE_NAMES)


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
            module = name.removeprefix(WRAPPED).removesuffix(".lora_A.weight")
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
    return name.removeprefix(WRAPPED).rpartition(".")[0]


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

    Raises: HarnessError "checkpoint-damaged", "git-lfs-pointer", "weights-base-differs"; UnsafeFile.
    """
    if holds_pointer(directory / FILE, directory):
        raise pointer(directory / FILE)
    stored = open_tensors(directory / FILE)
    try:
        config = read_json(directory / CONFIG, directory, ARTIFACT_BYTES)
        check_kind(directory, config)
        strange = sorted({each.tensor.dtype for each in stored.values()} - NUMPY.keys())
        if strange:
            raise ValueError(f"tensors of type {', '.join(strange)}: no weights of a network")
        pairs, whole = _sorted(stored)
        scales = scales_of(config, {name: pair["A"].tensor for name, pair in pairs.items()})
    except (OSError, *DAMAGE, AttributeError, IndexError) as error:
        raise _damaged(directory, first_line(error)) from error
    return PeftAdapters(directory, parts, pairs, scales, whole)


def _sorted(stored: Mapping[str, Stored]) -> tuple[dict[str, dict[str, Stored]], dict[str, Stored]]:
    """(pairs, whole tensors) by the plain name of the tensor that they change.

    Raises: ValueError if half of a pair is missing, if two tensors have one plain name, or if there are none.
    """
    pairs: dict[str, dict[str, Stored]] = {}
    whole: dict[str, Stored] = {}
    prefix = prefix_of(stored)
    for name, each in stored.items():
        if is_buffer(name) or _ORIGINAL in name:
            continue
        found = _PAIR.fullmatch(name)
        if found is not None:
            group, key = pairs.setdefault(f"{plain_name(found[1], prefix)}.weight", {}), found[2]
        else:
            group, key = whole, plain_name(_WHOLE.sub("", name), prefix)
        other = group.setdefault(key, each)
        # With bias: all PEFT saves the bias of a module that was trained whole by two names.
        if other is not each and (group is not whole or not _equal(other, each)):
            raise ValueError(f"two tensors are one: {other.tensor.name} and {name}")
    if any(len(pair) != 2 for pair in pairs.values()):
        raise ValueError("a lora_A without its lora_B, or the reverse")
    if not stored:
        raise ValueError("a file without tensors")
    # Adapters of every linear layer have some of layers that nothing reads.
    return _without_unread(pairs), _without_unread(whole)


def _equal(one: Stored, other: Stored) -> bool:
    a, b = (read_tensor(each.tensor, each.file, each.file.parent) for each in (one, other))
    return a.dtype == b.dtype and np.array_equal(a, b)


def _without_unread(named: dict[str, Any]) -> dict[str, Any]:
    """What changes the network, by the names of our table."""
    head, table = TABLE_NAMES
    read = {key: value for key, value in named.items() if not is_unread(key) and key != head}
    return {head if key == table else key: value for key, value in read.items()}


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
        fix=(
            "copy or download the adapters again; or merge them with PEFT (merge_and_unload), and name what"
            " that saves"
        ),
    )
