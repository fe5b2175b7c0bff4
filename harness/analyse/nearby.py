"""The logs of other trainers that lie in a directory, for the fix of a refusal."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from harness.analyse.forms import KNOWN
from harness.received.text import word
from harness.run.directory import METRICS

# The kinds, best first: what holds a curve by itself, then what was printed. A `*` stands for any text.
_KINDS = (
    (METRICS, "trainer_log.jsonl", "logs.json.txt"),
    ("trainer_state.json",),
    ("*.wandb",),
    ("events.out.tfevents.*",),
    ("progress.csv", "metrics.csv", "history.csv", "results.csv", "summary.csv", "log.csv", "progress.json"),
    ("output.log", "train.log", "training.log", "log.txt", "train_log.txt"),
    ("*.log", "*.out"),
)
_MLFLOW = "metrics"
_MOST_ENTRIES, _DEEPEST = 5_000, 5


def how_to_read(directory: Path) -> str | None:
    """The command that reads the newest log of the best kind below `directory`. None if there is none.

    Several event files of one directory are the parts of one run. Links are not followed.
    """
    best: dict[int, list[Path]] = {}
    for path in _files(directory):
        kind = _kind(path)
        if kind is not None:
            best.setdefault(kind, []).append(path)
    if not best:
        return None
    kind = min(best)
    newest = max(best[kind], key=_changed)
    parts = sorted(path for path in best[kind] if path.parent == newest.parent)
    if newest.name.startswith("events.") and len(parts) > 1:
        return f"cat {' '.join(word(path) for path in parts)} | harness analyse -"
    return f"harness analyse {word(newest)}"


def _kind(path: Path) -> int | None:
    for kind, names in enumerate(_KINDS):
        if any(fnmatchcase(path.name, name) for name in names):
            return kind
    is_mlflow = _MLFLOW in (path.parent.name, path.parent.parent.name)
    of_it = path.name if path.parent.name == _MLFLOW else f"{path.parent.name}/{path.name}"
    return len(_KINDS) if is_mlflow and KNOWN.get(of_it) == "loss" else None


def _files(directory: Path) -> list[Path]:
    found: list[Path] = []
    for folder, below, names in os.walk(directory):
        if len(Path(folder).relative_to(directory).parts) >= _DEEPEST:
            below.clear()
        below.sort()
        found += [Path(folder, name) for name in sorted(names) if not Path(folder, name).is_symlink()]
        if len(found) > _MOST_ENTRIES:
            break
    return found


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
