"""Tests damaged files of every kind: the reader gives data or a HarnessError, and nothing else."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.data import images
from harness.data.completeness import check_cameras
from harness.data.lerobot import open_dataset
from harness.data.tokenizer import load_tokenizer
from harness.errors import HarnessError
from tests.support import lerobot_writer as writer

FORMS = {"v2.1": "parquet", "v3.0": "parquet", "video": "video"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
BUDGET = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def originals() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory() as place:
        yield {
            name: writer.write(
                Path(place) / name, version="v2.1" if name == "video" else name, images=kind, lengths=(3, 2)
            )
            for name, kind in FORMS.items()
        }


def _read_all(root: Path) -> None:
    """Everything that training would read."""
    with contextlib.suppress(HarnessError):
        data = open_dataset(root, state="observation.state", actions="action")
        # A damaged count may be huge and still agree with itself.
        for i in range(min(data.frames, 5)):
            data.state(i), data.action_chunk(i, 4), data.task(i)
            with contextlib.suppress(HarnessError):
                data.image(i, "cam")
        if data.frames <= 5:
            check_cameras(data, ["cam"])


def _copy(root: Path, place: str) -> Path:
    return Path(shutil.copytree(root, Path(place) / "set"))


@pytest.mark.parametrize("form", FORMS)
@BUDGET
@given(data=st.data())
def test_changed_bytes_of_any_file(originals: dict[str, Path], form: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = _copy(originals[form], place)
        path = data.draw(
            st.sampled_from(sorted(p for p in root.rglob("*") if p.is_file() and "001" not in p.name))
        )
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 8))):
            # The footer holds parquet's and mp4's structure: half of the hits go there.
            at = data.draw(
                st.integers(0, len(content) - 1) | st.integers(max(0, len(content) - 600), len(content) - 1)
            )
            content[at] = data.draw(st.integers(0, 255))
        path.write_bytes(
            bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, len(content) - 1]))])
        )
        _read_all(root)


@BUDGET
@given(
    key=st.sampled_from(
        ["codebase_version", "fps", "features", "data_path", "video_path", "chunks_size", "total_frames"]
    ),
    value=JSON,
)
def test_any_value_in_info(originals: dict[str, Path], key: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = _copy(originals["v2.1"], place)
        path = root / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        _read_all(root)


@BUDGET
@given(
    name=st.sampled_from(["episodes", "tasks"]),
    rows=st.lists(st.dictionaries(st.sampled_from(["episode_index", "length", "task_index", "task"]), JSON)),
)
def test_any_rows_in_the_lists(originals: dict[str, Path], name: str, rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = _copy(originals["v2.1"], place)
        (root / f"meta/{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        _read_all(root)


@BUDGET
@given(
    template=st.lists(
        st.sampled_from([*"abx{}./:0!\\\0", "{episode_index:06d}", "../", "{video_key}", "videos/"]),
        max_size=12,
    ).map("".join)
)
def test_any_path_template(originals: dict[str, Path], template: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = _copy(originals["video"], place)
        path = root / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"video_path": template}))
        _read_all(root)


@BUDGET
@given(
    content=st.binary(max_size=200),
    header=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"BM", b"RIFF\x00\x01\x00\x00WEBPVP8 "]
    ),
)
def test_any_bytes_as_an_image(content: bytes, header: bytes) -> None:
    with contextlib.suppress(HarnessError):
        images.decode(header + content, "fuzz")
    with contextlib.suppress(HarnessError):
        images.check_image(header + content, "fuzz")


@BUDGET
@given(text=st.text())
def test_any_text_as_a_prompt(text: str) -> None:
    assert load_tokenizer("sample").encode(text)[0] == 2
