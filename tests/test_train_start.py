"""Tests starting from openpi's checkpoints, and the fingerprint of the released weights."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from harness.errors import HarnessError
from harness.recipe.fingerprint import norm_verdict
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from harness.train.setup import Setup, setup_of
from harness.train.sharding import Layout
from harness.train.start import first_state
from tests.support.openpi_checkpoints import openpi_checkpoint
from tests.support.tiny import LORA


@pytest.fixture(scope="module")
def openpi_full_params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return openpi_checkpoint("full", tmp_path_factory.mktemp("openpi")) / "4" / "params"


class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


PALIGEMMA_LORA = ["model.paligemma.lora={rank: 16, alpha: 16.0}", "train.trained=lora"]


@pytest.mark.parametrize(
    ("recipe", "overrides", "norm", "want"),
    [
        ("pi05_libero", [], 1802.386, "released"),
        ("pi05_libero", [], 1803.1594, "differs"),
        ("pi05_libero_lora", [], 1803.770, "released"),
        ("pi05_libero_lora", [], 1802.386, "differs"),
        ("pi05_libero", PALIGEMMA_LORA, 1803.1594, "released"),
        (
            "pi05_libero",
            ["model.paligemma.lora={rank: 8, alpha: 8.0}", "train.trained=lora"],
            1803.1594,
            "unknown",
        ),
        ("smoke", [], 100.0, "unknown"),
    ],
)
def test_fingerprints_of_the_released_weights(
    recipe: str, overrides: list[str], norm: float, want: str
) -> None:
    verdict, sentence = norm_verdict(load_recipe(recipe, overrides).model, norm)
    assert verdict == want
    assert f"{norm:.3f}" in sentence


def on_one(recipe: Recipe) -> Setup:
    return setup_of(recipe, Layout(jax.local_devices()[:1]))


def test_an_openpi_checkpoint_starts_a_full_run_and_a_lora_run(openpi_full_params: Path) -> None:
    listener = Listener()
    full = load_recipe("smoke", [f"weights.source={openpi_full_params}"])
    state, provenance = first_state(on_one(full), jax.random.key(0), listener)
    assert provenance["fingerprint"] == "unknown"
    assert provenance["initialized"] == []
    assert len(next(iter(provenance["files"].values()))["sha256"]) == 64
    lora = load_recipe("smoke", [f"weights.source={openpi_full_params}", *LORA])
    adapted, provenance = first_state(on_one(lora), jax.random.key(0), listener)
    assert sorted(provenance["initialized"]) == sorted(path for path in adapted.trained if "lora" in path)
    vision = "PaliGemma/img/embedding/kernel"
    np.testing.assert_array_equal(state.trained[vision], adapted.trained[vision])
    base = "PaliGemma/llm/layers/attn/q_einsum/w"
    np.testing.assert_array_equal(state.trained[base].astype("bfloat16"), adapted.frozen[base])
    assert float(np.std(adapted.trained["PaliGemma/llm/layers/mlp/linear_lora_a"])) == pytest.approx(
        0.01, rel=0.1
    )
    assert not listener.warned


def test_weights_of_another_model_are_refused_with_every_difference(openpi_full_params: Path) -> None:
    recipe = load_recipe(
        "smoke", [f"weights.source={openpi_full_params}", "model.vocab_size=500", "model.vision=Ti/14"]
    )
    with pytest.raises(HarnessError) as caught:
        first_state(on_one(recipe), jax.random.key(0), Listener())
    assert caught.value.code == "weights-mismatch"
    assert "input_embedding" in caught.value.what
    assert "pos_embedding" in caught.value.what
