"""Tests what is said of a dataset that can be read: features, instructions and cameras."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.artifacts import Feature
from harness.data.dataset import describe
from harness.data.mapping import IMAGES, NUMBERS, Wanted, check_features
from harness.errors import HarnessError
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import (
    change_column,
    recipe,
    refused,
)


def test_all_features_that_are_not_there_are_said_at_once_and_the_fix_maps_them(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"] = info["features"]["cam"]
    (root / "meta/info.json").write_text(json.dumps(info))
    for path in root.rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("observation.images.wrist", table.column("cam")), path)
    asked = ["--dataset", str(root), "--recipe", "smoke"]
    first = _data(*asked)
    assert first.returncode == 2
    for name in ("'image'", "'wrist_image'", "'state'", "'actions'"):
        assert name in first.stderr
    fix = next(line.partition("fix:")[2].strip() for line in first.stderr.splitlines() if "fix:" in line)
    assert "data.cameras.left_wrist_0_rgb=observation.images.wrist" in fix
    assert _data(*asked, *shlex.split(fix)).returncode == 0


def test_a_dataset_without_a_state_is_mapped_to_none(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["observation.state"]
    (root / "meta/info.json").write_text(json.dumps(info))
    for path in root.rglob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns("observation.state"), path)
    assert refused(root).fix == "--set data.state=null"
    assert describe(recipe(root, state="null")).frames == 16


# Cameras, state and actions of real robots' datasets, and what is proposed for the keys of `pi05_libero`.
ROBOTS = {
    "one camera": ("cam_high", "observation.state", "action", "cam_high", None),
    "ALOHA": (
        "cam_left_wrist cam_low cam_high cam_right_wrist",
        "state",
        "action",
        "cam_high",
        "cam_left_wrist",
    ),
    "AgiBot": (
        "head_depth hand_right hand_left head",
        "states.joint.position states.head.position",
        "actions.joint.position actions.effector.position",
        "head",
        "hand_left",
    ),
}


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_camera_is_proposed_for_its_own_place(robot: str) -> None:
    """A hand's camera was proposed for the base, the only one for a wrist, and the neck for the state."""
    cameras, states, actions, base, wrist = ROBOTS[robot]

    def named(cameras: str) -> list[str]:
        return [f"observation.images.{name}" for name in cameras.split()]

    numbers = [*states.split(), *actions.split()]
    features = {name: Feature(dtype="video", shape=[4, 4, 3]) for name in named(cameras)}
    features |= {name: Feature(dtype="float32", shape=[7]) for name in numbers}
    keys = ("data.cameras.base_0_rgb", "data.cameras.left_wrist_0_rgb", "data.state", "data.actions")
    kinds = (IMAGES, IMAGES, NUMBERS, NUMBERS)
    mapped = zip(keys, ("image", "wrist_image", "x_state", "x_actions"), kinds, strict=True)
    wanted = [Wanted(key, name, kind, may_be_null=key != keys[3]) for key, name, kind in mapped]
    with pytest.raises(HarnessError) as caught:
        check_features(Path("set"), features, wanted)
    proposed = dict(option.split("=") for option in shlex.split(caught.value.fix) if option != "--set")
    right = (*named(base), *(named(wrist or "") or ["null"]), states.split()[0], actions.split()[0])
    assert proposed == dict(zip(keys, right, strict=True))


def _data(*arguments: str) -> subprocess.CompletedProcess[str]:
    import sys

    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "data", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("text", ["", "  ", None])
def test_frames_without_an_instruction_are_counted(tmp_path: Path, version: str, text: str | None) -> None:
    """The second task is that of the second episode alone."""
    root = writer.write(tmp_path / "set", version=version)
    if version == "v3.0":
        pq.write_table(
            pa.table({"task_index": [0, 1], "task": [writer.TASKS[0], text]}), root / "meta/tasks.parquet"
        )
    else:
        (root / "meta/tasks.jsonl").write_text(
            "".join(
                json.dumps({"task_index": n, "task": t}) + "\n" for n, t in enumerate((writer.TASKS[0], text))
            )
        )
    assert describe(recipe(root)).findings == [
        "5 of 16 frames, in 1 of 3 episodes, have no instruction (their task is empty)"
    ]


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (
            lambda _: np.zeros((*writer.SIZE, 3), np.uint8),
            "cam: 16 of 16 sampled frames are of one colour, 16 of them black",
        ),
        (
            lambda n: np.full((*writer.SIZE, 3), n % 7 + 1, np.uint8),
            "cam: 16 of 16 sampled frames are of one colour",
        ),
        (lambda _: writer.frame(3), "cam: all 16 sampled frames are the same picture, to the last pixel"),
    ],
)
def test_a_camera_that_shows_nothing_is_a_finding(
    tmp_path: Path, picture: Callable[[int], np.ndarray], said: str
) -> None:
    root = writer.write(tmp_path / "set")
    for path in root.rglob("*.parquet"):
        change_column(
            path,
            "cam",
            lambda cells: [{"bytes": writer.png(picture(n)), "path": None} for n in range(len(cells))],
        )
    assert describe(recipe(root)).findings == [said]


def test_a_camera_that_is_mapped_twice_is_a_finding(tmp_path: Path) -> None:
    (finding,) = describe(
        recipe(writer.write(tmp_path / "set"), **{"cameras.left_wrist_0_rgb": "cam"})
    ).findings
    assert finding == "cam is mapped to 2 cameras: base_0_rgb, left_wrist_0_rgb"


@pytest.mark.parametrize("bits", [8, 16])
def test_depth_as_a_camera_is_refused_where_it_would_be_white_and_told_where_it_is_grey(
    tmp_path: Path, bits: int
) -> None:
    root = writer.write(tmp_path / "set")
    depth = (
        (np.arange(48 * 64).reshape(48, 64) % 251).astype(np.uint8)
        if bits == 8
        else (np.arange(48 * 64).reshape(48, 64) + 300).astype(np.uint16)
    )
    for path in root.rglob("*.parquet"):
        change_column(
            path,
            "cam",
            lambda cells: [
                {"bytes": writer.png(np.roll(depth, n, 1)), "path": None} for n in range(len(cells))
            ],
        )
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["cam"] |= {"shape": [48, 64, 1], "info": {"video.is_depth_map": True}}
    (root / "meta/info.json").write_text(json.dumps(info))
    if bits == 16:
        assert refused(root).code == "image-too-deep"
    else:
        assert describe(recipe(root)).findings == [
            "cam is mapped as a colour camera, and the metadata call it a depth map"
        ]


def test_a_grey_camera_is_a_camera(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    for path in root.rglob("*.parquet"):
        change_column(
            path,
            "cam",
            lambda cells: [
                {"bytes": writer.png(np.roll(writer.frame(n)[..., 0], n)), "path": None}
                for n in range(len(cells))
            ],
        )
    assert describe(recipe(root)).findings == []


def test_depth_in_a_video_is_refused(tmp_path: Path) -> None:
    import av

    root = writer.write(tmp_path / "set", images="video")
    path = root / "videos/chunk-000/cam/episode_000000.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=writer.FPS)
        stream.height, stream.width, stream.pix_fmt = *writer.SIZE, "gray12le"
        stream.options = {"x265-params": "log-level=none"}
        for n in range(7):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(
                        np.full(writer.SIZE, 400 + n, np.uint16), format="gray16le"
                    ).reformat(format="gray12le")
                )
            )
        container.mux(stream.encode(None))
    assert refused(root).code == "image-too-deep"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda _: [0.0, 0.0], "action: all 2 dimensions are 0 in all 16 frames; there is nothing to learn"),
        (
            lambda a: [a[0], 0.5],
            "1 of 2 dimensions of the actions never change in 16 frames: action[1] is 0.5",
        ),
    ],
)
def test_actions_that_never_change_are_a_finding(
    tmp_path: Path, value: Callable[[list], list], said: str
) -> None:
    root = writer.write(tmp_path / "set")
    for path in root.rglob("*.parquet"):
        change_column(path, "action", lambda cells: [value(cell) for cell in cells])
    assert describe(recipe(root)).findings == [said]
