"""Where to go from a path that holds no weights that are read: what lies below it, or how to make them.

Only names are looked at.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from harness.checkpoint.tensors import INDEX, WEIGHTS_FILE
from harness.received.text import word
from harness.run.steps import METADATA, PARAMS

_ARCHIVES = {(".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"): "tar -xf", (".zip",): "unzip"}
# What a directory of weights holds, at each depth: of the hub's cache it is models--…/snapshots/<commit>.
_MARKS = (f"{PARAMS}/{METADATA}", WEIGHTS_FILE, f"{WEIGHTS_FILE}{INDEX}")
_DEPTHS = ("*", "*/*", "*/*/*")
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
        return _unpack(path)
    entries = sorted(islice(path.iterdir(), _MOST_ENTRIES))
    below = _below(path)
    if below is not None:
        return f"name the directory of the weights: {word(below)}"
    return _joined(path, entries) or next((fix for entry in entries if (fix := _unpack(entry))), None)


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
    return max(found, key=lambda directory: directory.stat().st_mtime, default=None)


def _joined(path: Path, entries: list[Path]) -> str | None:
    """How the parts that processes of PyTorch saved are joined, if these are such.

    Source: deepspeed 0.16 deepspeed/utils/zero_to_fp32.py; accelerate 1.0 docs/source/usage_guides/fsdp.md.
    """
    script = next(
        (file for folder in (path, path.parent) if (file := folder / "zero_to_fp32.py").is_file()), None
    )
    if script is not None:
        command = f"python {word(script)} {word(script.parent)} OUT --safe_serialization"
        return f"join the parts of DeepSpeed: {command}, and name OUT"
    parts = path if any(entry.suffix == ".distcp" for entry in entries) else None
    parts = parts or next((entry for entry in entries if entry.name.startswith("pytorch_model_fsdp")), None)
    if parts is None:
        return None
    return f"join the parts of FSDP: accelerate merge-weights {word(parts)} OUT, and name OUT"


def _unpack(path: Path) -> str | None:
    """How to unpack `path`, by its name; None if it is no archive."""
    how = next((how for endings, how in _ARCHIVES.items() if path.name.endswith(endings)), None)
    return None if how is None else f"unpack it, and name what is in it: {how} {word(path)}"
