"""Tests datasets of strangers as they lie on disks: partly fetched, edited, named by another directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.data.dataset import describe
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import change_info, recipe, refused

VERSIONS = ("v2.1", "v3.0")


def _declare(root: Path, name: str, **feature: object) -> None:
    path = root / "meta/info.json"
    features = json.loads(path.read_text())["features"]
    change_info(root, features=features | {name: features.get(name, {"shape": [48, 64, 3]}) | feature})


@pytest.mark.parametrize(("images", "folder"), [("parquet", "data"), ("video", "videos")])
def test_all_episodes_that_were_not_fetched_are_named_at_once(
    tmp_path: Path, images: str, folder: str
) -> None:
    root = writer.write(tmp_path / "set", images=images, lengths=(7, 5, 4, 6, 3))
    for path in sorted((root / folder).rglob("episode_*"))[2:]:
        path.unlink()
    refusal = refused(root)
    assert refusal.code == "dataset-file-missing"
    assert ", and 2 more of" in refusal.what
    assert refusal.fix.endswith("leave episodes 2-4 out: --set 'data.episodes.exclude=[2-4]'")
    assert describe(recipe(root, **{"episodes.exclude": "[2-4]"})).episodes == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_the_usual_place_of_videos_need_not_be_said(tmp_path: Path, version: str) -> None:
    root = writer.write(tmp_path / "set", version=version, images="video")
    change_info(root, video_path=None)
    assert describe(recipe(root)).findings == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_video_that_no_camera_is_mapped_to_need_not_be_there(tmp_path: Path, version: str) -> None:
    root = writer.write(tmp_path / "set", version=version)
    _declare(root, "depth", dtype="video")
    assert describe(recipe(root)).findings == []
    refusal = refused(root, **{"cameras.base_0_rgb": "depth"})
    assert "depth" in refusal.what + str(refusal.need)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("images", "says", "is_"), [("video", "image", "video"), ("parquet", "video", "image")]
)
def test_a_camera_of_the_other_kind_is_told_as_that(
    tmp_path: Path, version: str, images: str, says: str, is_: str
) -> None:
    """Its files were told as missing."""
    root = writer.write(tmp_path / "set", version=version, images=images)
    _declare(root, "cam", dtype=says)
    refusal = refused(root)
    assert (refusal.code, refusal.need) == ("dataset-feature-invalid", f'"dtype": "{is_}"')
    _declare(root, "cam", dtype=is_)
    assert describe(recipe(root)).findings == []
