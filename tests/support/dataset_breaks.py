"""Datasets of LeRobot that are broken in one place each, and the recipe that reads them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.dataset import describe
from harness.data.lerobot import LeRobotDataset, open_dataset
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from tests.support import lerobot_writer as writer


def recipe(root: Path, **changes: str) -> Recipe:
    keys = {
        "dataset": str(root),
        "state": "observation.state",
        "actions": "action",
        "cameras.base_0_rgb": "cam",
        "cameras.left_wrist_0_rgb": "null",
    } | changes
    # A horizon longer than these short episodes would be a finding of its own.
    return load_recipe(
        "smoke", [*(f"data.{key}={value}" for key, value in keys.items()), "model.action_horizon=1"]
    )


def refused(root: Path, **changes: str) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root, **changes))
    return caught.value


def opened(root: Path) -> LeRobotDataset:
    return open_dataset(root, state="observation.state", actions="action")


def change_column(path: Path, column: str, change: Callable[[list], list]) -> None:
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    values = pa.array(change(table.column(column).to_pylist()), type=table.schema.field(column).type)
    pq.write_table(table.set_column(at, table.schema.field(column), values), path)


def change_info(root: Path, **changes: object) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def each_table(root: Path, column: str, make: Callable[[pa.Table], pa.Array]) -> None:
    """Puts another column in place of `column`, of another type where it has one, in every table."""
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        at = table.schema.get_field_index(column)
        pq.write_table(table.set_column(at, column, make(table)), path)


def set_feature(root: Path, name: str, **changes: object) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][name] |= changes
    path.write_text(json.dumps(info))


def put_at(at: int, value: object) -> Callable[[list], list]:
    return lambda cells: [value if n == at else cell for n, cell in enumerate(cells)]


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 30,000 × 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


FIRST = "data/chunk-000/episode_000000.parquet"
SECOND = "data/chunk-000/episode_000001.parquet"
VIDEO = "videos/chunk-000/cam/episode_000001.mp4"
BROKEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no info": ("not-a-dataset", lambda root: (root / "meta/info.json").unlink()),
    "newer format": ("dataset-format-unsupported", lambda root: change_info(root, codebase_version="v4.0")),
    "older format": ("dataset-version-wrong", lambda root: change_info(root, codebase_version="v1.6")),
    "no version": ("dataset-version-wrong", lambda root: change_info(root, codebase_version=None)),
    "info is not JSON": ("dataset-metadata-invalid", lambda root: (root / "meta/info.json").write_text("{")),
    "info is a list": ("dataset-metadata-invalid", lambda root: (root / "meta/info.json").write_text("[]")),
    "no features": ("dataset-metadata-invalid", lambda root: change_info(root, features={})),
    "fps 0": ("dataset-metadata-invalid", lambda root: change_info(root, fps=0)),
    "no tasks": ("dataset-file-missing", lambda root: (root / "meta/tasks.jsonl").unlink()),
    "no episodes file": ("dataset-file-missing", lambda root: (root / "meta/episodes.jsonl").unlink()),
    "zero episodes": ("dataset-empty", lambda root: (root / "meta/episodes.jsonl").write_text("")),
    "an episode of no frames": (
        "dataset-metadata-invalid",
        lambda root: (root / "meta/episodes.jsonl").write_text(
            '{"episode_index": 0, "length": 0, "tasks": []}'
        ),
    ),
    "an episode twice": (
        "dataset-metadata-invalid",
        lambda root: (root / "meta/episodes.jsonl").write_text(
            '{"episode_index": 0, "length": 7}\n{"episode_index": 0, "length": 7}'
        ),
    ),
    "totals differ": ("dataset-rows-mismatch", lambda root: change_info(root, total_episodes=4)),
    "path outside": (
        "dataset-path-unsafe",
        lambda root: change_info(root, data_path="../episode_{episode_index:06d}.parquet"),
    ),
    "absolute path": ("dataset-path-unsafe", lambda root: change_info(root, data_path="/etc/passwd")),
    "template with an attribute": (
        "dataset-metadata-invalid",
        lambda root: change_info(root, data_path="data/{episode_index.__class__}"),
    ),
    "template of a huge width": (
        "dataset-metadata-invalid",
        lambda root: change_info(root, data_path="data/{episode_index:0999999999d}"),
    ),
    "a link outside": (
        "dataset-path-unsafe",
        lambda root: ((root / FIRST).unlink(), (root / FIRST).symlink_to("/etc/passwd")),
    ),
    "missing parquet": ("dataset-file-missing", lambda root: (root / SECOND).unlink()),
    "truncated parquet": (
        "dataset-file-corrupt",
        lambda root: (root / SECOND).write_bytes((root / SECOND).read_bytes()[:-100]),
    ),
    "empty parquet": ("dataset-file-corrupt", lambda root: (root / SECOND).write_bytes(b"")),
    "wrong row count": (
        "dataset-rows-mismatch",
        lambda root: pq.write_table(pq.read_table(root / SECOND).slice(0, 4), root / SECOND),
    ),
    "files exchanged": (
        "dataset-rows-mismatch",
        lambda root: (root / SECOND).write_bytes((root / FIRST).read_bytes()),
    ),
    "a column is missing": (
        "dataset-feature-missing",
        lambda root: pq.write_table(pq.read_table(root / SECOND).drop_columns("action"), root / SECOND),
    ),
    "duplicate indices": (
        "dataset-index-invalid",
        lambda root: change_column(root / SECOND, "index", put_at(2, 8)),
    ),
    "frame_index wrong": (
        "dataset-index-invalid",
        lambda root: change_column(root / SECOND, "frame_index", put_at(2, 1)),
    ),
    "episode_index wrong": (
        "dataset-index-invalid",
        lambda root: change_column(root / SECOND, "episode_index", put_at(2, 0)),
    ),
    "unknown task": (
        "dataset-index-invalid",
        lambda root: change_column(root / SECOND, "task_index", put_at(2, 9)),
    ),
    "NaN timestamp": (
        "dataset-index-invalid",
        lambda root: change_column(root / SECOND, "timestamp", put_at(2, float("nan"))),
    ),
    "NaN action": (
        "dataset-not-finite",
        lambda root: change_column(root / SECOND, "action", put_at(3, [0.0, float("nan")])),
    ),
    "infinite state": (
        "dataset-not-finite",
        lambda root: change_column(root / SECOND, "observation.state", put_at(3, [0.0, float("inf"), 1.0])),
    ),
    "null action": (
        "dataset-feature-invalid",
        lambda root: change_column(root / SECOND, "action", put_at(3, None)),
    ),
    "corrupt PNG": (
        "image-corrupt",
        lambda root: change_column(
            root / FIRST, "cam", put_at(0, {"bytes": writer.png(writer.frame(0))[:90], "path": None})
        ),
    ),
    "not an image": (
        "image-corrupt",
        lambda root: change_column(root / FIRST, "cam", put_at(0, {"bytes": b"GIF89a", "path": None})),
    ),
    "decompression bomb": (
        "image-too-large",
        lambda root: change_column(root / FIRST, "cam", put_at(0, {"bytes": bomb(), "path": None})),
    ),
    "no image": ("image-missing", lambda root: change_column(root / FIRST, "cam", put_at(0, None))),
    "image path outside": (
        "dataset-path-unsafe",
        lambda root: change_column(
            root / FIRST, "cam", put_at(0, {"bytes": None, "path": "../../etc/passwd"})
        ),
    ),
}


V3_DATA, V3_EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
BROKEN_V3: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no episodes": ("dataset-file-missing", lambda root: (root / V3_EPISODES).unlink()),
    "truncated episodes": (
        "dataset-file-corrupt",
        lambda root: (root / V3_EPISODES).write_bytes((root / V3_EPISODES).read_bytes()[:-50]),
    ),
    "zero episodes": (
        "dataset-empty",
        lambda root: pq.write_table(pq.read_table(root / V3_EPISODES).slice(0, 0), root / V3_EPISODES),
    ),
    "missing data file": ("dataset-file-missing", lambda root: (root / V3_DATA).unlink()),
    "truncated data file": (
        "dataset-file-corrupt",
        lambda root: (root / V3_DATA).write_bytes((root / V3_DATA).read_bytes()[:-50]),
    ),
    "wrong row count": (
        "dataset-rows-mismatch",
        lambda root: pq.write_table(pq.read_table(root / V3_DATA).slice(0, 11), root / V3_DATA),
    ),
    "duplicate indices": (
        "dataset-index-invalid",
        lambda root: change_column(root / V3_DATA, "index", put_at(8, 7)),
    ),
    "NaN action": (
        "dataset-not-finite",
        lambda root: change_column(root / V3_DATA, "action", put_at(9, [0.0, float("nan")])),
    ),
    "corrupt PNG": (
        "image-corrupt",
        lambda root: change_column(
            root / V3_DATA, "cam", put_at(0, {"bytes": b"\x89PNG\r\n\x1a\n", "path": None})
        ),
    ),
    "decompression bomb": (
        "image-too-large",
        lambda root: change_column(root / V3_DATA, "cam", put_at(0, {"bytes": bomb(), "path": None})),
    ),
}
