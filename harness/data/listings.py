"""The lists of a dataset's episodes and tasks: JSON lines in versions 2.0 and 2.1, parquet in version 3.0.

Source: huggingface/lerobot src/lerobot/datasets (formats v2.1 of release 0.3.3 and v3.0 of release 0.4.4).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.artifacts import Feature
from harness.data.columns import is_number, read_rows
from harness.data.fields import TASK_LETTERS, integer, invalid, number, parsed, text
from harness.data.mending import correct, missing
from harness.data.paths import EPISODES, INFO, TASKS, fill, inside, open_file
from harness.errors import HarnessError
from harness.received.files import there
from harness.received.litter import is_litter
from harness.received.text import word
from harness.recipe.episodes import MOST_EPISODES
from harness.units import MIB

_V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_V3_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
_V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# What version 3.0 lists of each episode's part in a video.
_OF_VIDEO = ("chunk_index", "file_index", "from_timestamp")
MOST_TASKS = MOST_EPISODES
_LINE_BYTES, _LINES_BYTES = MIB, 256 * MIB
_TASKS_LETTERS = 32 * MIB
Listed = tuple[dict[int, str], list["Row"]]


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """The part of one episode in a video file: it starts at `start_s` and lasts the episode's length."""

    file: str
    start_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """An episode as the metadata list it, before its first global frame is known."""

    index: int
    length: int
    file: str
    videos: dict[str, VideoSpan]
    first: int | None = None


def video_features(features: dict[str, Feature]) -> list[str]:
    """Names of the features that are videos."""
    return [name for name, feature in features.items() if feature.dtype == "video"]


def version_by_files(root: Path) -> str | None:
    """The version to which the files of `meta/` belong, whatever info.json says.

    None if there are files of both versions, or of neither.
    """
    new = _episode_files(root) != [] or os.path.isfile(root / "meta/tasks.parquet")
    old = any(os.path.isfile(root / "meta" / name) for name in ("episodes.jsonl", TASKS))
    if new == old:
        return None
    return "v3.0" if new else "v2.1"


def has_episodes(root: Path) -> bool:
    """True if a file lists episodes, of whichever version."""
    return _episode_files(root) != [] or there(root / "meta/episodes.jsonl")


# --- versions 2.0 and 2.1: JSON lines, one parquet (and one video) an episode ---


def read_v2(root: Path, info: dict[str, Any], features: dict[str, Feature]) -> Listed:
    """Tasks and episodes from `meta/tasks.jsonl` and `meta/episodes.jsonl`."""
    where = root / INFO
    data = text(info, "data_path", where, default=_V2_DATA)
    videos = video_features(features)
    video = text(info, "video_path", where, default=_V2_VIDEO)
    size = info.get("chunks_size")
    chunk = integer({"chunks_size": 1000 if size is None else size}, "chunks_size", str(where), least=1)
    tasks = _tasks((line, "task", at) for line, at in _lines(root, f"meta/{TASKS}", MOST_TASKS))
    rows = []
    for line, at in _lines(root, "meta/episodes.jsonl", MOST_EPISODES):
        index = integer(line, "episode_index", at)
        values: dict[str, int | str] = {"episode_chunk": index // chunk, "episode_index": index}
        spans = {
            key: VideoSpan(fill(video, values | {"video_key": key}, where=str(where)), 0.0) for key in videos
        }
        rows.append(Row(index, integer(line, "length", at), fill(data, values, where=str(where)), spans))
    _check_holes(
        root,
        rows,
        lambda index: fill(data, {"episode_chunk": index // chunk, "episode_index": index}, where=str(where)),
    )
    return tasks, rows


def _check_holes(root: Path, rows: list[Row], file_of: Callable[[int], str]) -> None:
    """Refuses a table of an episode that is not listed: files and metadata disagree on what was taken out."""
    listed = {row.index for row in rows}
    last = max(listed, default=0)
    if last >= MOST_EPISODES:
        raise invalid(
            root / "meta", "an episode's number is too large", got=last, need=f"below {MOST_EPISODES:,}"
        )
    for index in range(last):
        if index not in listed and there(root / file_of(index)):
            raise invalid(
                root / "meta/episodes.jsonl",
                f"episode {index} is not listed, and its table is there: {file_of(index)}",
                need="the table and the line, or neither",
                fix=correct(
                    root / "meta",
                    f"put the line of episode {index} back and leave it out with data.episodes.exclude, or"
                    " move its table elsewhere",
                ),
            )


def _lines(root: Path, relative: str, most: int) -> Iterator[tuple[dict[str, Any], str]]:
    """The mapping of each line that is not blank, and its location."""
    path = existing(root, relative)
    read, kept = 0, 0
    with open_file(root, path) as file:
        for number_, line in enumerate(iter(lambda: file.readline(_LINE_BYTES + 1), b""), 1):
            read += len(line)
            kept += bool(line.strip())
            if len(line) > _LINE_BYTES or read > _LINES_BYTES or kept > most:
                got = (
                    f"line {number_} is longer than {_LINE_BYTES:,} bytes"
                    if len(line) > _LINE_BYTES
                    else f"more than {number_ - 1:,} lines"
                )
                raise invalid(
                    path,
                    "it is larger than any dataset's",
                    got=got,
                    need=f"at most {most:,} lines, {_LINES_BYTES:,} bytes",
                )
            if line.strip():
                yield parsed(path, line.strip(), number_), f"{path} line {number_}"


# --- version 3.0: parquet metadata, many episodes a file ---


def read_v3(root: Path, info: dict[str, Any], features: dict[str, Feature]) -> Listed:
    """Tasks and episodes from `meta/tasks.parquet` and `meta/episodes/`."""
    where = root / INFO
    data = text(info, "data_path", where, default=_V3_DATA)
    videos = video_features(features)
    video = text(info, "video_path", where, default=_V3_VIDEO)
    prefixes = ["data", *(f"videos/{key}" for key in videos)]
    wanted = {f"{prefix}/{name}" for prefix in prefixes for name in _OF_VIDEO}
    wanted |= {"episode_index", "length", "dataset_from_index"}
    rows = []
    for row, at in _episode_rows(root, wanted):
        rows.append(_row_v3(row, data, dict.fromkeys(videos, video), at, str(where)))
        if len(rows) > MOST_EPISODES:
            raise invalid(root / EPISODES, "it lists more episodes than any dataset", need=MOST_EPISODES)
    return _tasks_v3(root), rows


def _episode_rows(root: Path, wanted: set[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The `wanted` numbers of every row of `meta/episodes/`, and the row's location."""
    # If there is no file at all, the first one is reported as missing.
    for path in _episode_files(root) or [existing(root, _V3_EPISODES)]:
        real = inside(root, path.relative_to(root).as_posix())
        rows = read_rows(
            root, real, lambda field: field.name in wanted and is_number(field.type), MOST_EPISODES
        )
        yield from ((row, f"{path} row {n}") for n, row in enumerate(rows))


def _episode_files(root: Path) -> list[Path]:
    files = (root / EPISODES).glob("*/*.parquet")
    return sorted(path for path in files if not is_litter(path.name))


def _row_v3(row: dict[str, Any], data: str, videos: dict[str, str], at: str, where: str) -> Row:
    def numbers(prefix: str) -> dict[str, int | str]:
        return {name: integer(row, f"{prefix}/{name}", at) for name in ("chunk_index", "file_index")}

    spans = {}
    for key, video in videos.items():
        # A camera that no recipe may name: somebody took its columns out, or merged datasets without it.
        if all(row.get(f"videos/{key}/{name}") is None for name in _OF_VIDEO):
            continue
        start = number(row, f"videos/{key}/from_timestamp", at)
        spans[key] = VideoSpan(fill(video, numbers(f"videos/{key}") | {"video_key": key}, where=where), start)
    file = fill(data, numbers("data"), where=where)
    return Row(
        integer(row, "episode_index", at),
        integer(row, "length", at),
        file,
        spans,
        integer(row, "dataset_from_index", at),
    )


def _tasks_v3(root: Path) -> dict[int, str]:
    """The text of each task.

    It is in the column `task`. Else it is in the only text column: the index of a pandas frame, whose name
    the writer chose. A null there is a task without a text.
    """
    path = existing(root, "meta/tasks.parquet")

    def name_of(row: dict[str, Any], n: int) -> str:
        columns = [key for key in row if key != "task_index"]
        texts = [key for key in columns if row[key] is not None]
        usual = [key for key in ("task", "__index_level_0__") if key in columns]
        # Beside a null in a usual column no other text is the instruction.
        chosen = [key for key in usual if key in texts] or usual or texts or columns
        if not chosen or (len(chosen) > 1 and not usual):
            what = f"row {n} has {'several texts' if chosen else 'no task text'}"
            fix = correct(path, "name the column of the instructions `task`")
            raise invalid(
                path,
                what,
                got=", ".join(sorted(row)),
                need="task_index, and the text in a column `task`",
                fix=fix,
            )
        return chosen[0]

    return _tasks(
        (row, name_of(row, n), f"{path} row {n}")
        for n, row in enumerate(read_rows(root, path, _is_task, MOST_TASKS))
    )


def _tasks(rows: Iterator[tuple[dict[str, Any], str, str]]) -> dict[int, str]:
    """The text of each task, empty where it is null. Each of `rows` is (row, key of the text, location)."""
    tasks, letters = dict[int, str](), 0
    for row, key, at in rows:
        null = key in row and row[key] is None
        found = "" if null else text(row, key, at, letters=TASK_LETTERS)
        index = integer(row, "task_index", at)
        if tasks.setdefault(index, found) != found:
            raise invalid(
                at,
                f"task {index} is listed with two texts",
                got=f"{tasks[index][:100]!r} and {found[:100]!r}",
                need="one text for each number",
                fix=correct(
                    at, "give each text a number of its own, and the rows of the tables the right one"
                ),
            )
        letters += len(found)
        if letters > _TASKS_LETTERS:
            raise invalid(
                at,
                "the instructions are longer than any dataset's",
                need=f"at most {_TASKS_LETTERS:,} letters together",
            )
    return tasks


def _is_task(field: Any) -> bool:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return field.name == "task_index" or any(holds(kind) for holds in is_text)


def existing(root: Path, relative: str) -> Path:
    """The path of a file that the dataset must have.

    Raises: HarnessError "dataset-file-missing" or "dataset-path-unsafe".
    """
    path = inside(root, relative)
    if not there(path):
        raise missing(path, f"the dataset {root} lacks a file", need=relative)
    return path


def check_version(info_path: Path, version: str, by_files: str | None) -> None:
    """Refuses a declared version that does not match `by_files`, as `version_by_files` gives it.

    Otherwise an error would name missing files that never existed.

    Raises: HarnessError "dataset-version-wrong".
    """
    if by_files is not None and by_files[:2] != version[:2]:
        raise version_wrong(info_path, version, by_files)


def version_wrong(info_path: Path, version: str | None, by_files: str, *, named: bool = True) -> HarnessError:
    """The error for info.json that declares `version`, or none, with files of the version `by_files`.

    `named`: it has the key codebase_version.
    """
    names = {
        "v3.0": "meta/episodes/ and meta/tasks.parquet",
        "v2.1": f"meta/episodes.jsonl and meta/{TASKS}",
    }[by_files]
    # JSON allows blanks on both sides of a colon.
    key = '"codebase_version"[[:space:]]*:[[:space:]]*'
    if version is not None:
        fix = f"""sed -i 's/{key}"[^"]*"/"codebase_version": "{by_files}"/' {word(info_path)}"""
    elif named:
        fix = f"""sed -i 's/{key}[^,}}]*/"codebase_version": "{by_files}"/' {word(info_path)}"""
    else:
        fix = f"""sed -i '0,/{{/s//{{"codebase_version": "{by_files}", /' {word(info_path)}"""
    return HarnessError(
        "dataset-version-wrong",
        f"{info_path} says that the dataset is of version {version}, but its files are of another version"
        if version is not None
        else f"{info_path} does not name the dataset's version; its files show it",
        got=f"codebase_version {version}, with {names}" if version is not None else f"none, with {names}",
        need=f"codebase_version {by_files}",
        fix=fix,
    )
