"""Tests a step with only trained parameters whose base weights have moved.

The base's new place is reported, and its bytes are still those of the training.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from harness.checkpoint.weights import directory_sha256, load_params
from harness.errors import HarnessError
from tests.support.item_writer import write_step


def test_base_that_has_moved(tmp_path: Path) -> None:
    write_step(
        tmp_path / "old",
        {"action_in_proj/bias": np.zeros(4, np.float32), "time_mlp_in/bias": np.ones(4, np.float32)},
    )
    write_step(tmp_path / "run/7", {"action_in_proj/bias": np.full(4, 7, np.float32)})
    (tmp_path / "run/7/harness").mkdir()
    named = {"source": str(tmp_path / "old"), "sha256": directory_sha256(tmp_path / "old/params")}
    (tmp_path / "run/7/harness/base.json").write_text(json.dumps(named))
    (tmp_path / "old").rename(tmp_path / "new")
    expected = {
        path: jax.ShapeDtypeStruct((4,), np.float32) for path in ("action_in_proj/bias", "time_mlp_in/bias")
    }
    with pytest.raises(HarnessError) as caught:
        load_params(tmp_path / "run/7", expected)
    assert caught.value.code == "weights-missing"
    loaded = load_params(tmp_path / "run/7", expected, base=tmp_path / "new").params
    assert [float(loaded[path][0]) for path in expected] == [7.0, 1.0]
    write_step(
        tmp_path / "other",
        {"action_in_proj/bias": np.zeros(4, np.float32), "time_mlp_in/bias": np.zeros(4, np.float32)},
    )
    with pytest.raises(HarnessError) as caught:
        load_params(tmp_path / "run/7", expected, base=tmp_path / "other")
    assert caught.value.code == "weights-base-differs"
