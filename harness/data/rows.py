"""Checked numbers of a dataset's rows: state, actions, and the row's own indices."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.columns import BOOKKEEPING, read_columns
from harness.data.episodes import naming
from harness.data.fields import invalid
from harness.data.mending import correct
from harness.data.metadata import Episode, Metadata
from harness.data.paths import TASKS, inside
from harness.data.where import check_files
from harness.errors import HarnessError

# Rows of a large file in memory at a time, unless an episode has more.
BLOCK_ROWS = 1 << 17


@dataclass(frozen=True)
class Block:
    """Consecutive complete episodes from the columns of one file, checked.

    Shapes: state [N, S] (S is 0 without a state) and actions [N, A] float32; timestamp [N] float64;
    task_index [N] int64. `skips` is how often frame_index passes over numbers. `lacking` are the columns that
    the file does not have, and that follow from the rows' order.
    """

    episodes: list[Episode]
    state: np.ndarray
    actions: np.ndarray
    timestamp: np.ndarray
    task_index: np.ndarray
    skips: int = 0
    lacking: tuple[str, ...] = ()


def read_blocks(
    metadata: Metadata,
    names: tuple[tuple[str, ...], str],
    file: str,
    episodes: list[Episode],
    read: Container[int],
) -> Iterator[Block]:
    """The rows of `file`, which holds `episodes`. Those whose number is in `read` are read, and no image.

    `names` are the features that make up the state (empty without a state), and that of the actions.

    Raises: HarnessError "dataset-rows-mismatch", "episode-place-wrong", "dataset-index-invalid",
    "dataset-not-finite", and those of `read_columns`.
    """
    path = inside(metadata.root, file)
    if episodes[0].row != 0:
        raise invalid(
            metadata.root / "meta",
            f"the episodes of {file} do not follow each other",
            got=f"episode {episodes[0].index} after others",
        )
    parts = _parts(episodes, read)
    pieces = [sum(episode.length for episode in part) for part in parts]
    passed = {n for n, part in enumerate(parts) if part[0].index not in read}
    columns = [*dict.fromkeys([*names[0], names[1]]), *BOOKKEEPING]
    here = [episode.index for episode in episodes if episode.index in read]
    with naming(metadata.selection, here, len(metadata.episodes)):
        found = read_columns(metadata.root, path, columns, pieces, passed, _spare(metadata))
        yield from _blocks(metadata, names, path, parts, found)


def _blocks(
    metadata: Metadata,
    names: tuple[tuple[str, ...], str],
    path: Path,
    parts: list[list[Episode]],
    columns: Iterator[dict[str, np.ndarray]],
) -> Iterator[Block]:
    """A checked block for each part that is not passed over."""
    of_state, of_actions = names
    try:
        for part, numbers in zip(parts, columns, strict=True):
            if not numbers:
                continue
            lacking = _put_in(part, numbers, _spare(metadata))
            # Some writers store one number per row as a vector of length 1.
            numbers |= {name: numbers[name].reshape(-1) for name in BOOKKEEPING}
            _check_bookkeeping(path, part, numbers, metadata)
            vectors = {
                name: _vectors(path, name, numbers, part, metadata)
                for name in dict.fromkeys([*of_state, of_actions])
            }
            yield Block(
                part,
                _side_by_side([vectors[name] for name in of_state], len(numbers["index"])),
                vectors[of_actions],
                numbers["timestamp"].astype(np.float64),
                numbers["task_index"].astype(np.int64),
                _skips(part, numbers["frame_index"]),
                lacking,
            )
    except HarnessError as refusal:
        if refusal.code in ("dataset-rows-mismatch", "dataset-index-invalid"):
            check_files(metadata)
        raise


def _spare(metadata: Metadata) -> tuple[str, ...]:
    """The columns without which LeRobot's readers read a dataset of this version: the rows' order gives them.

    pandas leaves out a column that it was given as its index, if that counts from 0.
    """
    return ("frame_index",) if metadata.version == "v3.0" else ("frame_index", "index")


def _put_in(
    episodes: list[Episode], numbers: dict[str, np.ndarray], spare: tuple[str, ...]
) -> tuple[str, ...]:
    """Puts the columns that the file lacks into `numbers`, and gives their names."""
    lacking = tuple(name for name in spare if name not in numbers)
    if not lacking:
        return ()
    frames = [np.arange(episode.length) for episode in episodes]
    firsts = np.repeat(
        [episode.number or 0 for episode in episodes], [episode.length for episode in episodes]
    )
    whole = {"frame_index": np.concatenate(frames), "index": np.concatenate(frames) + firsts}
    numbers |= {name: whole[name] for name in lacking}
    return lacking


def _check_bookkeeping(
    path: Path, episodes: list[Episode], numbers: dict[str, np.ndarray], metadata: Metadata
) -> None:
    start = episodes[0].row
    expected = {
        "index": _numbers(episodes, numbers["index"], counted_on=metadata.version == "v3.0"),
        "episode_index": np.repeat([e.index for e in episodes], [e.length for e in episodes]),
        "frame_index": _frame_numbers(episodes, numbers["frame_index"]),
    }
    for name, want in expected.items():
        got = numbers[name]
        wrong = got != want if got.shape == want.shape else np.ones(1, bool)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise _bad_index(path, start + row, name, got[row] if row < len(got) else None, want[row])
    timestamp, task = numbers["timestamp"], numbers["task_index"]
    for name in ("timestamp", "task_index"):
        if numbers[name].shape != expected["frame_index"].shape:
            raise _bad_index(
                path,
                start,
                name,
                f"{len(numbers[name])} values",
                f"one for each of {len(expected['frame_index'])} rows",
            )
    if not np.isfinite(timestamp).all():
        row = int(np.argmin(np.isfinite(timestamp)))
        raise _bad_index(path, start + row, "timestamp", "not a finite number", "seconds")
    unknown = ~np.isin(task, list(metadata.tasks))
    if unknown.any():
        row = int(np.argmax(unknown))
        need = f"one of the {len(metadata.tasks)} tasks of meta/"
        fix = None
        if 0 <= task[row] < 2**53 and task[row] % 1 == 0:
            # The row may be right and its task not listed: new numbers could not bring the task back.
            listed = "tasks.parquet" if metadata.version == "v3.0" else TASKS
            lacks = f"meta/{listed} lacks task {int(task[row])}: add its line"
            fix = correct(metadata.root / "meta", lacks)
        raise _bad_index(path, start + row, "task_index", task[row], need, fix)


def _without(metadata: Metadata, episodes: list[Episode], row: int) -> AbstractContextManager[None]:
    """A context in which an error of the row names the way to do without its episode."""
    ends = np.cumsum([episode.length for episode in episodes])
    episode = episodes[min(int(np.searchsorted(ends, row, side="right")), len(episodes) - 1)]
    return naming(metadata.selection, [episode.index], len(metadata.episodes))


def _frame_numbers(episodes: list[Episode], found: np.ndarray) -> np.ndarray:
    """The column `frame_index` as it should be: from 0 on in each episode.

    Where somebody took frames out, the others may have kept their numbers. LeRobot's readers do not look at
    them. So numbers that grow within an episode are as they should be.
    """
    ends = np.cumsum([episode.length for episode in episodes])
    parts = [found[end - e.length : end] for e, end in zip(episodes, ends, strict=True)]
    return np.concatenate(
        [p if _grows(p, e.length) else np.arange(e.length) for e, p in zip(episodes, parts, strict=True)]
    )


def _grows(numbers: np.ndarray, length: int) -> bool:
    """True if these are `length` counts, each larger than the one before."""
    return bool(
        len(numbers) == length
        and np.isfinite(numbers).all()
        and numbers[0] >= 0
        and (numbers == np.floor(numbers)).all()
        and (numbers[1:] > numbers[:-1]).all()
    )


def _skips(episodes: list[Episode], frame_index: np.ndarray) -> int:
    """How often `frame_index` passes over numbers, within an episode or at its start."""
    starts = np.cumsum([0, *(episode.length for episode in episodes[:-1])])
    wanted = np.concatenate([[0], frame_index[:-1] + 1])
    wanted[starts] = 0
    return int((frame_index != wanted).sum())


def _numbers(episodes: list[Episode], found: np.ndarray, *, counted_on: bool) -> np.ndarray:
    """The column `index` as it should be: from each episode's first number on.

    After a hole in the episodes that number is not known, and the first one found counts. Unless it is
    `counted_on` through the dataset, it may also begin anew in each episode, or pass over numbers: LeRobot's
    reader of version 2 does not look at it, and some converters number so.
    """
    numbers, at = [], 0
    for episode in episodes:
        value = found[at] if at < len(found) else 0
        first = int(value) if np.isfinite(value) and value >= 0 else 0
        anew = np.arange(first, first + episode.length)
        here, start = found[at : at + episode.length], episode.number
        if not counted_on and _grows(here, episode.length):
            numbers.append(here)
        else:
            numbers.append(anew if start is None else np.arange(start, start + episode.length))
        at += episode.length
    return np.concatenate(numbers)


def _side_by_side(vectors: list[np.ndarray], rows: int) -> np.ndarray:
    """Vectors [N, D] as one; [N, 0] if there are none."""
    if len(vectors) == 1:
        return vectors[0]
    return np.concatenate([np.zeros((rows, 0), np.float32), *vectors], axis=1)


def _vectors(
    path: Path, name: str, numbers: dict[str, np.ndarray], episodes: list[Episode], metadata: Metadata
) -> np.ndarray:
    features = metadata.features
    shape = features[name].shape if name in features else []
    # [N, D]; a feature of one number per row is a vector of length 1.
    values = numbers[name].reshape(len(numbers[name]), -1)
    if [values.shape[1]] != shape:
        raise HarnessError(
            "dataset-feature-invalid",
            f"{path}: feature {name!r} differs from meta/info.json",
            got=[values.shape[1]],
            need=shape,
            fix=correct(path, "correct the feature's shape in meta/info.json"),
        )
    with np.errstate(over="ignore"):
        vectors = values.astype(np.float32)
    bad = ~np.isfinite(vectors)
    if bad.any():
        row, dimension = (int(n) for n in np.argwhere(bad)[0])
        with _without(metadata, episodes, row):
            raise HarnessError(
                "dataset-not-finite",
                f"{path} row {episodes[0].row + row}: {name}[{dimension}] is not a finite number",
                got=values[row, dimension],
                need="finite numbers of at most 3.4e38, since float32 holds no more",
                fix=f"repair that row; {path.name} itself is whole",
            )
    return vectors


def _parts(episodes: list[Episode], read: Container[int]) -> list[list[Episode]]:
    """Consecutive episodes in parts, which are either read or not.

    Each part has at least BLOCK_ROWS rows, except the last before episodes of the other kind.
    """
    parts: list[list[Episode]] = [[]]
    rows = 0
    for episode in episodes:
        if rows >= BLOCK_ROWS or (parts[-1] and (parts[-1][0].index in read) != (episode.index in read)):
            parts.append([])
            rows = 0
        parts[-1].append(episode)
        rows += episode.length
    return parts


def _bad_index(
    path: Path, row: int, name: str, got: object, need: object, fix: str | None = None
) -> HarnessError:
    fix = fix or (
        "number the rows anew with LeRobot's own writer, in a copy of the dataset; this shows nothing else"
        f" wrong with {path.name}"
    )
    return HarnessError(
        "dataset-index-invalid",
        f"{path} row {row}: {name} does not match the row's position",
        got=got,
        need=need,
        fix=fix,
    )
