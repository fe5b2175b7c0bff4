"""Tests the page on a dataset: its contents, and that it is self-contained."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data.lerobot import open_dataset
from harness.data.space import Space
from harness.errors import HarnessError
from harness.flow.chain import Chain
from harness.flow.pages import write_dataset_pages
from harness.recipe.load import load_recipe
from harness.report.dataset_page import HEIGHT, charts, histogram, spread, strip
from harness.run.directory import RunDir
from tests.support import lerobot_writer as writer
from tests.support import robots

MAPPED = [
    "data.state=observation.state",
    "data.actions=action",
    "data.cameras.base_0_rgb=cam",
    "data.cameras.left_wrist_0_rgb=null",
]
SETS = {"one": (60, 40), "other": (50, 45)}
VOID = {"meta", "img", "rect", "path", "br", "i"}


class _Checker(HTMLParser):
    """Collects addresses, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def _page(root: Path, run: Path, *overrides: str) -> str:
    chain = Chain(RunDir(run), load_recipe("smoke", [f"data.dataset={root}", *MAPPED, *overrides]))
    return write_dataset_pages(chain, chain.dataset())[0].read_text()


@pytest.mark.parametrize("images", ["parquet", "video"])
def test_the_page_holds_everything_itself(tmp_path: Path, images: str) -> None:
    html = _page(writer.write(tmp_path / "set", images=images), tmp_path / "run")
    checker = _Checker()
    checker.feed(html)
    assert checker.open == []
    assert len(checker.addresses) == 3
    assert all(address.startswith("data:image/jpeg;base64,") for address in checker.addresses)
    assert not re.search(r"url\(|<script|https?://", html)
    for text in (*writer.TASKS, "state[2]", "actions[1]", "Episode 2"):
        assert text in html


def test_a_large_dataset_still_gives_a_small_page(tmp_path: Path) -> None:
    html = _page(writer.write(tmp_path / "set", lengths=(9,) * 40), tmp_path / "run")
    assert len(html) < 2_000_000
    shown = [int(n) for n in re.findall(r"Episode (\d+):", html)]
    assert (len(shown), shown[0], shown[-1]) == (6, 0, 39)


def test_noise_is_shrunk_to_the_budget() -> None:
    """Noise is what JPEG cannot compress."""
    images = [np.random.default_rng(n).integers(0, 255, (256, 256, 3), np.uint8) for n in range(8)]
    data = base64.b64decode(strip(images, 30_000).partition(",")[2])
    assert len(data) <= 30_000
    assert Image.open(io.BytesIO(data)).width > 100


def test_instructions_stay_text(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    for path in root.glob("meta/*.jsonl"):
        path.write_text(path.read_text().replace(writer.TASKS[0], "<script>alert(1)</script>"))
    assert "<script" not in _page(root, tmp_path / "run")


def test_a_picture_that_cannot_be_shown_is_named_and_no_page_is_written(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", images="files")
    (root / "images/cam/episode_000002/frame_000003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(HarnessError) as caught:
        _page(root, tmp_path / "run")
    assert caught.value.code == "image-corrupt"
    assert not (tmp_path / "run/dataset.html").exists()


def test_the_band_is_where_one_and_minus_one_are_drawn() -> None:
    chain = Chain(None, load_recipe("smoke"))
    dataset = chain.dataset()
    frames = open_dataset(dataset.path)
    values = np.linspace(-2, 2, frames.frames * 8, dtype=np.float32).reshape(-1, 8)
    found = charts("state", values, list(frames.episodes), chain.stats(dataset), lambda _, x: x)
    for chart in found:
        assert chart.top + chart.bottom == pytest.approx(HEIGHT)
    assert found[0].outside_percent == pytest.approx(100 * (np.abs(values[:, 0]) > 1).mean())
    # The first value drawn is -2, which is as far below the band's lower edge as that is below the middle.
    first = float(re.match(r"M0\.0 ([\d.]+)", found[0].lines[0].path)[1])
    assert first - HEIGHT / 2 == pytest.approx(2 * (found[0].bottom - HEIGHT / 2), abs=0.2)


def test_spread_and_histogram() -> None:
    assert spread(range(100), 3) == [0, 50, 99]
    assert spread(range(2), 6) == [0, 1]
    bins = histogram([5, 5, 6, 40], "frames")
    assert sum(b.episodes for b in bins) == 4
    assert (bins[0].episodes, bins[0].percent, bins[-1].episodes) == (3, 100, 1)
    assert [b.label for b in histogram([7, 7], "tokens")] == ["7 tokens"]


def test_a_dataset_without_a_state_has_a_page_of_its_actions(tmp_path: Path) -> None:
    changes = ["data.state=null", *MAPPED[1:]]
    chain = Chain(
        RunDir(tmp_path / "run"),
        load_recipe("smoke", [f"data.dataset={writer.write(tmp_path / 'set')}", *changes]),
    )
    page = write_dataset_pages(chain, chain.dataset())[0].read_text()
    assert "Actions, normalized" in page
    assert "State, normalized" not in page


def test_actions_are_shown_as_the_model_sees_them(tmp_path: Path) -> None:
    """Chunks that begin anew, with the names of the dimensions."""
    made = robots.so100()
    root = robots.write(tmp_path / "set", made)
    recipe = load_recipe("my_robot", [f"data.dataset={root}", "data.tokenizer=sample"])
    chain = Chain(RunDir(tmp_path / "run"), recipe)
    page = write_dataset_pages(chain, chain.dataset())[0].read_text()
    assert "actions[0] shoulder_pan.pos" in page
    assert "state[5] gripper.pos" in page
    assert "Dimensions 0-4 are differences to the state of their chunk" in page
    data = open_dataset(root, state="observation.state", actions="action")
    seen = Space.of(recipe.data).tiled(data.columns, 30).actions
    for i in (0, 29, 30, 239, 240, 929):
        number = sum(i >= end for end in np.cumsum(made.lengths))
        first = sum(made.lengths[:number])
        start = first + (i - first) // 30 * 30
        want = data.action_chunk(start, 30)[0][i - start] - np.append(data.state(start)[:5], 0)
        np.testing.assert_allclose(seen[i], want, rtol=0, atol=1e-6)


def test_without_relative_actions_the_page_says_as_recorded(tmp_path: Path) -> None:
    page = _page(writer.write(tmp_path / "set"), tmp_path / "run")
    assert page.count("The numbers are as recorded") == 2


def test_a_mixture_has_a_page_for_each_dataset(tmp_path: Path) -> None:
    """Each with its own relative dimensions, normalized with the mixture's statistics."""
    sets = [robots.write(tmp_path / name, robots.so100(lengths)) for name, lengths in SETS.items()]
    entries = ", ".join(
        f"{{dataset: {root}, relative: {chosen}}}" for root, chosen in zip(sets, ("0-4", "null"), strict=True)
    )
    recipe = load_recipe(
        "my_robot", ["data.dataset=null", f"data.datasets=[{entries}]", "data.tokenizer=sample"]
    )
    chain = Chain(RunDir(tmp_path / "run"), recipe)
    first, second = write_dataset_pages(chain, chain.dataset())
    assert (first.name, second.name) == ("dataset-0.html", "dataset-1.html")
    assert "are differences to the state of their chunk" in first.read_text()
    assert "are differences to the state of their chunk" not in second.read_text()
