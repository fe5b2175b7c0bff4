"""Tests tokens: the beginning, the text, and the separate newline."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from harness.data.sample import sample_dataset_path, sample_tokenizer_path
from harness.data.tokenizer import load_tokenizer
from harness.errors import HarnessError


def test_sample_tokenizer_has_paligemmas_special_tokens() -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(sample_tokenizer_path()))
    assert (model.pad_id(), model.eos_id(), model.bos_id(), model.unk_id()) == (0, 1, 2, 3)
    assert load_tokenizer("sample").vocab_size == model.vocab_size() <= 512


def test_encode_is_bos_text_newline() -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(sample_tokenizer_path()))
    tokens = load_tokenizer("sample").encode(" put_the bowl on the stove\n")
    assert tokens == [2, *model.encode("put the bowl on the stove"), *model.encode("\n")]
    assert model.decode(tokens[1:-1]) == "put the bowl on the stove"
    assert len(tokens) < 12


def test_any_text_can_be_encoded() -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(sample_tokenizer_path()))
    tokens = load_tokenizer("sample").encode("Räum 7 Becher auf 🤖")
    assert model.unk_id() not in tokens
    assert model.decode(tokens[1:-1]) == "Räum 7 Becher auf 🤖"


def test_a_path_is_a_tokenizer() -> None:
    assert load_tokenizer(str(sample_tokenizer_path())).encode("open the drawer") == load_tokenizer(
        "sample"
    ).encode("open the drawer")


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\0" * 100])
def test_what_is_not_a_tokenizer_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HarnessError) as caught:
        load_tokenizer(str(path)).encode("open the drawer")
    assert caught.value.code == ("tokenizer-not-found" if content is None else "tokenizer-invalid")


def test_the_sample_is_small_enough_to_ship() -> None:
    files = [path for path in sample_dataset_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in [*files, sample_tokenizer_path()]) < 2_000_000
    assert max(path.stat().st_size for path in files) < 1 << 20


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_tokenizer_that_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    """A recipe that came with a run may name one."""
    path = tmp_path / "x.model"
    os.mkfifo(path) if kind == "fifo" else path.symlink_to("/dev/zero")
    with pytest.raises(HarnessError) as caught:
        load_tokenizer(str(path))
    assert caught.value.code == "file-not-regular"


def test_the_longest_prompt_with_a_state_is_never_shorter_than_a_real_one() -> None:
    """And it is reached, so that no more tokens are computed than there can be."""
    tokenizer = load_tokenizer("sample")
    random = np.random.default_rng(0)
    for dimensions in (1, 2, 8):
        most = tokenizer.most_with_state("open the drawer", dimensions)
        states = random.uniform(-1.1, 1.1, (500, dimensions))
        found = [len(tokenizer.encode_with_state("open the drawer", state)) for state in states]
        assert max(found) == most


def test_a_tokenizer_whose_pieces_span_spaces_is_bounded_by_bytes() -> None:
    tokenizer = load_tokenizer("sample")
    exact = tokenizer.most_with_state("open the drawer", 8)
    tokenizer.__dict__["_splits_at_spaces"] = False
    assert tokenizer.most_with_state("open the drawer", 8) > exact


def test_states_outside_the_quantiles_have_upstreams_bins() -> None:
    """Below them all is bin -1; above, the last one. An edge belongs to the bin above it."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(sample_tokenizer_path()))
    state = np.array([-1.5, -1.0, -1 + 1 / 128 - 1e-12, -1 + 1 / 128, 0.0, 1.0, 7.0])
    text = "Task: open the drawer, State: -1 0 0 1 128 255 255;\nAction: "
    assert load_tokenizer("sample").encode_with_state("open_the drawer\n", state) == [2, *model.encode(text)]
