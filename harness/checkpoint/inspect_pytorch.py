"""Inspects safetensors of openpi's PyTorch trainer, of LeRobot or of PEFT, from headers, or with the values.

Which program saved them, their tensors and parameters by part, adapters, types, and numbers that are not
finite. Nothing is unpickled.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts import (
    Checkpoint,
    CheckpointItem,
    CheckpointStep,
    GroupReport,
    LeafReport,
    LoraReport,
)
from harness.checkpoint.deep import BLOCK, Health, health_of, total
from harness.checkpoint.deep import root as square_root
from harness.checkpoint.format import DAMAGE, first_line
from harness.checkpoint.policy import pipeline_of
from harness.checkpoint.pytorch import (
    DTYPES,
    files_of_weights,
    find_pytorch,
    is_ours,
    step_of,
    weights_location,
)
from harness.checkpoint.pytorch_names import TABLE_NAMES, is_buffer, is_pi0, is_unread, plain_name, prefix_of
from harness.checkpoint.safetensors import NUMPY, Tensor, read_whole_header
from harness.checkpoint.tensors import tensor_leaves
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES, UnsafeFile, check_stays, open_received
from harness.received.json import read_json
from harness.received.text import one_line
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Model, Recipe
from harness.run.directory import sha256_file
from harness.run.steps import EXPORT

_LORA = re.compile(r"\.lora_([ab])(?:\.|$)", re.IGNORECASE)
_PARTS = (
    ("adapters", _LORA),
    ("vision", re.compile(r"vision_tower|multi_modal_projector")),
    ("expert", re.compile(r"gemma_expert")),
    ("language", re.compile(r"language_model|paligemma\.lm_head")),
    ("projections", re.compile(r"(?:action_(?:in|out)_proj|state_proj|time_mlp_(?:in|out))\.")),
)
# Tensors that are no weights, and weights that nothing reads.
_BUFFERS, _UNUSED = "buffers", "unused"


class _Read(NamedTuple):
    """A tensor, the file that holds it, and its health; None where its values were not read."""

    tensor: Tensor
    file: Path
    health: Health | None


def inspect_pytorch(path: Path, *, deep: bool = False, recipe: Recipe | None = None) -> Checkpoint | None:
    """The report on PyTorch's weights at `path`; None if none of their tensors is π0's, π0.5's or LoRA's.

    Raises: HarnessError "git-lfs-pointer", "weights-step-needed"; OSError.
    """
    found = find_pytorch(path)
    if found is None or not any(is_ours(each.name) or _LORA.search(each.name) for each in found.tensors):
        return None
    read, findings = _tensors(found.path, files_of_weights(found, path), deep=deep)
    findings += found.unread
    names = {each.tensor.name: each.tensor.shape for each in read}
    adapters = [each for each in read if _LORA.search(each.tensor.name)]
    lacks = [] if adapters else _lacks(path, found.path, names, recipe)
    if deep:
        findings += _digests(found.path)
    complete = not findings and not lacks
    parts = _by_part(read)
    # LeRobot's statistics of a feature that no dataset had are infinite.
    weights = [each for name in parts if name != _BUFFERS for each in parts[name]]
    non_finite = sum(each.health.non_finite for each in weights if each.health) if deep else None
    if non_finite:
        bad = [one_line(each.tensor.name) for each in weights if each.health and each.health.non_finite]
        findings.append(f"{len(bad)} tensors hold NaN or infinite values: {', '.join(bad[:5])}")
    counts = Counter(each.file for each in read)
    sizes = {file: file.stat().st_size for file in sorted(counts)}
    step = CheckpointStep(
        step=step_of(found.path if found.path.is_dir() else found.path.parent),
        path=str(found.path),
        complete=complete,
        items=[CheckpointItem(name=file.name, bytes=sizes[file], arrays=counts[file]) for file in sizes],
        bytes=sum(sizes.values()),
        missing=lacks[:20],
    )
    pipeline = pipeline_of(found.path if found.path.is_dir() else found.path.parent)
    unknown = {
        "parameters_trained": "safetensors do not record it",
        "ema": "safetensors do not record it",
    }
    if not deep:
        unknown["non_finite"] = "only headers were read (--deep reads the tensors)"
    return Checkpoint(
        path=str(path),
        layout="pytorch",
        kind=found.kind,
        tensors=len(read),
        pipeline=None if pipeline is None else str(pipeline),
        steps=[step],
        interrupted=[],
        step=step.step,
        lora=_lora(adapters),
        parameters={name: _group(members, deep=deep) for name, members in parts.items()},
        parameters_total=sum(
            each.tensor.size for name in parts if name not in (_BUFFERS, _UNUSED) for each in parts[name]
        ),
        non_finite=non_finite,
        leaves=[_leaf(each) for each in read] if deep else [],
        partial=bool(found.unread),
        findings=findings + lacks,
        unknown=unknown,
    )


def _tensors(location: Path, files: list[Path], *, deep: bool) -> tuple[list[_Read], list[str]]:
    """(every tensor, findings): a tensor that two files hold, a type that no network has, values cut off."""
    read: list[_Read] = []
    findings: list[str] = []
    seen: dict[str, Path] = {}
    root = location if location.is_dir() else location.parent
    for file in files:
        try:
            tensors = read_whole_header(file, root).tensors
        except (OSError, UnsafeFile, *DAMAGE):
            # `find_pytorch` says why.
            continue
        for tensor in tensors:
            if tensor.name in seen:
                findings.append(f"{one_line(tensor.name)} is in {seen[tensor.name].name} and in {file.name}")
                continue
            seen[tensor.name] = file
            try:
                read.append(_Read(tensor, file, _health(tensor, file, root) if deep else None))
            except (OSError, UnsafeFile, *DAMAGE) as error:
                findings.append(f"{one_line(tensor.name)} cannot be read: {first_line(error)}")
                read.append(_Read(tensor, file, None))
    strange = sorted({each.tensor.dtype for each in read if not is_buffer(each.tensor.name)} - NUMPY.keys())
    if strange:
        findings.append(f"tensors of type {', '.join(strange)}, which are no weights of π0.5")
    return read, findings


def _health(tensor: Tensor, file: Path, root: Path) -> Health:
    """Its health, as that of any other array. One block is in memory."""
    return health_of(_blocks(tensor, file, root), values=tensor.dtype in NUMPY)


def _blocks(tensor: Tensor, file: Path, root: Path) -> Iterator[np.ndarray[Any, Any]]:
    dtype = NUMPY.get(tensor.dtype, np.dtype(np.uint8))
    left = tensor.nbytes
    with open_received(file, root) as stream:
        stream.seek(tensor.begin)
        while left:
            data = stream.read(min(left, BLOCK * dtype.itemsize))
            if not data or len(data) % dtype.itemsize:
                raise ValueError(f"it ends {left} bytes early")
            left -= len(data)
            yield np.frombuffer(data, dtype)


def _lacks(path: Path, location: Path, names: dict[str, Any], recipe: Recipe | None) -> list[str]:
    """One line if these are not the tensors of the recipe's model, or of the published one."""
    if is_pi0(names):
        return ["these are weights of π0, not of π0.5: its state and time enter the network in another way"]
    root = location if location.is_dir() else location.parent
    recorded = recipe or _recipe_of(root)
    model = Model() if recorded is None else recorded.model
    shapes = {name: shape for name, shape in parameter_shapes(model).items() if "lora" not in name}
    try:
        weights = weights_location(path if path.is_file() else location)
        if weights is None:
            return []
        tensor_leaves(weights, shapes)
    except HarnessError as error:
        return [f"it is not a whole {'model of its recipe' if recorded else 'π0.5'}: {error.what[:400]}"]
    return []


def _recipe_of(root: Path) -> Recipe | None:
    """The recipe that our own export wrote beside the weights; None if there is none that is valid."""
    try:
        return Recipe.model_validate(read_json(root / EXPORT, root, ARTIFACT_BYTES)["recipe"])
    except (OSError, UnsafeFile, *DAMAGE):
        return None


def _digests(location: Path) -> list[str]:
    """A finding for each file that is not the one that the harness wrote there."""
    root = location if location.is_dir() else location.parent
    try:
        files = read_json(root / EXPORT, root, ARTIFACT_BYTES)["files"]
        known = {name: entry["sha256"] for name, entry in files.items() if (root / Path(name).name).is_file()}
    except (OSError, UnsafeFile, *DAMAGE, AttributeError):
        return []
    return [
        f"{one_line(name)} is not the file that was exported: its sha256 differs"
        for name, sha256 in known.items()
        if _sha256(root / Path(name).name, root) not in (sha256, None)
    ]


def _sha256(file: Path, root: Path) -> str | None:
    """The file's sha256; None if it leads out or cannot be read, which `find_pytorch` says."""
    try:
        return sha256_file(check_stays(file, root))
    except (OSError, UnsafeFile):
        return None


def _lora(adapters: list[_Read]) -> LoraReport:
    """Adapters and their rank by part and projection; where layers differ, layer by layer."""
    ranks: dict[str, dict[str, int]] = defaultdict(dict)
    for each in adapters:
        name, half = each.tensor.name, _LORA.search(each.tensor.name)
        if half is not None and half[1].lower() == "a" and each.tensor.shape:
            module = name[: half.start()]
            part = _part(module)
            ranks[f"{part} {module.rpartition('.')[2]}"][module] = min(each.tensor.shape)
    rank: dict[str, int] = {}
    for key, found in sorted(ranks.items()):
        rank |= {key: next(iter(found.values()))} if len(set(found.values())) == 1 else found
    return LoraReport(
        present=bool(adapters), rank=rank, parameters=sum(each.tensor.size for each in adapters)
    )


def _part(name: str) -> str:
    return next((part for part, pattern in _PARTS if pattern.search(name)), "other")


def _by_part(read: list[_Read]) -> dict[str, list[_Read]]:
    groups: dict[str, list[_Read]] = defaultdict(list)
    prefix = prefix_of(each.tensor.name for each in read)
    plain = [plain_name(each.tensor.name, prefix) for each in read]
    head, table = TABLE_NAMES
    for each, own in zip(read, plain, strict=True):
        name = each.tensor.name
        unused = _UNUSED if is_unread(own) or (own == head and table in plain) else _part(name)
        groups[_BUFFERS if is_buffer(name) else unused].append(each)
    return dict(sorted(groups.items()))


def _group(members: list[_Read], *, deep: bool) -> GroupReport:
    health = [each.health for each in members if each.health is not None]
    whole = deep and len(health) == len(members)
    squares = [each.squares for each in health if each.squares is not None]
    return GroupReport(
        parameters=sum(each.tensor.size for each in members),
        bytes=sum(each.tensor.nbytes for each in members),
        arrays=len(members),
        dtypes=sorted({DTYPES.get(each.tensor.dtype, each.tensor.dtype) for each in members}),
        non_finite=sum(each.non_finite for each in health) if whole else None,
        norm=square_root(total(squares)) if whole and squares else None,
    )


def _leaf(each: _Read) -> LeafReport:
    found = each.health
    return LeafReport(
        item=each.file.name,
        path=one_line(each.tensor.name),
        dtype=DTYPES.get(each.tensor.dtype, each.tensor.dtype),
        shape=list(each.tensor.shape),
        sha256=found.sha256 if found else None,
        non_finite=found.non_finite if found else None,
        norm=found.norm if found else None,
    )
