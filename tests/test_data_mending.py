"""Tests that errors of a dataset are told apart, and that no fix loses a recording.

Whole files stay. Only a hub's copy is fetched again.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.dataset import describe
from harness.data.stats import compute
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import (
    BROKEN,
    BROKEN_V3,
    FIRST,
    V3_DATA,
    V3_EPISODES,
    change_info,
    recipe,
    refused,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 1834012\n"
CLIP = "videos/cam/chunk-000"


def _episodes(root: Path, change: Callable[[list[dict]], object]) -> None:
    rows = pq.read_table(root / V3_EPISODES).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), root / V3_EPISODES)


def _from_hub(root: Path, cache: Path) -> Path:
    """The dataset as the hub's client keeps it: links to blobs."""
    snapshot = cache / "datasets--lab--robot/snapshots/0123"
    blobs = cache / "datasets--lab--robot/blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in root.rglob("*") if path.is_file())):
        shutil.copyfile(path, blobs / str(number))
        link = snapshot / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    return snapshot


@pytest.mark.parametrize(("version", "broken"), [("v2.1", BROKEN), ("v3.0", BROKEN_V3)])
def test_no_fix_deletes_a_file_that_is_only_here(tmp_path: Path, version: str, broken: dict) -> None:
    for number, (_, damage) in enumerate(broken.values()):
        root = writer.write(tmp_path / str(number), version=version)
        damage(root)
        fix = refused(root).fix
        assert not any(word in fix.lower() for word in ("delete ", "rm ", "remove ", "download")), fix


@pytest.mark.parametrize("file", [FIRST, "meta/episodes.jsonl"])
def test_a_damaged_file_of_the_hub_is_fetched_again_with_its_blob(tmp_path: Path, file: str) -> None:
    """The link alone would be made again, to the same damaged blob."""
    root = _from_hub(writer.write(tmp_path / "set"), tmp_path / "cache")
    blob = (root / file).resolve()
    blob.write_bytes(blob.read_bytes()[:-30])
    fix = refused(root).fix
    if file == FIRST:
        assert str(root / file) in fix
        assert str(blob) in fix
        subprocess.run(fix.partition(";")[0], shell=True, check=True)
        assert not (root / file).is_symlink()
        assert not blob.exists()
    else:
        assert "rm " not in fix


def test_a_missing_file_is_fetched_from_the_hub_or_copied(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    hub = _from_hub(root, tmp_path / "cache")
    for place, word in ((root, "copy it"), (hub, "HF_HUB_OFFLINE")):
        (place / FIRST).unlink()
        refusal = refused(place)
        assert (refusal.code, word in refusal.fix) == ("dataset-file-missing", True)


@pytest.mark.parametrize(
    ("images", "file"),
    [
        ("parquet", FIRST),
        ("video", "videos/chunk-000/cam/episode_000000.mp4"),
        ("files", "images/cam/episode_000000/frame_000000.png"),
        ("parquet", "meta/info.json"),
        ("parquet", "meta/tasks.jsonl"),
    ],
)
def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path: Path, images: str, file: str) -> None:
    root = writer.write(tmp_path / "a set", images=images)
    (root / file).write_bytes(POINTER)
    refusal = refused(root)
    assert refusal.code == "git-lfs-pointer"
    assert file in refusal.what
    words = shlex.split(refusal.fix)
    assert (words[:2], words[3:], Path(words[2]).is_dir()) == (["git", "-C"], ["lfs", "pull"], True)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("v3.0", "v2.1"),
        ("v3.0", "v2.0"),
        ("v2.1", "v3.0"),
        ("v2.0", "v3.0"),
        ("v2.1", "v1.6"),
        ("v3.0", "v3.1"),
        ("v3.0", "main"),
        ("v3.0", None),
        ("v2.1", 2.1),
    ],
)
def test_a_wrong_version_is_recognized_from_the_files_and_its_fix_mends_it(
    tmp_path: Path, version: str, said: object
) -> None:
    root = writer.write(tmp_path / "a set", version=version)
    change_info(root, codebase_version=said)
    refusal = refused(root)
    assert refusal.code == "dataset-version-wrong"
    subprocess.run(refusal.fix, shell=True, check=True)
    assert describe(recipe(root)).frames == 16


@pytest.mark.parametrize("said", ["v1.0", None])
def test_a_wrong_version_is_mended_whatever_blanks_stand_around_the_colon(
    tmp_path: Path, said: str | None
) -> None:
    root = writer.write(tmp_path / "set", version="v2.1")
    change_info(root, codebase_version=said)
    info = root / "meta/info.json"
    info.write_text(info.read_text().replace('"codebase_version":', '"codebase_version" \t:  '))
    refusal = refused(root)
    assert refusal.code == "dataset-version-wrong"
    subprocess.run(refusal.fix, shell=True, check=True)
    assert describe(recipe(root)).frames == 16


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("indent", [None, 4])
def test_a_missing_version_is_put_in(tmp_path: Path, version: str, indent: int | None) -> None:
    root = writer.write(tmp_path / "a set", version=version)
    info = json.loads((root / "meta/info.json").read_text())
    del info["codebase_version"]
    (root / "meta/info.json").write_text(json.dumps(info, indent=indent))
    refusal = refused(root)
    assert refusal.code == "dataset-version-wrong"
    subprocess.run(refusal.fix, shell=True, check=True)
    assert json.loads((root / "meta/info.json").read_text()) == info | {"codebase_version": version}
    assert describe(recipe(root)).frames == 16


def test_an_episode_that_info_counts_and_no_list_has_is_refused(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    change_info(root, total_episodes=4)
    refusal = refused(root)
    assert (refusal.code, refusal.got, refusal.need) == ("dataset-rows-mismatch", "4", "3")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("totals", [{"total_frames": 99_999}, {"total_frames": 9, "total_episodes": 2}])
def test_wrong_totals_are_a_finding_where_all_that_is_listed_is_there(
    tmp_path: Path, version: str, totals: dict[str, int]
) -> None:
    right, wrong = (writer.write(tmp_path / name, version=version) for name in ("right", "wrong"))
    change_info(wrong, **totals)
    before, found = describe(recipe(right)), describe(recipe(wrong))
    said = [line for line in found.findings if line not in before.findings]
    assert [line.split()[0] for line in said] == sorted(totals)
    assert (found.episodes, found.frames) == (before.episodes, before.frames) == (3, 16)
    assert compute(recipe(wrong), found) == compute(recipe(right), before)


@pytest.mark.parametrize(("version", "file"), [("v2.1", "tasks.jsonl"), ("v3.0", "tasks.parquet")])
def test_a_task_that_is_not_listed_is_to_be_listed(tmp_path: Path, version: str, file: str) -> None:
    root = writer.write(tmp_path / "set", version=version)
    if version == "v3.0":
        path = root / "meta" / file
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    else:
        (root / "meta" / file).write_text("")
    refusal = refused(root)
    assert (refusal.code, refusal.need) == ("dataset-index-invalid", "one of the 0 tasks of meta/")
    assert refusal.fix == (
        f"meta/{file} lacks task 0: add its line; data/, videos/ and images/ are left as they are"
    )


def test_files_of_both_versions_are_read_as_info_says(tmp_path: Path) -> None:
    """What a converter leaves behind."""
    root = writer.write(tmp_path / "set", version="v3.0")
    (root / "meta/episodes.jsonl").write_text("{}")
    assert describe(recipe(root)).format_version == "v3.0"


def test_whole_floats_are_counts(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", version="v3.0")
    _episodes(
        root,
        lambda rows: [
            row.update({key: float(value) for key, value in row.items() if isinstance(value, int)})
            for row in rows
        ],
    )
    assert describe(recipe(root)).frames == 16


@pytest.mark.parametrize("value", [float("nan"), 0.5, -1.0, None])
def test_a_count_that_is_none_is_named_with_its_row(tmp_path: Path, value: float | None) -> None:
    root = writer.write(tmp_path / "set", version="v3.0")

    def change(rows: list[dict]) -> None:
        for row in rows:
            row["data/file_index"] = float(row["data/file_index"])
        rows[1]["data/file_index"] = value

    _episodes(root, change)
    refusal = refused(root)
    assert refusal.code == "dataset-metadata-invalid"
    assert "row 1: data/file_index" in refusal.what


def test_an_episode_that_is_listed_in_the_file_before_is_told_with_its_right_file(tmp_path: Path) -> None:
    """The last episode lies in a file of its own."""
    root = writer.write(tmp_path / "set", version="v3.0")
    _episodes(root, lambda rows: rows[2].update({"data/file_index": 0}))
    refusal = refused(root)
    assert refusal.code == "episode-place-wrong"
    assert "episode 2" in refusal.what
    assert (refusal.got, refusal.need) == (
        "data/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
    )


def test_rows_that_are_nowhere_are_no_matter_of_the_place(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", version="v3.0")
    pq.write_table(pq.read_table(root / V3_DATA).slice(0, 11), root / V3_DATA)
    assert refused(root).code == "dataset-rows-mismatch"


@pytest.mark.parametrize(
    ("columns", "want"),
    [
        ({"__index_level_0__": writer.TASKS, "task": writer.TASKS}, writer.TASKS),
        ({"task": writer.TASKS, "category": ["pick", "open"]}, writer.TASKS),
        ({"__index_level_0__": writer.TASKS, "category": ["pick", "open"]}, writer.TASKS),
        ({"any_name": writer.TASKS}, writer.TASKS),
        ({"any_name": pa.array(writer.TASKS, pa.string_view())}, writer.TASKS),
        ({"task": [None, "open"]}, ["", "open"]),
        ({"task": [None, "open"], "category": ["pick", "open"]}, ["", "open"]),
        ({"any_name": [None, "open"]}, ["", "open"]),
        ({"task": pa.nulls(2)}, ["", ""]),
        ({"a": writer.TASKS, "b": writer.TASKS}, "several texts"),
        ({"number": [1, 2]}, "no task text"),
    ],
)
def test_the_text_of_a_task_is_found_beside_others(
    tmp_path: Path, columns: dict, want: list[str] | str
) -> None:
    root = writer.write(tmp_path / "set", version="v3.0")
    pq.write_table(pa.table({"task_index": [0, 1]} | columns), root / "meta/tasks.parquet")
    if isinstance(want, list):
        assert describe(recipe(root)).tasks == want
    else:
        assert want in refused(root).what


def _two_clips(root: Path, start_s: Callable[[int], float]) -> Path:
    """Videos in two files: episode 0 in the first, episodes 1 and 2 in the second, from where `start_s`
    says.
    """
    writer.write(root, version="v3.0", images="video")
    writer.encode(root / CLIP / "file-000.mp4", range(7), "libx264")
    writer.encode(root / CLIP / "file-001.mp4", range(7, 16), "libx264")
    _episodes(
        root,
        lambda rows: [
            row.update({"videos/cam/file_index": int(n > 0), "videos/cam/from_timestamp": start_s(n)})
            for n, row in enumerate(rows)
        ],
    )
    return root


def test_a_merge_that_went_on_counting_is_told_with_the_right_time(tmp_path: Path) -> None:
    right = {0: 0.0, 1: 0.0, 2: 0.5}
    assert describe(recipe(_two_clips(tmp_path / "right", right.__getitem__))).findings == []
    root = _two_clips(tmp_path / "wrong", {0: 0.0, 1: 0.0, 2: 1.2}.__getitem__)
    refusal = refused(root)
    assert refusal.code == "video-offset-wrong"
    assert "episode 2" in refusal.what
    assert "1.200 s, in a file of 0.900 s" in str(refusal.got)
    assert refusal.need == "0.500 s"


def test_a_camera_of_another_rate_is_told_with_both(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", images="video", lengths=(20, 6))
    path = root / "videos/chunk-000/cam/episode_000000.mp4"
    _at_rate(path, range(0, 20, 2), 5)
    refusal = refused(root)
    assert refusal.code == "video-other-rate"
    assert "5 frames a second in the video (10 frames), 10 in the table (20 rows of episode 0)" in str(
        refusal.got
    )


def test_a_rate_that_is_nearly_the_tables_is_told_where_it_drifts_away(tmp_path: Path) -> None:
    """29.97 frames a second and a table of 30 are a quarter of a frame apart after 8 seconds."""
    root = writer.write(tmp_path / "set", images="video", lengths=(300,))
    _at_rate(root / "videos/chunk-000/cam/episode_000000.mp4", range(300), 10000 / 1001)
    refusal = refused(root)
    assert (refusal.code, "9.99 frames a second" in str(refusal.got)) == ("video-other-rate", True)


def test_a_video_that_ends_a_frame_early_says_so(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", images="video")
    writer.encode(root / "videos/chunk-000/cam/episode_000001.mp4", range(7, 11), "libx264")
    refusal = refused(root)
    assert refusal.code == "video-too-short"
    assert "the video ends 1 frame before the table" in str(refusal.got)


def _at_rate(path: Path, frames: range, rate: float) -> None:
    from fractions import Fraction

    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *writer.SIZE, "yuv420p"
        for i in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(writer.frame(i), format="rgb24")))
        container.mux(stream.encode(None))
