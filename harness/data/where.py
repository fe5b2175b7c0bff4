"""Finds the file that really holds each episode's rows, if the metadata and a file disagree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from harness.data.columns import open_parquet, read_columns
from harness.data.mending import correct
from harness.data.metadata import Metadata
from harness.data.paths import EPISODES, inside, walk_dataset
from harness.errors import HarnessError


def check_files(metadata: Metadata) -> None:
    """Refuses metadata that name the wrong file for an episode, if another file has all of its rows.

    The files themselves are complete then.

    Source: huggingface/lerobot issue 2401: a converter listed the first episode of a new file in the file
    before.
    Raises: HarnessError "episode-place-wrong".
    """
    if metadata.version != "v3.0":
        return
    try:
        found = {file: _rows_by_episode(metadata, file) for file in _files(metadata.root)}
    except (HarnessError, OSError):
        # An unreadable file is then the cause, and its reader reports it.
        return
    for episode in metadata.episodes:
        whole = [file for file, rows in found.items() if rows[episode.index] == episode.length]
        if whole and episode.file not in whole:
            where = metadata.root / EPISODES
            raise HarnessError(
                "episode-place-wrong",
                f"{where}: episode {episode.index} is listed in another file than the one that has its rows;"
                " the files are whole",
                got=episode.file,
                need=whole[0],
                fix=correct(
                    where,
                    f"correct data/chunk_index and data/file_index of episode {episode.index}, or convert the"
                    " dataset again with a newer LeRobot",
                ),
            )


def _files(root: Path) -> list[str]:
    """The dataset's tables, listed in the metadata or not."""
    return sorted(
        path.relative_to(root).as_posix() for path in walk_dataset(root / "data") if path.suffix == ".parquet"
    )


def _rows_by_episode(metadata: Metadata, file: str) -> Counter[int]:
    path = inside(metadata.root, file)
    with open_parquet(metadata.root, path) as (parquet, _):
        rows = parquet.metadata.num_rows
    numbers = next(read_columns(metadata.root, path, ["episode_index"], [rows]))["episode_index"]
    indices, counts = np.unique(numbers[np.isfinite(numbers)], return_counts=True)
    return Counter({int(index): int(count) for index, count in zip(indices, counts, strict=True)})
