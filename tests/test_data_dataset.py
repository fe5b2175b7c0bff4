"""The description of a dataset, above all its content hash."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from harness.data.dataset import content_hash, describe
from harness.data.sample import sample_dataset_path
from harness.errors import HarnessError
from harness.recipe import load_recipe
from tests import lerobot_writer as writer


def test_describes_the_sample() -> None:
    found = describe(load_recipe("smoke"))
    assert (found.source, found.revision, found.format_version, found.fps) == ("sample", None, "v2.1", 20)
    assert (found.episodes, found.frames, len(found.tasks)) == (5, 100, 5)
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
    """Another order of creation, other times and modes, a downloader's notes, a README, and links into a hub cache."""
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
    assert content_hash(snapshot) == content_hash(root)


def test_the_same_data_elsewhere_has_the_same_hash(tmp_path: Path) -> None:
    shutil.copytree(sample_dataset_path(), tmp_path / "elsewhere")
    assert describe(load_recipe("smoke", [f"data.dataset={tmp_path / 'elsewhere'}"])).sha256 == describe(load_recipe("smoke")).sha256


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    with pytest.raises(HarnessError) as caught:
        describe(load_recipe("smoke", ["model.vocab_size=256"]))
    assert caught.value.code == "tokenizer-too-large"
