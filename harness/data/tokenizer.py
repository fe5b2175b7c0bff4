"""Tokenization of prompts with sentencepiece.

The tokenizer is PaliGemma's, the small one of the package, or any .model file.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from harness.data.transforms import clean_prompt
from harness.errors import HarnessError
from harness.received.denied import may_be_opened
from harness.received.files import read_received
from harness.recipe.schema import PALIGEMMA, Recipe
from harness.units import MIB

# PaliGemma's, of 257,152 pieces, has 4 MiB.
_MODEL_BYTES = 64 * MIB
# The state's bins: their lower edges go from -1 in steps of 1/128, so that a state within the quantiles has a
# bin from 0 to 255. A state below them all has bin -1, as upstream has it.
_EDGES = np.linspace(-1, 1, 256 + 1)[:-1]
_LEAST_BIN, _MOST_BIN = -1, 255
# The mark that sentencepiece writes for a space.
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class Tokenizer:
    """A sentencepiece tokenizer, made by `load_tokenizer`."""

    def __init__(self, model: bytes, name: str) -> None:
        import sentencepiece

        self.name = name
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            bos, size = self._processor.bos_id(), self._processor.vocab_size()
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            raise _invalid(name, str(error)) from error
        if bos < 0 or size <= 0:
            raise _invalid(name, "it has no token for the beginning of a text")
        self._bos = int(bos)
        self.vocab_size = int(size)

    def encode(self, prompt: str) -> list[int]:
        """Tokens of BOS, the cleaned prompt, and a newline that is encoded separately. No state is included.

        Source: openpi src/openpi/models/tokenizer.py `PaligemmaTokenizer.tokenize` without a state, commit
        15a9616.
        """
        return [
            self._bos,
            *self._processor.EncodeAsIds(clean_prompt(prompt)),
            *self._processor.EncodeAsIds("\n"),
        ]

    def encode_with_state(self, prompt: str, state: np.ndarray) -> list[int]:
        """Tokens of BOS and π0.5's own form of a prompt, with the state in it.

        Shapes: state [S], normalized, not padded.

        Source: openpi src/openpi/models/tokenizer.py `PaligemmaTokenizer.tokenize` with a state, commit
        15a9616.
        """
        bins = np.digitize(state, bins=_EDGES) - 1
        return [self._bos, *self._processor.EncodeAsIds(_with_bins(prompt, bins.tolist()))]

    def most_with_state(self, prompt: str, dimensions: int) -> int:
        """The largest number of tokens that `encode_with_state` can give for states of so many dimensions.

        Pieces that never span a space make each word's tokens its own, so that the longest words make the
        longest prompt. Of another tokenizer only this is known: a token stands for at least one byte.
        """
        longest = [self._longest_bin(last=False)] * (dimensions - 1) + [self._longest_bin(last=True)]
        text = _with_bins(prompt, longest)
        if self._splits_at_spaces:
            return 1 + len(self._processor.EncodeAsIds(text))
        return 2 + len(text.encode())

    @functools.cached_property
    def _splits_at_spaces(self) -> bool:
        """True if no piece has a space after its first character, but for pieces of spaces alone."""
        pieces = (self._processor.IdToPiece(i) for i in range(self.vocab_size))
        return not any(_SPACE in piece[1:] and piece.strip(_SPACE) for piece in pieces)

    def _longest_bin(self, *, last: bool) -> int:
        """The bin that takes most tokens, in the middle of the state or at its end."""
        rest = [] if last else [0]
        return max(
            range(_LEAST_BIN, _MOST_BIN + 1),
            key=lambda one: len(self._processor.EncodeAsIds(_with_bins("", [0, one, *rest]))),
        )


def _with_bins(prompt: str, bins: list[int]) -> str:
    return f"Task: {clean_prompt(prompt)}, State: {' '.join(map(str, bins))};\nAction: "


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer `name`, loaded from `tokenizer_path`.

    Raises: HarnessError "tokenizer-not-found" or "tokenizer-invalid", and those of a download.
    """
    return Tokenizer(_model(tokenizer_path(name), name), name)


def tokenizer_of(recipe: Recipe) -> Tokenizer:
    """The recipe's tokenizer. The model must have an embedding for each of its tokens.

    Raises: HarnessError "tokenizer-too-large", and those of `load_tokenizer`.
    """
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise HarnessError(
            "tokenizer-too-large",
            f"tokenizer {recipe.data.tokenizer!r} has tokens that the model has no embedding for",
            got=tokenizer.vocab_size,
            need=f"at most {recipe.model.vocab_size}",
            fix=f"--set model.vocab_size={tokenizer.vocab_size}, or another data.tokenizer",
        )
    return tokenizer


def tokenizer_path(name: str) -> Path:
    """The path of the tokenizer `name`.

    The name is "sample", "paligemma" (downloaded once into the cache), or the path of a .model file.

    Raises: HarnessError of a download.
    """
    from harness.data.sample import sample_tokenizer_path

    if name == "sample":
        return sample_tokenizer_path()
    if name == "paligemma":
        from harness.download.cache import fetch_file
        from harness.received.consent import Named

        named = Named('data.tokenizer of a received recipe ("paligemma")', "--set data.tokenizer=FILE.model")
        return fetch_file(PALIGEMMA, named=named).path
    return Path(name)


def _model(path: Path, name: str) -> bytes:
    try:
        real = path.resolve()
        return read_received(real, real.parent, _MODEL_BYTES)
    except (OSError, RuntimeError, ValueError) as error:
        raise HarnessError(
            "tokenizer-not-found",
            f"there is no tokenizer {name!r}",
            got=getattr(error, "strerror", None) or str(error),
            need="paligemma, sample, or the path of a sentencepiece .model file",
            fix=may_be_opened(path)
            if isinstance(error, PermissionError)
            else "--set data.tokenizer=paligemma",
        ) from error


def _invalid(name: str, why: str) -> HarnessError:
    return HarnessError(
        "tokenizer-invalid",
        f"tokenizer {name!r} is not a sentencepiece model: {why[:200]}",
        need="a sentencepiece .model file with a BOS token",
        fix=(
            "--set data.tokenizer=paligemma, or name another .model file; delete a damaged download from the"
            " cache"
        ),
    )
