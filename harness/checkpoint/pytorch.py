"""Recognizes checkpoints of PyTorch trainers by names and safetensors headers; nothing is unpickled.

    openpi    <exp>/<step>/{model.safetensors, optimizer.pt, metadata.pt, assets/}
    LeRobot   <run>/checkpoints/<step>/pretrained_model/{config.json, model.safetensors, train_config.json}
              <run>/checkpoints/<step>/training_state/
    the hub   model.safetensors, or model-00001-of-00004.safetensors; adapter_model.safetensors (PEFT)

Source: openpi scripts/train_pytorch.py `save_checkpoint`, commit 15a9616; lerobot
src/lerobot/utils/train_utils.py and constants.py.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.checkpoint.elsewhere import PICKLES, way_on
from harness.checkpoint.format import DAMAGE, first_line
from harness.checkpoint.pytorch_names import prefix_of
from harness.checkpoint.safetensors import Tensor, read_header
from harness.checkpoint.tensors import INDEX, WEIGHTS_FILE, tensor_files
from harness.errors import HarnessError
from harness.received.files import MARK_BYTES, UnsafeFile
from harness.received.json import read_json
from harness.received.pointers import holds_pointer, pointer
from harness.received.text import one_line, word
from harness.run.directory import CHECKPOINTS
from harness.run.steps import step_directories, step_number
from harness.units import format_count

_TENSORS = ".safetensors"
# Of LeRobot and openpi beside their weights; of PEFT beside its adapters.
POLICY_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
# Names that only the tensors of π0 and π0.5 have.
_OURS = re.compile(r"paligemma_with_expert\.|(?:^|\.)action_(?:in|out)_proj\.")
# Of all of its files: shards have a part of the tensors each.
_UNPICKLE = (
    "import sys, torch; from safetensors.torch import save_file; out, *files = sys.argv[1:];"
    ' ts = [torch.load(f, map_location="cpu", weights_only=True) for f in files];'
    ' ts = [next((t[k] for k in ("state_dict", "model", "module") if k in t), t) for t in ts];'
    " save_file({k: v.clone().contiguous() for t in ts for k, v in t.items()}, out)"
)
_PICKLED_SHARD = re.compile(r"-\d{5}-of-\d{5}\.bin\Z")
_POLICY, _STATE = "pretrained_model", "training_state"
_MOST_FILES = 1000
# Statistics of LeRobot's pipelines lie beside the weights. Source: lerobot src/lerobot/processor/pipeline.py
# `_get_state_filename`, commit 7427f31.
_STATISTICS = re.compile(r"policy_(?:pre|post)processor_step_")
DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
_NEED = (
    "weights of π0.5: a params directory as openpi's JAX trainer, or this harness, saves it; or"
    " model.safetensors of openpi's PyTorch trainer or LeRobot"
)


class Weights(NamedTuple):
    """PyTorch weights at `path`: their trainer, and what the headers of their files say.

    `unread` says why a file was not read; `pickles`: because it is a pickle.
    """

    path: Path
    kind: str
    tensors: list[Tensor]
    unread: list[str]
    pickles: bool


def refuse_pytorch(path: Path) -> None:
    """Refuses `path` if it is, or holds, what a PyTorch trainer saved: a run, checkpoints, a step or a file.

    Raises: HarnessError "pytorch-checkpoint" or "git-lfs-pointer"; OSError.
    """
    found = find_pytorch(path)
    if found is None:
        return
    raise HarnessError(
        "pytorch-checkpoint",
        f"{path} holds PyTorch weights ({found.kind}): {_contents(found)}",
        got="; ".join([str(found.path), *found.unread[:3]]),
        need=_NEED,
        fix=way_on(path) or _fix(found),
    )


def _fix(found: Weights) -> str:
    if found.pickles:
        # What the trainers save: the tensors by name, or a mapping that has them under one of three keys.
        files = _files(found.path if found.path.is_dir() else found.path.parent)
        shards = [file for file in files if _PICKLED_SHARD.search(file.name)]
        if found.path in files and found.path not in shards:
            files, shards = [found.path], []
        named = " ".join(map(word, shards or files)) if shards or len(files) == 1 else "FILE"
        command = f"python -c {shlex.quote(_UNPICKLE)} {WEIGHTS_FILE} {named}"
        return f"where PyTorch is: {command}, and name what that writes"
    if found.unread and not found.tensors:
        return "copy or download the files again"
    return "start from the JAX weights: --set weights.source=gs://openpi-assets/checkpoints/pi05_base/params"


def is_ours(name: str) -> bool:
    """Whether a tensor of this name is π0's or π0.5's."""
    return _OURS.search(name) is not None


def files_of_weights(found: Weights, path: Path) -> list[Path]:
    """The files whose tensors `find_pytorch` counted for `path`."""
    if path.name.endswith(INDEX) and path.is_file():
        return _files(path.parent)
    return [named_file(path)] if path.is_file() else _files(found.path)


def named_file(path: Path) -> Path:
    """The file that is read for the file `path` of a command: a link's target, if its name tells its kind.

    The hub cache's links stay as they are: the blobs that they lead to are called by their hashes.
    """
    target = path.resolve()
    return target if target.suffix == path.suffix else path


def policy_directory(step: Path) -> Path:
    """The directory of PEFT's adapters in a step of LeRobot's; any other `step` itself."""
    policy = step / _POLICY
    return policy if (policy / ADAPTER_CONFIG).is_file() else step


def weights_location(path: Path) -> Path | None:
    """The file of π0.5's tensors, or the index of several files, that `path` means; None if there is none.

    `path` is such a file, a directory of them, or a step of LeRobot's. Adapters alone count too: they are
    then refused by name.
    Raises: HarnessError "weights-step-needed" for a run or a directory of several steps, "git-lfs-pointer".
    """
    found = find_pytorch(path)
    if found is None or found.pickles:
        return None
    # Of damaged files nothing is known; who opens them says why.
    if not any(is_ours(tensor.name) for tensor in found.tensors) and (found.tensors or not found.unread):
        return None
    if path.is_file():
        return named_file(path)
    if found.path not in (path, path / _POLICY):
        raise HarnessError(
            "weights-step-needed",
            f"{path} is a run, or a directory of steps, not one step of it",
            got=f"the newest is {found.path}",
            need="one step directory",
            fix=f"--set {word(f'weights.source={found.path}')}",
        )
    return _chosen(found.path)


def _chosen(directory: Path) -> Path | None:
    """The file of tensors, or the index of several, that is read of `directory`; None if it has none.

    The usual names come first: beside them lie averages, shards and optimizers' states.
    """
    names = sorted(file.name for file in directory.iterdir() if not file.name.startswith("."))
    indexes = [name for name in names if name.endswith(INDEX)]
    usual = [name for name in (WEIGHTS_FILE, f"{WEIGHTS_FILE}{INDEX}") if name in names]
    files = [name for name in names if name.endswith(_TENSORS) and not _STATISTICS.match(name)]
    return next(
        (directory / name for name in (*usual, *indexes, *files) if (directory / name).is_file()), None
    )


def step_of(location: Path) -> int | None:
    """The step in the name of the directory `location`, or in the name above LeRobot's policy directory.

    LeRobot links the newest step as `last`: the step is that of the link's target.
    """
    step = location.parent if location.name == _POLICY else location
    return step_number(step.resolve().name if step.is_symlink() else step.name)


def _contents(found: Weights) -> str:
    """What is known of the weights, in a few words."""
    if found.pickles:
        return "in pickles, which are not opened"
    if not found.tensors:
        return "none of their tensors can be read" if found.unread else "no tensors"
    dtypes = sorted({DTYPES.get(tensor.dtype, tensor.dtype) for tensor in found.tensors})
    return (
        f"{len(found.tensors)} tensors, {format_count(sum(tensor.size for tensor in found.tensors))}"
        f" parameters, {' and '.join(dtypes)}"
    )


def find_pytorch(path: Path) -> Weights | None:
    """The newest PyTorch weights that `path` means, or None. Deletes and changes nothing.

    Raises: HarnessError "git-lfs-pointer"; OSError.
    """
    if path.name.endswith(INDEX) and path.is_file():
        files = _files(path.parent)
        return _weights(path.parent, files, path) if files else None
    if path.is_file():
        named = path.suffix == _TENSORS or path.suffix in PICKLES
        file = named_file(path)
        return _weights(file.parent, [file], file) if named else None
    for directory in _directories(path):
        files = _files(directory)
        if files:
            return _weights(directory, files, directory)
        # As in a copy of the hub's cache without its blobs.
        gone = [file for file in sorted(directory.glob(f"*{_TENSORS}")) if file.is_symlink()]
        if gone:
            unread = [f"{one_line(file.name)} is a link that leads nowhere" for file in gone[:_MOST_FILES]]
            return Weights(directory, _kind(directory, gone), [], unread, pickles=False)
    return None


def _directories(path: Path) -> Iterator[Path]:
    """The directories below `path` that may hold weights, the newest step first."""
    for step in (path, *_newest_first(path), *_newest_first(path / CHECKPOINTS)):
        yield from (
            directory
            for directory in (step, step / _POLICY)
            if directory.is_dir() and not (directory.is_symlink() and directory != path)
        )


def _newest_first(directory: Path) -> list[Path]:
    return [step for _, step in reversed(step_directories(directory))]


def _files(directory: Path) -> list[Path]:
    """The files of weights directly in `directory`: safetensors, or pickles if there are none.

    Of PyTorch's usual names these are the files that `_chosen` reads, whatever lies beside them.
    """
    names = sorted(
        entry
        for entry in directory.iterdir()
        # macOS leaves files `._NAME` beside those that it copies.
        if entry.suffix in (_TENSORS, *PICKLES) and not entry.name.startswith(".")
    )[:_MOST_FILES]
    tensors = [
        file
        for file in names
        if file.suffix == _TENSORS and file.is_file() and not _STATISTICS.match(file.name)
    ]
    chosen = None if (directory / ADAPTER_CONFIG).exists() else _chosen(directory)
    if chosen is not None and (chosen.name == WEIGHTS_FILE or chosen.name.endswith(INDEX)):
        # Who opens damaged ones says why. What is there can be described.
        with contextlib.suppress(HarnessError):
            tensors = tensor_files(chosen)
    return tensors or [file for file in names if file.is_file()]


def _weights(root: Path, files: list[Path], path: Path) -> Weights:
    tensors: dict[str, Tensor] = {}
    unread = []
    for file in files:
        if holds_pointer(file, root):
            raise pointer(file)
        if file.suffix != _TENSORS:
            unread.append(f"{one_line(file.name)} is a pickle")
            continue
        try:
            tensors |= {tensor.name: tensor for tensor in read_header(file, root)}
        except UnsafeFile as error:
            unread.append(error.what)
        except (OSError, *DAMAGE) as error:
            unread.append(f"{one_line(file.name)} is damaged: {first_line(error)}")
    kind = _kind(root, files)
    if prefix := prefix_of(tensors):
        kind += f", its names after {one_line(prefix)[:80]}"
    return Weights(path, kind, list(tensors.values()), unread, files[0].suffix != _TENSORS)


def _kind(directory: Path, files: list[Path]) -> str:
    if any(file.name.startswith("adapter_") for file in files) or (directory / ADAPTER_CONFIG).exists():
        return "PEFT adapters"
    policy = _lerobot_policy(directory)
    if (
        policy is not None
        or directory.name == _POLICY
        or (directory / "train_config.json").exists()
        or (directory.parent / _STATE).is_dir()
    ):
        return f"LeRobot {policy}" if policy else "LeRobot"
    if (directory / "optimizer.pt").exists() or (directory / "metadata.pt").exists():
        return "openpi's PyTorch trainer"
    return "safetensors" if files[0].suffix == _TENSORS else "a pickle"


def _lerobot_policy(directory: Path) -> str | None:
    """The policy that LeRobot's config.json beside the weights names."""
    try:
        config = read_json(directory / POLICY_CONFIG, directory, MARK_BYTES)
    except (OSError, UnsafeFile, ValueError):
        return None
    named = config.get("type") if isinstance(config, dict) and "n_obs_steps" in config else None
    return one_line(named)[:40] if isinstance(named, str) else None
