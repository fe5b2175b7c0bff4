"""Tests that every kind of broken dataset is refused by its name, with the place of the fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.dataset import describe
from harness.errors import HarnessError
from harness.recipe.schema import Recipe
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import (
    BROKEN,
    BROKEN_V3,
    SECOND,
    V3_DATA,
    bomb,
    change_column,
    opened,
    put_at,
    recipe,
)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_dataset_is_refused(tmp_path: Path, name: str) -> None:
    code, damage = BROKEN[name]
    root = writer.write(tmp_path / "set")
    describe(recipe(root))
    damage(root)
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize("name", BROKEN_V3)
def test_a_broken_dataset_of_version_3_is_refused(tmp_path: Path, name: str) -> None:
    code, damage = BROKEN_V3[name]
    root = writer.write(tmp_path / "set", version="v3.0")
    describe(recipe(root))
    damage(root)
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize(
    ("version", "place"), [("v2.1", "episode_000001.parquet row 2"), ("v3.0", "file-000.parquet row 9")]
)
@pytest.mark.parametrize(
    ("cell", "code"), [(writer.png(writer.frame(0))[:90], "image-corrupt"), (bomb(), "image-too-large")]
)
def test_an_image_that_cannot_be_decoded_is_named_with_file_and_row(
    tmp_path: Path, version: str, place: str, cell: bytes, code: str
) -> None:
    """Frame 9 is row 2 of the second episode, wherever that is stored."""
    root = writer.write(tmp_path, version=version)
    change_column(
        root / (SECOND if version == "v2.1" else V3_DATA),
        "cam",
        put_at(int(place[-1]), {"bytes": cell, "path": None}),
    )
    assert opened(root).image(8, "cam").shape == (48, 64, 3)
    with pytest.raises(HarnessError) as caught:
        opened(root).image(9, "cam")
    assert caught.value.code == code
    assert f"{place}, cam" in caught.value.what


@pytest.mark.parametrize(("column", "row"), [("action", 3), ("index", 2)])
def test_the_refusal_names_file_and_row(tmp_path: Path, column: str, row: int) -> None:
    root = writer.write(tmp_path)
    change_column(root / SECOND, column, put_at(row, [float("nan"), 0.0] if column == "action" else 0))
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert f"episode_000001.parquet row {row}" in caught.value.what


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_video_shorter_than_its_table_is_refused(tmp_path: Path, version: str) -> None:
    root = writer.write(tmp_path, version=version, images="video")
    path = max(root.rglob("*.mp4"))
    writer.encode(path, range(2), "libx264")
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert caught.value.code == "video-too-short"
    with pytest.raises(HarnessError) as caught:
        opened(root).image(15, "cam")
    assert caught.value.code == "video-too-short"


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 3], lambda b: b[:0], lambda b: bytes(len(b))])
def test_a_damaged_video_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    root = writer.write(tmp_path, images="video")
    path = min(root.rglob("*.mp4"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert caught.value.code == "video-corrupt"


def test_v3_episodes_that_do_not_follow_each_other_are_refused(tmp_path: Path) -> None:
    root = writer.write(tmp_path, version="v3.0")
    change_column(root / "meta/episodes/chunk-000/file-000.parquet", "dataset_from_index", put_at(1, 6))
    with pytest.raises(HarnessError) as caught:
        opened(root)
    assert caught.value.code == "dataset-rows-mismatch"


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("cameras.base_0_rgb", "camera", "cam"), ("state", "observation.stat", "observation.state")],
)
def test_a_feature_that_is_not_there_gets_the_nearest_name(
    tmp_path: Path, key: str, value: str, nearest: str
) -> None:
    root = writer.write(tmp_path)
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root, **{key: value}))
    assert caught.value.code == "dataset-feature-missing"
    assert caught.value.fix == f"--set data.{key}={nearest}"


def test_a_camera_cannot_be_the_state(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        describe(recipe(writer.write(tmp_path), state="cam"))
    assert caught.value.code == "dataset-feature-invalid"


def test_more_actions_than_the_model_has_room_for_are_refused_and_more_state_is_told(tmp_path: Path) -> None:
    """Two actions and a state of three: the state does not enter the model, so that it refuses no robot."""
    root = writer.write(tmp_path)

    def narrow(width: int) -> Recipe:
        return recipe(root).model_copy(
            update={"model": recipe(root).model.model_copy(update={"action_dim": width})}
        )

    with pytest.raises(HarnessError) as caught:
        describe(narrow(1))
    assert caught.value.code == "action-dim-too-small"
    assert describe(narrow(2)).findings == [
        "observation.state has 3 dimensions, more than model.action_dim (2); it does not enter this model, so"
        " nothing of it is lost"
    ]
    assert describe(narrow(3)).findings == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("action", None),
        ("task_index", lambda column: pa.nulls(len(column), pa.int64())),
        ("timestamp", lambda column: column.cast(pa.float64()).cast(pa.string())),
        ("episode_index", None),
    ],
)
def test_a_column_of_lerobots_own_is_not_to_be_mapped(
    tmp_path: Path, name: str, change: Callable[[Any], Any] | None
) -> None:
    """Another state or other actions would bring nothing back. A single row is its episode's matter."""
    root = writer.write(tmp_path)
    table = pq.read_table(root / SECOND)
    if name == "action":
        change_column(root / SECOND, name, put_at(3, None))
    elif change is None:
        pq.write_table(table.drop_columns(name), root / SECOND)
    else:
        at = table.schema.get_field_index(name)
        pq.write_table(table.set_column(at, name, change(table.column(name))), root / SECOND)
    with pytest.raises(HarnessError) as caught:
        describe(recipe(root))
    assert "data.actions" not in caught.value.fix
    assert "in a copy of the dataset" in caught.value.fix
