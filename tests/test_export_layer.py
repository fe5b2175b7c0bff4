"""Tests one layer at the real sizes of π0.5 against what openpi and LeRobot made of our exported file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.checkpoint.pytorch_names import Program
from tests.support import real_layer

GOLDEN = Path(__file__).parent / "golden"
PROGRAMS: tuple[Program, ...] = ("openpi-pytorch", "lerobot")


@pytest.fixture(scope="module")
def outputs() -> Iterator[dict[str, np.ndarray]]:
    """What our layers gave, by "KIND/OUTPUT"."""
    with real_layer.one_layer():
        given = real_layer.inputs()
        # A full model's parameters are those of the LoRA model without its adapters.
        params = real_layer.seeded(real_layer.recipe_of_kind("lora"))
        plain = {path: value for path, value in params.items() if "lora" not in path}
        yield {
            f"{kind}/{name}": real_layer.kept(name, value)
            for kind, each in (("full", plain), ("lora", params))
            for name, value in real_layer.outputs(real_layer.recipe_of_kind(kind), each, given).items()
        }


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_layer_of_real_size_acts_as_theirs_did_on_the_exported_file(
    program: Program, outputs: dict[str, np.ndarray]
) -> None:
    """The golden outputs are theirs, by `benchmarks/other_layers.py`; they reach 8.8."""
    theirs = dict(np.load(GOLDEN / f"export_{program.replace('-', '_')}_layer.npz"))
    assert theirs.keys() == outputs.keys()
    for name, value in outputs.items():
        np.testing.assert_allclose(value, theirs[name], rtol=0, atol=2e-5, err_msg=name)


def test_the_adapters_of_a_layer_of_real_size_matter(outputs: dict[str, np.ndarray]) -> None:
    for name in ("prefix", "suffix"):
        assert np.abs(outputs[f"lora/{name}"] - outputs[f"full/{name}"]).max() > 0.1, name
