"""π0.5's parameters in safetensors files of openpi's PyTorch trainer or of LeRobot, read by the table.

A *location* is one file of tensors, or the index of several: `model.safetensors.index.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.checkpoint.format import DAMAGE, first_line, mismatches
from harness.checkpoint.pytorch_names import (
    Part,
    is_buffer,
    is_pi0,
    is_unread,
    parts_of,
    plain_names,
    put_back,
)
from harness.checkpoint.safetensors import NUMPY, Tensor, read_tensor, read_whole_header
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES, UnsafeFile
from harness.received.json import read_json
from harness.received.text import one_line, word

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

INDEX = ".index.json"
# The name of the file of weights, of LeRobot and of openpi.
WEIGHTS_FILE = "model.safetensors"
_SHARD = re.compile(r"\A(.+)-(\d{5})-of-(\d{5})\.safetensors")
_MOST_SHARDS = 1000
_SHOWN = 8


class Stored(NamedTuple):
    """A tensor and the file that holds it."""

    tensor: Tensor
    file: Path


class Tensors(NamedTuple):
    """The tensors that make one parameter."""

    parts: list[tuple[Part, Stored]]
    shape: Shape

    def read(self, dtype: np.dtype[Any]) -> Array:
        """The parameter, cast to `dtype`. Beside it, one of its tensors is in memory.

        Raises: ValueError, OSError or UnsafeFile if the data is damaged.
        """
        out = np.empty(self.shape, dtype)
        for part, stored in self.parts:
            tensor = read_tensor(stored.tensor, stored.file, stored.file.parent)
            put_back(tensor.astype(dtype, copy=False), part, out)
        return out


def tensor_files(location: Path) -> list[Path]:
    """The files of tensors of `location`.

    Raises: HarnessError "checkpoint-damaged" if the index is damaged or names a file that is not there.
    """
    if not location.name.endswith(INDEX):
        shard = _SHARD.fullmatch(location.name)
        count = int(shard[3]) if shard else 1
        if shard is None or not 1 < count <= _MOST_SHARDS:
            return [location]
        files = [
            location.with_name(f"{shard[1]}-{n:05}-of-{shard[3]}.safetensors") for n in range(1, count + 1)
        ]
    else:
        names = sorted(set(_index(location).values()))
        files = [location.with_name(name) for name in names]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise _damaged(
            location, f"it lacks {len(absent)} of {len(files)} files: {', '.join(absent[:_SHOWN])}"
        )
    return files


def _index(location: Path) -> dict[str, str]:
    """Tensor → name of the file that holds it, as the index says."""
    try:
        body = read_json(location, location.parent, ARTIFACT_BYTES)
        named = body["weight_map"]
        if not isinstance(named, dict) or not named or len(set(named.values())) > _MOST_SHARDS:
            raise ValueError("no mapping of tensors to files")
        for file in named.values():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise ValueError(f"{file!r} is no file beside it")
    except UnsafeFile:
        raise
    except (OSError, *DAMAGE) as error:
        raise _damaged(location, f"the index is damaged: {first_line(error)}") from error
    return dict(named)


def open_tensors(location: Path) -> dict[str, Stored]:
    """Name → tensor of all files of `location`. Only headers are read.

    Raises: HarnessError "checkpoint-damaged" for a damaged header, for a tensor that two files hold, for
    files that are not those of the index, and for files of different runs; UnsafeFile.
    """
    found: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in tensor_files(location):
        try:
            header = read_whole_header(file, file.parent)
        except UnsafeFile:
            raise
        except (OSError, *DAMAGE) as error:
            raise _damaged(file, first_line(error)) from error
        differ = [key for key, text in header.metadata.items() if metadata.get(key, text) != text]
        if differ:
            raise _damaged(
                location,
                f"{file.name} is of another run than the files before it: they differ in {differ[0]}",
                metadata[differ[0]],
                header.metadata[differ[0]],
            )
        # Programs put remarks into some of their shards only.
        metadata |= header.metadata
        for tensor in header.tensors:
            if tensor.name in found:
                raise _damaged(
                    location, f"{tensor.name} is in {found[tensor.name].file.name} and in {file.name}"
                )
            found[tensor.name] = Stored(tensor, file)
    if location.name.endswith(INDEX):
        _check_index(location, found)
    return found


def _check_index(location: Path, found: Mapping[str, Stored]) -> None:
    named = _index(location)
    absent = sorted(
        name for name, file in named.items() if name not in found or found[name].file.name != file
    )
    more = sorted(found.keys() - named.keys())
    if absent or more:
        what = f"{absent[0]} is not in {named[absent[0]]}" if absent else f"{more[0]} is not in the index"
        raise _damaged(
            location,
            f"the files are not those of the index ({len(absent) + len(more)} tensors differ): {what}",
        )


def tensor_leaves(location: Path, shapes: Mapping[str, Shape]) -> dict[str, tuple[np.dtype[Any], Tensors]]:
    """Parameter path → (type, tensors) of each of `shapes` but adapters, which PyTorch's files do not hold.

    Raises: HarnessError "weights-of-pi0", "weights-are-adapters", "weights-mismatch", which lists every
    missing, unexpected and mis-shaped tensor; those of `open_tensors`.
    """
    stored = {name: each for name, each in open_tensors(location).items() if not is_buffer(name)}
    _refuse_others(location, stored)
    try:
        plain = plain_names(stored)
    except ValueError as error:
        raise _damaged(location, str(error)) from error
    parts = parts_of(shapes)
    wanted = {part.name: part.shape for each in parts.values() for part in each}
    # A quantized file has further tensors, and other shapes: what it is says more than those.
    _refuse_types(location, {stored[full].tensor.dtype for name, full in plain.items() if name in wanted})
    found = {name: stored[full].tensor.shape for name, full in plain.items() if not is_unread(name)}
    if lines := mismatches(found, wanted):
        raise _mismatch(location, lines, found, wanted)
    _check_types(location, stored, parts, plain)
    return {
        path: _leaf([(part, stored[plain[part.name]]) for part in each], tuple(shapes[path]))
        for path, each in parts.items()
    }


def _leaf(parts: list[tuple[Part, Stored]], shape: Shape) -> tuple[np.dtype[Any], Tensors]:
    dtype = NUMPY[parts[0][1].tensor.dtype]
    # float16 is none of the model's own types; float32 holds each of its values.
    dtype = np.dtype(np.float32) if dtype == np.float16 else dtype
    return dtype, Tensors(parts, shape)


def _check_types(
    location: Path, stored: Mapping[str, Stored], parts: Mapping[str, list[Part]], plain: Mapping[str, str]
) -> None:
    """Checks that all tensors are weights, and that those of one parameter are of one type.

    A layer in another type than its neighbours is of another run, or its header is not true.
    """
    _refuse_types(location, {each.tensor.dtype for each in stored.values()})
    for path, each in parts.items():
        types = {stored[plain[part.name]].tensor.dtype: part.name for part in each}
        if len(types) > 1:
            (a, first), (b, second), *_ = sorted(types.items())
            raise _damaged(
                location,
                f"layers of {path} are of several types ({first}: {a}, {second}: {b}): files of two runs",
            )


def _refuse_types(location: Path, kinds: AbstractSet[str]) -> None:
    """Refuses types in which no trainer keeps weights, such as those of quantized files."""
    strange = sorted(kinds - NUMPY.keys())
    if strange or {"F16", "BF16"} <= kinds:
        raise _damaged(
            location,
            f"tensors of type {', '.join(strange)}: no weights of a network, or quantized ones"
            if strange
            else "float16 beside bfloat16: no trainer saves both",
            need="tensors in float32, bfloat16, float16 or float64",
            fix="name the weights from which these were made",
        )


def _refuse_others(location: Path, stored: Mapping[str, Stored]) -> None:
    """Refuses adapters alone and π0, which have tensors of other names."""
    adapters = [name for name in stored if ".lora_" in name or ".lora." in name]
    if adapters:
        raise HarnessError(
            "weights-are-adapters",
            f"{location} holds adapters: {len(adapters)} of its {len(stored)} tensors are LoRA's",
            got=f"adapters such as {one_line(min(adapters))[:200]}",
            need="full weights, with the adapters merged into them",
            fix="merge them into their base: harness export BASE OUT --to openpi-jax --adapter ADAPTERS",
        )
    if is_pi0(stored):
        raise weights_of_pi0(location)


def weights_of_pi0(source: Path | str) -> HarnessError:
    return HarnessError(
        "weights-of-pi0",
        f"{source} holds π0, not π0.5: its state and time enter the network in another way",
        got="parameters such as state_proj or action_time_mlp_in",
        need="weights of π0.5 (time_mlp_in, adaptive norms)",
        fix="name weights of π0.5 in weights.source, for example a download of lerobot/pi05_base",
    )


def other_dimension(found: Sequence[Shape], wanted: Sequence[Shape]) -> str | None:
    """The key to set, if the projections [D, width] and [width, D] differ in D alone; else None."""
    if not all(len(shape) == 2 for shape in (*found, *wanted)):
        return None
    (first, width), (other, last) = found
    (_, expected), (also, _) = wanted
    if (width, other, first) != (expected, also, last) or found[0] == wanted[0]:
        return None
    return f"--set {word(f'model.action_dim={first}')}, if the rest of the model is the same"


def _mismatch(
    location: Path, lines: list[str], found: Mapping[str, Shape], wanted: Mapping[str, Shape]
) -> HarnessError:
    turned = [
        [shapes.get(f"action_{way}_proj.weight", ())[::-1] for way in ("in", "out")]
        for shapes in (found, wanted)
    ]
    fix = other_dimension(*turned) or (
        "name weights of the same model in weights.source, or set model.* (variants, vision) as they were"
        " trained"
    )
    return HarnessError(
        "weights-mismatch",
        f"{location} does not hold this model's tensors: " + "; ".join(map(one_line, lines[:40])),
        got=f"{len(lines)} differences ({len(found)} tensors in the checkpoint)",
        need=f"the {len(wanted)} tensors of the recipe's model",
        fix=fix,
    )


def _damaged(
    location: Path, why: str, need: object = None, got: object = None, fix: str | None = None
) -> HarnessError:
    return HarnessError(
        "checkpoint-damaged",
        f"{location} cannot be read: {one_line(why)[:600]}",
        got=got and one_line(str(got))[:200],
        need=one_line(str(need or "whole safetensors files of one checkpoint"))[:200],
        fix=fix or "copy or download the checkpoint again, or take another step",
    )
