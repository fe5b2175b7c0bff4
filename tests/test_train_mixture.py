"""Tests that a step on a mixture tells the loss of each dataset, and learns what it would learn without."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from harness.train.metrics import as_line
from harness.train.step import by_dataset


def test_the_losses_of_a_batch_are_summed_by_dataset() -> None:
    losses = jnp.array([[1.0, 2.0], [4.0, 8.0]])
    found = jax.device_get(by_dataset(losses, jnp.array([[0, 2], [2, 2]]), 3))
    assert found["dataset_loss"].tolist() == [1.0, 0.0, 14.0]
    assert found["dataset_rows"].tolist() == [1, 0, 3]


def test_a_line_names_the_datasets_that_the_batch_has_rows_of() -> None:
    values = {
        "loss": np.float32(3.75),
        "dataset_loss": np.array([1.0, 0.0, 14.0]),
        "dataset_rows": np.array([1, 0, 4]),
    }
    assert as_line(values, ["a", "b", "c"]) == {"loss": 3.75, "datasets": {"a": 1.0, "c": 3.5}}
    assert as_line({"loss": np.float32(0.5)}, []) == {"loss": 0.5}
