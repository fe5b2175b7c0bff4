"""The paths of the sample dataset and the sample tokenizer inside the package.

`ci/make_sample.py` records episodes in the LIBERO benchmark's own simulator (MuJoCo and robosuite, both
cameras) and cuts the frames from them, with real camera images, states, actions and instructions. The actions
come from the scripted pick-and-place policy. They are not LIBERO's human demonstrations and not the published
`physical-intelligence/libero` set. The clips are contiguous at 20 frames per second; images are JPEG. The
README.md beside the data lists the episodes.
"""

from __future__ import annotations

from pathlib import Path


def sample_dataset_path() -> Path:
    """The directory of the sample dataset (LeRobot v2.1, images in parquet)."""
    return Path(__file__).with_name("sample_dataset")


def sample_tokenizer_path() -> Path:
    """The sample tokenizer: a sentencepiece model of at most 512 pieces, trained on LIBERO's instructions."""
    return Path(__file__).with_name("sample_tokenizer.model")
