"""Where to go from a path that holds no weights that are read: what lies below it, or how to make them.

Only names are looked at.
"""

from __future__ import annotations

import re
import shlex
from itertools import islice
from pathlib import Path

from harness.checkpoint.tensors import INDEX, WEIGHTS_FILE
from harness.received.text import word
from harness.run.steps import METADATA, PARAMS, TRAIN_STATE, is_interrupted

_ARCHIVES = {(".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"): "tar -xf", (".zip",): "unzip"}
# What a directory of weights holds, at each depth: of the hub's cache it is models--…/snapshots/<commit>.
_MARKS = (f"{PARAMS}/{METADATA}", WEIGHTS_FILE, f"{WEIGHTS_FILE}{INDEX}")
_DEPTHS = ("*", "*/*", "*/*/*")
# Pickles: loading one runs the code in it. They are named in the report and not loaded; only their first
# bytes are read, to recognize a pointer of Git LFS.
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
# What each process of DeepSpeed saves of one step.
_DEEPSPEED = re.compile(r"(?:\w{0,40}zero_pp_rank_|mp_rank_)\d{1,9}+_\w{0,80}(?:model|optim)_states\.pt\Z")
# Writes a mapping `t` of arrays as Orbax's parameters. NumPy keeps bfloat16 as bytes without a type.
_TO_ORBAX = (
    "import os, sys, ml_dtypes, numpy as np, flax, orbax.checkpoint as o; f, out = sys.argv[1:]; t = {load};"
    " o.PyTreeCheckpointer().save(os.path.abspath(out), t)"
)
_LOADS = {
    ".npz": (
        'flax.traverse_util.unflatten_dict({k: v.view("bfloat16") if v.dtype.kind == "V" else v'
        ' for k, v in np.load(f).items()}, sep="/")'
    ),
    ".msgpack": 'flax.serialization.msgpack_restore(open(f, "rb").read())',
}
# The weights of PaliGemma as big_vision publishes them, by their usual names.
_PALIGEMMA = re.compile(r"\A(?:paligemma.*|pt_(?:224|448|896))\.npz\Z", re.IGNORECASE)
# Parts of a download: of the hub's client in its cache or beside the files, of browsers, of curl and wget.
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2", ".download")
_DOWNLOADS = ("*", "blobs/*", "*/blobs/*", ".cache/huggingface/download/*")
_KINDS = {
    ".npz": "an archive of NumPy's arrays",
    ".npy": "an array of NumPy's",
    ".msgpack": "msgpack, as flax.serialization writes it",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".gguf": "GGUF, weights for llama.cpp",
    ".onnx": "ONNX, a network for inference",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
}
_MOST_ENTRIES = 2000
_HUB_NAME = re.compile(r"\A[A-Za-z0-9][\w.-]*+/[\w.-]++")


def way_on(path: Path) -> str | None:
    """What to do next about `path`; None if nothing there tells."""
    try:
        return _way_on(path)
    except OSError:
        return None


def _way_on(path: Path) -> str | None:
    if not path.exists():
        named = _HUB_NAME.fullmatch(str(path)) is not None and not path.parent.exists()
        return (
            f"if it is a name on the hub: hf download {word(path)} --local-dir DIR, and name DIR"
            if named
            else None
        )
    if path.is_file():
        return _unfinished(path) or _unpack(path) or _written_anew(path)
    entries = sorted(islice(path.iterdir(), _MOST_ENTRIES))
    below = _below(path)
    if below is not None:
        return f"name the directory of the weights: {word(below)}"
    if fix := _joined(path, entries) or next((fix for entry in entries if (fix := _unpack(entry))), None):
        return fix
    parts = (entry for depth in _DOWNLOADS for entry in islice(path.glob(depth), _MOST_ENTRIES))
    if fix := next((fix for entry in parts if (fix := _unfinished(entry))), None):
        return fix
    kept = [entry for entry in entries if kind_of(entry) is not None]
    # Many of them are rather data.
    return _written_anew(kept[0]) if len(kept) == 1 else _pickled(path)


def _pickled(path: Path) -> str | None:
    """The largest pickle below `path`, as of Lightning's checkpoints/: beside it lie states of optimizers."""
    files = [file for depth in _DEPTHS[1:] for file in islice(path.glob(depth), _MOST_ENTRIES)]
    pickles = [file for file in files if file.suffix in PICKLES and file.is_file()]
    largest = max(pickles, key=lambda file: file.stat().st_size, default=None)
    return None if largest is None else f"name the file of the weights: {word(largest)}"


def kind_of(path: Path) -> str | None:
    """What the file `path` is by its name, if it may hold weights that are not read; else None."""
    return _KINDS.get(path.suffix.lower())


def item_below(path: Path) -> Path | None:
    """The newest item of Orbax's below `path` that may hold weights, whatever its name; else None."""
    found = [
        mark.parent
        for depth in _DEPTHS
        for mark in islice(path.glob(f"{depth}/{METADATA}"), _MOST_ENTRIES)
        if not any(
            part == TRAIN_STATE or is_interrupted(part) for part in mark.parent.relative_to(path).parts
        )
    ]
    return max(found, key=lambda item: item.stat().st_mtime, default=None)


def _below(path: Path) -> Path | None:
    """The newest directory of weights below `path`, or LeRobot's beside a training state."""
    policy = path.parent / "pretrained_model"
    found = [
        directory
        for directory in (
            policy,
            *(each for depth in _DEPTHS for each in islice(path.glob(depth), _MOST_ENTRIES)),
        )
        if (path.name == "training_state" or directory != policy)
        and any((directory / mark).is_file() for mark in _MARKS)
    ]
    return max(found, key=lambda directory: directory.stat().st_mtime, default=None) or item_below(path)


def _joined(path: Path, entries: list[Path]) -> str | None:
    """How the parts that processes of PyTorch saved are joined, if these are such.

    Source: deepspeed 0.16 deepspeed/utils/zero_to_fp32.py; accelerate 1.0 docs/source/usage_guides/fsdp.md.
    """
    script = next(
        (file for folder in (path, path.parent) if (file := folder / "zero_to_fp32.py").is_file()), None
    )
    if script is not None:
        # Without a tag it takes the newest step, whichever was named.
        step = f" --tag {word(path.name)}" if path != script.parent else ""
        command = f"python {word(script)} {word(script.parent)} OUT{step} --safe_serialization"
        return f"join the parts of DeepSpeed: {command}, and name OUT"
    tag = _deepspeed_step(path, entries)
    if tag is not None:
        command = f"python -m deepspeed.utils.zero_to_fp32 {word(tag.parent)} OUT --tag {word(tag.name)}"
        return f"where DeepSpeed is, join its parts: {command} --safe_serialization, and name OUT"
    parts = path if any(entry.suffix == ".distcp" for entry in entries) else None
    parts = parts or next((entry for entry in entries if entry.name.startswith("pytorch_model_fsdp")), None)
    if parts is None:
        return None
    return f"join the parts of FSDP: accelerate merge-weights {word(parts)} OUT, and name OUT"


def _deepspeed_step(path: Path, entries: list[Path]) -> Path | None:
    """The directory of the parts of a step that DeepSpeed saved: `path`, or the newest below it."""
    if any(_DEEPSPEED.match(entry.name) for entry in entries):
        return path
    steps = {part.parent for part in islice(path.glob("*/*_states.pt"), _MOST_ENTRIES)}
    return max(
        (step for step in steps if any(_DEEPSPEED.match(part.name) for part in step.iterdir())),
        key=lambda step: step.stat().st_mtime,
        default=None,
    )


def _unfinished(path: Path) -> str | None:
    """What to do about a part of a download; None if `path` is not called as one."""
    if not path.name.endswith(_UNFINISHED):
        return None
    repository = next((name for part in path.parts if (name := _repository(part))), "NAME")
    return (
        f"{path.name} is a download that was not finished: hf download {repository} --local-dir DIR, or what"
        " brought it once more, and name what that brings"
    )


def _repository(part: str) -> str | None:
    """The name on the hub of the directory `models--OWNER--NAME` of its cache; None for any other."""
    name = part.removeprefix("models--").replace("--", "/")
    return word(name) if part.startswith("models--") and _HUB_NAME.fullmatch(name) else None


def _unpack(path: Path) -> str | None:
    """How to unpack `path`, by its name; None if it is no archive."""
    how = next((how for endings, how in _ARCHIVES.items() if path.name.endswith(endings)), None)
    return None if how is None else f"unpack it, and name what is in it: {how} {word(path)}"


def _written_anew(path: Path) -> str | None:
    """How the file `path` becomes weights that are read, by its name; None if its name tells nothing."""
    kind = kind_of(path)
    if kind is None or not path.is_file():
        return None
    if _PALIGEMMA.match(path.name):
        return f"name weights of π0.5: {path.name} holds those of PaliGemma, without the action expert"
    if path.suffix.lower() in _LOADS:
        command = shlex.quote(_TO_ORBAX.replace("{load}", _LOADS[path.suffix.lower()]))
        return f"write it as Orbax's parameters: python -c {command} {word(path)} OUT, and name OUT"
    return f"name the weights from which {path.name} was made ({kind}), as Orbax's parameters or safetensors"
