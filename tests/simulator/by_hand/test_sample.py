"""Tests that a clip of the sample dataset is recorded again byte for byte."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from benchmarks.closed_loop.generate import ask, start
from harness.data.sample import sample_dataset_path
from tests.support.sample import make_sample

SHORT = 6


def test_a_clip_of_the_sample_is_recorded_again_byte_for_byte() -> None:
    clip = make_sample.CLIPS[SHORT]
    with start() as child:
        answer, arrays = ask(child, {"do": "record", **clip.take._asdict()})
    assert answer["success"]
    _, found, _ = make_sample.cut(clip, arrays, answer["prompt"])
    shipped = pq.read_table(sample_dataset_path() / f"data/chunk-000/episode_{SHORT:06d}.parquet")
    for name in ("state", "actions"):
        np.testing.assert_array_equal(found[name], np.array(shipped[name].to_pylist(), np.float32))
    for name in make_sample.CAMERAS:
        pictures = [make_sample._jpeg(image) for image in found[name]]
        assert pictures == [cell["bytes"] for cell in shipped[name].to_pylist()]
