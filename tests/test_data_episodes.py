"""Tests that a recipe's data.episodes decide which episodes are read, and that nothing of the others is."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.artifacts import Dataset
from harness.data.dataset import describe
from harness.data.lerobot import LeRobotDataset, open_data
from harness.data.loader import Loader
from harness.data.stats import compute
from harness.data.tally import chunk_weights
from harness.errors import HarnessError
from harness.recipe.load import load_recipe, recipe_from, to_yaml
from harness.recipe.schema import Recipe
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import (
    V3_DATA,
    V3_EPISODES,
    change_column,
    change_info,
    opened,
    put_at,
    recipe,
)

LENGTHS = (7, 5, 4, 6)
OUT = {"episodes.exclude": "[1]"}
NAN = [float("nan")] * writer.ACTIONS


def reading(root: Path, said: Recipe) -> LeRobotDataset:
    return open_data(said.data, root)


def refusal(act: Callable[[], object]) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        act()
    return caught.value


@pytest.mark.parametrize(
    ("spelled", "kept"),
    [
        ("7", [7]),
        ("3-7", ["3-7"]),
        ("[7, 3, 3]", [3, 7]),
        ("[3-5, 4-6, 9]", ["3-6", 9]),
        ("3-5,6,9", ["3-6", 9]),
        ("[ 0 , '1 - 2']", ["0-2"]),
    ],
)
def test_every_spelling_of_the_same_episodes_is_one_recipe(spelled: str, kept: list) -> None:
    said = load_recipe("smoke", [f"data.episodes.exclude={spelled}"])
    assert said.data.episodes is not None
    assert said.data.episodes.exclude == kept
    assert recipe_from(said.model_dump(mode="json"), where="again") == said


def test_leaving_out_nothing_is_the_recipe_of_before() -> None:
    before = load_recipe("smoke")
    same = load_recipe("smoke", ["data.episodes={include: null, exclude: []}"])
    assert same.sha256() == before.sha256()
    assert to_yaml(same) == to_yaml(before)
    assert "episodes" not in to_yaml(before)
    assert load_recipe("smoke", ["data.episodes.exclude=[1]"]).sha256() != before.sha256()


# The hashes of the shipped recipes before these keys came.
@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("pi05_libero", "5ee329d453e14dc83387393212845b27b7fe99fe31daf4c06db93bbfbdd4720e"),
        ("pi05_libero_lora", "eb32786d99619458aef2bdd5f25b8869d00b73a1e4e636e3ffeaf79e628c7e88"),
        ("smoke", "84977628ba3b5986986bd86005bd2f2824b57b13790cfad0b47917251ed48ae5"),
    ],
)
def test_keys_that_came_later_leave_the_hash_of_a_shipped_recipe(name: str, sha256: str) -> None:
    assert load_recipe(name).sha256() == sha256


@pytest.mark.parametrize("spelled", ["7-3", "-3", "true", "1.5", "[[1]]", "2000000", "[seven]"])
def test_what_is_no_episode_is_refused_with_its_key(spelled: str) -> None:
    refused = refusal(lambda: load_recipe("smoke", [f"data.episodes.exclude={spelled}"]))
    assert refused.code == "recipe-invalid"
    assert "data.episodes.exclude" in refused.what


@pytest.mark.parametrize(
    "text", ["3\n5-6\n", "# bad grasps\n3, 5 - 6  # dropped\n", '[3, "5-6"]', "3 5-6", "\n\n3\r\n5-6"]
)
def test_a_file_of_numbers_is_read_into_the_recipe(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad episodes.txt"
    file.write_text(text)
    said = load_recipe("smoke", [f"data.episodes.exclude={file}"])
    assert said == load_recipe("smoke", ["data.episodes.exclude=[3,5-6]"])
    listed = f"episodes: {{exclude: '{file}'}}\n  augment: "
    (tmp_path / "recipe.yaml").write_text(to_yaml(load_recipe("smoke")).replace("augment: ", listed))
    assert load_recipe(str(tmp_path / "recipe.yaml")).data == said.data


@pytest.mark.parametrize("text", [None, "", "three", "[3, 4", "1.5"])
def test_a_file_without_numbers_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "bad.txt"
    if text is not None:
        file.write_text(text)
    refused = refusal(lambda: load_recipe("smoke", [f"data.episodes.exclude={file}"]))
    assert refused.code == "recipe-invalid"
    assert str(file) in refused.what


def test_a_received_recipe_names_no_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("3")
    tree = load_recipe("smoke").model_dump(mode="json")
    tree["data"]["episodes"] = {"exclude": str(tmp_path / "secret.txt")}
    assert "data.episodes.exclude" in refusal(lambda: recipe_from(tree, where="a manifest")).what


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_frames_statistics_and_batches_are_those_of_the_other_episodes(tmp_path: Path, version: str) -> None:
    root = writer.write(tmp_path / "set", version=version, lengths=LENGTHS)
    whole, said = opened(root), recipe(root, **OUT)
    data, found = reading(root, said), describe(said)
    kept = np.r_[0:7, 12:22]
    assert [episode.index for episode in data.episodes] == [0, 2, 3]
    assert (found.episodes, found.frames) == (3, 17)
    assert found.left_out is not None
    assert (found.left_out.episodes, found.left_out.frames) == ([1], 5)
    np.testing.assert_array_equal(data.columns.actions, whole.columns.actions[kept])
    for i, there in enumerate(kept):
        np.testing.assert_array_equal(data.image(i, "cam"), whole.image(int(there), "cam"))
        assert data.task(i) == whole.task(int(there))
        np.testing.assert_array_equal(data.action_chunk(i, 4)[0], whole.action_chunk(int(there), 4)[0])
    stats = compute(said, found)
    assert stats.frames == 17
    weights = chunk_weights([7, 4, 6], said.model.action_horizon)
    mean = weights @ whole.columns.actions[kept].astype(np.float64) / weights.sum()
    np.testing.assert_allclose(stats.norm_stats["actions"].mean, mean, atol=1e-12)
    loader = Loader(said, found, stats, batch_size=17, seed=3)
    batch = loader.batch(0)
    assert sorted(batch["index"]) == list(range(17))


def _without(root: Path, episode: int, *, numbered: bool = True) -> None:
    """Takes an episode's line and files out of a dataset of v2.1, as people do by hand."""
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    del lines[episode]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    (root / f"data/chunk-000/episode_{episode:06d}.parquet").unlink()
    change_info(root, total_episodes=len(LENGTHS) - 1, total_frames=sum(LENGTHS) - LENGTHS[episode])
    if numbered:
        return
    for later in range(episode + 1, len(LENGTHS)):
        path = root / f"data/chunk-000/episode_{later:06d}.parquet"
        change_column(path, "index", lambda cells: [cell - LENGTHS[episode] for cell in cells])


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("episode", [0, 1, 3])
def test_a_hole_is_read_where_files_and_metadata_agree(tmp_path: Path, episode: int, numbered: bool) -> None:
    root = writer.write(tmp_path / "set", lengths=LENGTHS)
    whole = opened(writer.write(tmp_path / "whole", lengths=LENGTHS))
    _without(root, episode, numbered=numbered)
    found = describe(recipe(root))
    assert (found.episodes, found.frames, found.left_out) == (3, 22 - LENGTHS[episode], None)
    first = sum(LENGTHS[:episode])
    kept = np.r_[0:first, first + LENGTHS[episode] : 22]
    np.testing.assert_array_equal(opened(root).columns.actions, whole.columns.actions[kept])


@pytest.mark.parametrize("compact", [True, False])
def test_a_hole_is_read_in_v3(tmp_path: Path, compact: bool) -> None:
    """The last episode has a file of its own; the one before it is taken out of the first file."""
    root = writer.write(tmp_path / "set", version="v3.0", lengths=LENGTHS)
    rows = pq.read_table(root / V3_EPISODES).to_pylist()
    gone = rows.pop(2)
    if compact:
        rows[2]["dataset_from_index"] -= gone["length"]
        change_column(
            root / "data/chunk-000/file-001.parquet", "index", lambda cells: [cell - 4 for cell in cells]
        )
    pq.write_table(pa.Table.from_pylist(rows), root / V3_EPISODES)
    table = pq.read_table(root / V3_DATA)
    pq.write_table(table.slice(0, 12), root / V3_DATA)
    change_info(root, total_episodes=3, total_frames=18)
    found = describe(recipe(root))
    assert (found.episodes, found.frames) == (3, 18)


def test_a_hole_whose_table_is_still_there_is_named(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", lengths=LENGTHS)
    table = (root / "data/chunk-000/episode_000001.parquet").read_bytes()
    _without(root, 1)
    (root / "data/chunk-000/episode_000001.parquet").write_bytes(table)
    refused = refusal(lambda: describe(recipe(root)))
    assert refused.code == "dataset-metadata-invalid"
    assert "episode 1 is not listed" in refused.what


@pytest.mark.parametrize("which", ["first", "index"])
def test_frames_that_do_not_follow_each_other_are_refused_after_a_hole(tmp_path: Path, which: str) -> None:
    root = writer.write(tmp_path / "set", lengths=LENGTHS)
    _without(root, 1)
    path = root / "data/chunk-000/episode_000002.parquet"
    change_column(path, "index", put_at(2 if which == "index" else 0, 99))
    assert refusal(lambda: describe(recipe(root))).code == "dataset-index-invalid"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _corrupt_image(path: Path, row: int) -> None:
    change_column(path, "cam", put_at(row, {"bytes": b"no image", "path": "x.png"}))


BREAKS: dict[str, tuple[dict, Callable[[Path], object]]] = {
    "a table that is gone": ({}, lambda root: (root / "data/chunk-000/episode_000001.parquet").unlink()),
    "a table that is cut": ({}, lambda root: _cut(root / "data/chunk-000/episode_000001.parquet")),
    "an image that is none": (
        {},
        lambda root: _corrupt_image(root / "data/chunk-000/episode_000001.parquet", 2),
    ),
    "an image of v3": ({"version": "v3.0"}, lambda root: _corrupt_image(root / V3_DATA, 9)),
    "a number that is none": (
        {},
        lambda root: change_column(
            root / "data/chunk-000/episode_000001.parquet",
            "action",
            put_at(3, NAN),
        ),
    ),
    "a number of v3": (
        {"version": "v3.0"},
        lambda root: change_column(root / V3_DATA, "action", put_at(9, NAN)),
    ),
    "an image file that is gone": (
        {"images": "files"},
        lambda root: (root / "images/cam/episode_000001/frame_000002.png").unlink(),
    ),
    "a video that is gone": (
        {"images": "video"},
        lambda root: (root / "videos/chunk-000/cam/episode_000001.mp4").unlink(),
    ),
    "a video that is cut": (
        {"images": "video"},
        lambda root: _cut(root / "videos/chunk-000/cam/episode_000001.mp4"),
    ),
    "a video of another episode": (
        {"images": "video"},
        lambda root: shutil.copy(
            root / "videos/chunk-000/cam/episode_000002.mp4", root / "videos/chunk-000/cam/episode_000001.mp4"
        ),
    ),
    "no frames": (
        {},
        lambda root: (
            (root / "meta/episodes.jsonl").write_text(
                (root / "meta/episodes.jsonl").read_text().replace('"length": 5', '"length": 0')
            )
            and change_info(root, total_frames=sum(LENGTHS) - 5)
        ),
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_fix_of_a_broken_episode_lets_the_rest_be_read(tmp_path: Path, name: str) -> None:
    form, damage = BREAKS[name]
    root = writer.write(tmp_path / "set", lengths=LENGTHS, **form)
    damage(root)
    refused = refusal(lambda: describe(recipe(root)))
    option = shlex.split(refused.fix.partition("--set ")[2])[0].rstrip(";")
    tree = load_recipe(str(_written(tmp_path, recipe(root))), [option])
    assert tree.data.episodes is not None
    assert tree.data.episodes.exclude == [1]
    found = describe(tree)
    assert (found.episodes, found.frames) == (3, 17)


def _written(folder: Path, said: Recipe) -> Path:
    (folder / "recipe.yaml").write_text(to_yaml(said))
    return folder / "recipe.yaml"


def test_the_fix_keeps_what_is_left_out_already(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", lengths=LENGTHS)
    BREAKS["a table that is cut"][1](root)
    fix = refusal(lambda: describe(recipe(root, **{"episodes.exclude": "[3]"}))).fix
    assert "--set 'data.episodes.exclude=[1,3]'" in fix


def test_the_last_episode_cannot_be_left_out(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", lengths=LENGTHS)
    BREAKS["a table that is cut"][1](root)
    assert "episodes" not in refusal(lambda: describe(recipe(root, **{"episodes.include": "1"}))).fix


@pytest.mark.parametrize(
    ("said", "code", "need", "fix"),
    [
        ({"episodes.exclude": "[2-5]"}, "episodes-not-there", "0-3", "data.episodes.exclude=[2-3]"),
        ({"episodes.exclude": "[9]"}, "episodes-not-there", "0-3", "data.episodes.exclude=[]"),
        ({"episodes.include": "[1,7]"}, "episodes-not-there", "0-3", "data.episodes.include=[1]"),
        ({"episodes.include": "[7]"}, "episodes-not-there", "0-3", "data.episodes.include=null"),
        ({"episodes.exclude": "0-3"}, "episodes-none-left", "one episode", "data.episodes.exclude=[]"),
        (
            {"episodes.include": "1", "episodes.exclude": "1"},
            "episodes-none-left",
            "one episode",
            "data.episodes.exclude=[]",
        ),
    ],
)
def test_episodes_that_cannot_be_are_named_and_the_fix_runs(
    tmp_path: Path, said: dict, code: str, need: str, fix: str
) -> None:
    root = writer.write(tmp_path / "set", lengths=LENGTHS)
    refused = refusal(lambda: describe(recipe(root, **said)))
    assert refused.code == code
    assert need in str(refused.need)
    assert shlex.split(refused.fix) == ["--set", fix]
    mended = load_recipe(str(_written(tmp_path, recipe(root, **said))), [fix])
    assert describe(mended).episodes >= 1


def test_a_reader_sent_to_another_process_reads_the_same_episodes(tmp_path: Path) -> None:
    import pickle

    root = writer.write(tmp_path / "set", lengths=LENGTHS)
    data = pickle.loads(pickle.dumps(reading(root, recipe(root, **OUT))))
    assert [episode.index for episode in data.episodes] == [0, 2, 3]


def test_the_artifact_of_before_is_read(tmp_path: Path) -> None:
    found = json.loads(describe(recipe(writer.write(tmp_path / "set"))).model_dump_json())
    del found["left_out"]
    assert Dataset.model_validate(found).left_out is None
