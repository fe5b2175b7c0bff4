"""Tests the description of a dataset, above all its content hash."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from harness.data.dataset import content_hash, describe
from harness.data.sample import sample_dataset_path, sample_tokenizer_path
from harness.errors import HarnessError
from harness.flow.chain import Chain
from harness.flow.pages import write_dataset_pages
from harness.recipe.load import load_recipe
from harness.run.directory import RunDir
from harness.show.dataset import dataset_table
from tests.support import lerobot_writer as writer
from tests.support.litter import lay


def test_describes_the_sample() -> None:
    found = describe(load_recipe("smoke"))
    assert (found.source, found.revision, found.format_version, found.fps) == ("sample", None, "v2.1", 20)
    assert (found.episodes, found.frames, len(found.tasks)) == (8, 100, 8)
    assert found.features["image"].shape == [256, 256, 3]
    assert found.prompt_tokens == 32
    assert found.prompt_tokens >= found.longest_prompt_tokens > 16


def test_the_hash_changes_with_any_file_and_any_name(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set", images="files")
    before, size = content_hash(root)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert size == sum(path.stat().st_size for path in files)
    for path in files:
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        assert content_hash(root)[0] != before, path
        path.write_bytes(original)
    assert content_hash(root)[0] == before
    first = root / "images/cam/episode_000000"
    (first / "frame_000000.png").rename(first / "frame_000000.swap")
    assert content_hash(root)[0] != before


def test_the_hash_does_not_depend_on_who_copied_the_files(tmp_path: Path) -> None:
    """Another order of creation, other times and modes, a downloader's notes, a README, links into a hub
    cache, and what systems lay beside.
    """
    root = writer.write(tmp_path / "set")
    snapshot, blobs = tmp_path / "cache/snapshots/0123", tmp_path / "cache/blobs"
    blobs.mkdir(parents=True)
    for n, path in enumerate(sorted((p for p in root.rglob("*") if p.is_file()), reverse=True)):
        shutil.copyfile(path, blobs / str(n))
        link = snapshot / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(n), link.parent))
    (snapshot / "README.md").write_text("a card")
    (snapshot / ".cache/huggingface").mkdir(parents=True)
    (snapshot / ".cache/huggingface/notes.json").write_text("{}")
    lay(snapshot)
    assert content_hash(snapshot) == content_hash(root)


def test_the_same_data_elsewhere_has_the_same_hash(tmp_path: Path) -> None:
    shutil.copytree(sample_dataset_path(), tmp_path / "elsewhere")
    assert (
        describe(load_recipe("smoke", [f"data.dataset={tmp_path / 'elsewhere'}"])).sha256
        == describe(load_recipe("smoke")).sha256
    )


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    with pytest.raises(HarnessError) as caught:
        describe(load_recipe("smoke", ["model.vocab_size=256"]))
    assert caught.value.code == "tokenizer-too-large"


def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and no way out."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.parametrize("tokenizer", ["paligemma", "/no/such.model"])
def test_data_and_statistics_need_no_tokenizer_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    _offline(monkeypatch, tmp_path)
    recipe = load_recipe("smoke", [f"data.tokenizer={tokenizer}"])
    chain = Chain(RunDir(tmp_path / "run"), recipe)
    found = chain.dataset()
    assert found.longest_prompt_tokens is None
    assert tokenizer in found.unknown["longest_prompt_tokens"]
    assert found.prompt_tokens == recipe.model.prompt_tokens
    assert found.sha256 == describe(load_recipe("smoke")).sha256
    assert chain.stats(found).frames == 100
    page = write_dataset_pages(chain, found)[0].read_text()
    assert "longest_prompt_tokens is unknown" in page
    Console(file=io.StringIO()).print(dataset_table(found))
    # Training cannot do without it.
    with pytest.raises(HarnessError) as caught:
        Chain(RunDir(tmp_path / "run"), recipe, trains=True).dataset()
    assert caught.value.code in ("download-unreachable", "tokenizer-not-found")


def test_lengths_that_were_unknown_are_known_when_the_tokenizer_is_there(tmp_path: Path) -> None:
    model = tmp_path / "a.model"
    chain = Chain(RunDir(tmp_path / "run"), load_recipe("smoke", [f"data.tokenizer={model}"]))
    before = chain.dataset()
    shutil.copyfile(sample_tokenizer_path(), model)
    after, sample = chain.dataset(), describe(load_recipe("smoke"))
    assert (before.longest_prompt_tokens, before.prompt_tokens) == (None, 64)
    assert (after.longest_prompt_tokens, after.prompt_tokens, after.unknown) == (
        sample.longest_prompt_tokens,
        32,
        {},
    )
    assert after == chain.dataset()
    assert after.inputs == before.inputs
