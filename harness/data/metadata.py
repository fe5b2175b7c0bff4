"""What a LeRobot dataset says about itself (`meta/`), in versions 2.0, 2.1 and 3.0, as one form.

Source: huggingface/lerobot src/lerobot/datasets (formats v2.1 of release 0.3.3 and v3.0 of release 0.4.4).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.artifacts import Feature
from harness.data.paths import fill, inside
from harness.errors import HarnessError

VERSIONS = ("v2.0", "v2.1", "v3.0")
_V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_V3_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
_V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


@dataclass(frozen=True)
class VideoSpan:
    """Where one episode lies in a video file: from `start_s` for the episode's length."""

    file: str
    start_s: float


@dataclass(frozen=True)
class Episode:
    """`length` frames: global frames `first` … and rows `row` … of `file`."""

    index: int
    first: int
    length: int
    file: str
    row: int
    videos: dict[str, VideoSpan]


@dataclass(frozen=True)
class Metadata:
    root: Path
    version: str
    fps: float
    features: dict[str, Feature]
    tasks: dict[int, str]
    episodes: list[Episode]

    @property
    def frames(self) -> int:
        return self.episodes[-1].first + self.episodes[-1].length


def read_metadata(root: Path) -> Metadata:
    """The metadata of the dataset in `root`, checked for agreement with itself.

    Raises: HarnessError "not-a-dataset", "dataset-format-unsupported", "dataset-metadata-invalid", "dataset-rows-mismatch",
    "dataset-empty", "dataset-file-missing", "dataset-file-corrupt" or "dataset-path-unsafe".
    """
    info_path = root / "meta" / "info.json"
    if not info_path.is_file():
        raise HarnessError(
            "not-a-dataset",
            f"{root} is not a LeRobot dataset",
            got="no meta/info.json" if root.is_dir() else "no such directory",
            need="a directory with meta/info.json, meta/ and data/",
            fix="--dataset with the dataset's top directory, or a hub id such as physical-intelligence/libero",
        )
    info = _object(_json(info_path, _bytes(root, "meta/info.json")), info_path)
    version = _version(info, info_path)
    fps = _number(info, "fps", info_path)
    features = _features(info, info_path)
    read = _read_v3 if version == "v3.0" else _read_v2
    tasks, rows = read(root, info, features)
    if not rows:
        raise HarnessError("dataset-empty", f"{root} has no episodes", got=0, need="at least one episode", fix="record or download episodes first")
    episodes = _place(root, rows)
    found = Metadata(root, version, fps, features, tasks, episodes)
    _check_totals(info, info_path, found)
    return found


def invalid(where: Path | str, what: str, *, got: object = None, need: object = None) -> HarnessError:
    """The error for metadata that is not of LeRobot's form."""
    fix = "download the dataset again, or rewrite its metadata with LeRobot's own writer"
    return HarnessError("dataset-metadata-invalid", f"{where}: {what}", got=got, need=need, fix=fix)


@dataclass(frozen=True)
class _Row:
    """An episode as listed, before its place among the others is known."""

    index: int
    length: int
    file: str
    videos: dict[str, VideoSpan]
    first: int | None = None


def _place(root: Path, rows: list[_Row]) -> list[Episode]:
    rows = sorted(rows, key=lambda row: row.index)
    first, next_row, episodes = 0, dict[str, int](), []
    for position, row in enumerate(rows):
        if row.index != position:
            raise invalid(root / "meta", "episodes are not numbered 0, 1, 2 …", got=row.index, need=position)
        if row.length <= 0:
            raise invalid(root / "meta", f"episode {row.index} has no frames", got=row.length, need="a positive length")
        if row.first is not None and row.first != first:
            raise _mismatch(root / "meta", f"episode {row.index} starts at the wrong frame", got=row.first, need=first)
        episodes.append(Episode(row.index, first, row.length, row.file, next_row.get(row.file, 0), row.videos))
        next_row[row.file] = next_row.get(row.file, 0) + row.length
        first += row.length
    return episodes


def _mismatch(where: Path, what: str, *, got: object, need: object) -> HarnessError:
    return HarnessError("dataset-rows-mismatch", f"{where}: {what}", got=got, need=need, fix="download the dataset again; its files do not belong together")


def _check_totals(info: dict[str, Any], path: Path, found: Metadata) -> None:
    for key, value in (("total_episodes", len(found.episodes)), ("total_frames", found.frames)):
        if key in info and info[key] != value:
            raise _mismatch(path, f"{key} differs from the list of episodes", got=value, need=info[key])


def _version(info: dict[str, Any], path: Path) -> str:
    version = info.get("codebase_version")
    if not isinstance(version, str):
        raise invalid(path, "no codebase_version", got=version, need=", ".join(VERSIONS))
    version = version if version.startswith("v") else f"v{version}"
    if version not in VERSIONS:
        raise HarnessError(
            "dataset-format-unsupported",
            f"{path}: this LeRobot format is not one that the harness reads",
            got=version,
            need=", ".join(VERSIONS),
            fix="convert the dataset to v3.0 with LeRobot's converter, or pin a revision of it in a supported format (data.revision)",
        )
    return version


def _features(info: dict[str, Any], path: Path) -> dict[str, Feature]:
    declared = info.get("features")
    if not isinstance(declared, dict) or not declared:
        raise invalid(path, "no features", got=type(declared).__name__, need="a mapping of feature names")
    features = {}
    for name, value in declared.items():
        shape = value.get("shape") if isinstance(value, dict) else None
        if (
            not isinstance(shape, list)
            or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
            or not isinstance(value.get("dtype"), str)
        ):
            raise invalid(path, f"feature {name!r} has no dtype and shape", got=value)
        _text({"name": name}, "name", path)
        features[name] = Feature(dtype=value["dtype"], shape=shape)
    return features


# --- versions 2.0 and 2.1: JSON lines, one parquet (and one video) an episode --------------------------------------------


def _read_v2(root: Path, info: dict[str, Any], features: dict[str, Feature]) -> tuple[dict[int, str], list[_Row]]:
    where = root / "meta" / "info.json"
    data = _text(info, "data_path", where, default=_V2_DATA)
    video = _text(info, "video_path", where, default="") if _video_features(features) else ""
    chunk = _integer({"chunks_size": 1000} | info, "chunks_size", str(where), least=1)
    tasks = {}
    for line, number, path in _lines(root, "meta/tasks.jsonl"):
        tasks[_integer(line, "task_index", f"{path} line {number}")] = _text(line, "task", f"{path} line {number}")
    rows = []
    for line, number, path in _lines(root, "meta/episodes.jsonl"):
        index = _integer(line, "episode_index", f"{path} line {number}")
        values: dict[str, int | str] = {"episode_chunk": index // chunk, "episode_index": index}
        videos = {key: VideoSpan(fill(video, values | {"video_key": key}, where=str(where)), 0.0) for key in _video_features(features)}
        rows.append(_Row(index, _integer(line, "length", f"{path} line {number}"), fill(data, values, where=str(where)), videos))
    return tasks, rows


def _lines(root: Path, relative: str) -> list[tuple[dict[str, Any], int, Path]]:
    path = root / relative
    raw = _bytes(root, relative).splitlines()
    return [(_object(_json(path, line, number), path), number, path) for number, line in enumerate(raw, 1) if line.strip()]


# --- version 3.0: parquet metadata, many episodes a file ---------------------------------------------------------------


def _read_v3(root: Path, info: dict[str, Any], features: dict[str, Feature]) -> tuple[dict[int, str], list[_Row]]:
    from harness.data.columns import read_rows

    where = root / "meta" / "info.json"
    data = _text(info, "data_path", where, default=_V3_DATA)
    videos = _video_features(features)
    video = _text(info, "video_path", where, default="") if videos else ""
    rows = []
    # Without a single one, the first is what is missing.
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")) or [existing(root, _V3_EPISODES)]:
        relative = path.relative_to(root).as_posix()
        for number, row in enumerate(read_rows(inside(root, relative), skip="stats/")):
            rows.append(_row_v3(row, data, dict.fromkeys(videos, video), f"{path} row {number}", str(where)))
    return _tasks_v3(root), rows


def _row_v3(row: dict[str, Any], data: str, videos: dict[str, str], at: str, where: str) -> _Row:
    def place(prefix: str) -> dict[str, int | str]:
        return {name: _integer(row, f"{prefix}/{name}", at) for name in ("chunk_index", "file_index")}

    spans = {}
    for key, video in videos.items():
        start = _number(row, f"videos/{key}/from_timestamp", at)
        spans[key] = VideoSpan(fill(video, place(f"videos/{key}") | {"video_key": key}, where=where), start)
    file = fill(data, place("data"), where=where)
    return _Row(_integer(row, "episode_index", at), _integer(row, "length", at), file, spans, _integer(row, "dataset_from_index", at))


def _tasks_v3(root: Path) -> dict[int, str]:
    from harness.data.columns import read_rows

    path = existing(root, "meta/tasks.parquet")
    tasks = {}
    for number, row in enumerate(read_rows(path)):
        # The task is the index of a pandas frame, whose name depends on the writer.
        texts = [value for key, value in row.items() if key != "task_index" and isinstance(value, str)]
        if len(texts) != 1:
            raise invalid(path, f"row {number} has no task text", got=sorted(row), need="task_index and one text")
        tasks[_integer(row, "task_index", f"{path} row {number}")] = texts[0]
    return tasks


# --- values ------------------------------------------------------------------------------------------------------------


def existing(root: Path, relative: str) -> Path:
    """The path of a file that the dataset must have.

    Raises: HarnessError "dataset-file-missing" or "dataset-path-unsafe".
    """
    path = inside(root, relative)
    if not path.is_file():
        raise HarnessError("dataset-file-missing", f"the dataset {root} lacks a file", got="no such file", need=relative, fix="download the dataset again")
    return path


def _bytes(root: Path, relative: str) -> bytes:
    path = existing(root, relative)
    try:
        return path.read_bytes()
    except OSError as error:
        raise HarnessError("dataset-file-corrupt", f"{path} cannot be read", got=error.strerror, fix=f"chmod a+r {path}, or copy the dataset again") from error


def _video_features(features: dict[str, Feature]) -> list[str]:
    return [name for name, feature in features.items() if feature.dtype == "video"]


def _json(path: Path, raw: bytes, line: int | None = None) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise invalid(path, f"not JSON{f' in line {line}' if line else ''}: {error}") from error


def _object(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(path, "not a mapping", got=type(value).__name__)
    return value


def _integer(row: dict[str, Any], key: str, where: str, least: int = 0) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**48:
        raise invalid(where, f"{key} is not a count", got=value, need=f"an integer ≥ {least}")
    return value


def _number(row: dict[str, Any], key: str, where: Path | str) -> float:
    value = row.get(key)
    positive = key == "fps"
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e15 or not math.isfinite(value) or value < (1e-6 if positive else 0):
        raise invalid(where, f"{key} is not a {'positive ' if positive else ''}number", got=value)
    return float(value)


def _text(row: dict[str, Any], key: str, where: Path | str, default: str | None = None) -> str:
    value = row.get(key)
    value = default if value is None and default else value
    # A lone surrogate is legal in JSON, and neither a file name nor a prompt can hold it.
    if not isinstance(value, str) or (not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise invalid(where, f"{key} is not a text", got=repr(value)[:200])
    return value
