"""The dataset and the tokenizer inside the package.

The frames are cut by `ci/make_sample.py` from episodes of the LIBERO benchmark's own simulator (MuJoCo and
robosuite, both cameras), with real camera images, states, actions and instructions. The actions come from a
scripted pick-and-place policy; they are not LIBERO's human demonstrations and not the published
`physical-intelligence/libero` set. The clips are contiguous at 20 frames a second, images are JPEG. The
README.md beside the data says which episodes.
"""

from __future__ import annotations

from pathlib import Path


def sample_dataset_path() -> Path:
    """The directory of the sample dataset (LeRobot v2.1, images in parquet)."""
    return Path(__file__).with_name("sample_dataset")


def sample_tokenizer_path() -> Path:
    """The sample tokenizer: a sentencepiece model of at most 512 pieces, trained on LIBERO's instructions."""
    return Path(__file__).with_name("sample_tokenizer.model")
