"""Trains the tokenizer that ships inside the package, on the instructions of LIBERO. It needs no simulator.

    python ci/make_tokenizer.py [--out harness/data]

The same command gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import sentencepiece

VOCABULARY = 512

# The instructions of LIBERO's four suites (spatial, object, goal, 10). Source:
# Lifelong-Robot-Learning/LIBERO, libero/libero/benchmark/libero_suite_task_map.py.
_SPATIAL = (
    "between the plate and the ramekin", "next to the ramekin", "from table center", "on the cookie box",
    "in the top drawer of the wooden cabinet",
    "on the ramekin", "next to the cookie box", "on the stove", "next to the plate", "on the wooden cabinet",
)  # fmt: skip
_OBJECT = (
    "alphabet soup", "cream cheese", "salad dressing", "bbq sauce", "ketchup", "tomato sauce", "butter",
    "milk", "chocolate pudding", "orange juice",
)  # fmt: skip
_GOAL_AND_10 = (
    "open the middle drawer of the cabinet",
    "put the bowl on the stove",
    "put the wine bottle on top of the cabinet",
    "open the top drawer and put the bowl inside",
    "put the bowl on top of the cabinet",
    "push the plate to the front of the stove",
    "put the cream cheese in the bowl",
    "turn on the stove",
    "put the bowl on the plate",
    "put the wine bottle on the rack",
    "put both the alphabet soup and the tomato sauce in the basket",
    "put both the cream cheese box and the butter in the basket",
    "turn on the stove and put the moka pot on it",
    "put the black bowl in the bottom drawer of the cabinet and close it",
    "put the white mug on the left plate and put the yellow and white mug on the right plate",
    "pick up the book and place it in the back compartment of the caddy",
    "put the white mug on the plate and put the chocolate pudding to the right of the plate",
    "put both the alphabet soup and the cream cheese box in the basket",
    "put both moka pots on the stove",
    "put the yellow and white mug in the microwave and close it",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "harness" / "data")
    train_tokenizer(parser.parse_args().out / "sample_tokenizer.model")


def train_tokenizer(out: Path) -> None:
    """Writes a byte-fallback BPE model with PaliGemma's special tokens in PaliGemma's order."""
    sentences = [f"pick up the black bowl {where} and place it on the plate" for where in _SPATIAL]
    sentences += [f"pick up the {what} and place it in the basket" for what in _OBJECT]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences, *_GOAL_AND_10]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        hard_vocab_limit=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=["\n"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        num_threads=1,
        minloglevel=2,
    )
    out.write_bytes(model.getvalue())


if __name__ == "__main__":
    main()
