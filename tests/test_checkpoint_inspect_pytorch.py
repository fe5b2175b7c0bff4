"""Tests that `inspect` tells what PyTorch's safetensors hold, by headers, and with --deep by values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.checkpoint.inspect import inspect
from harness.checkpoint.locate import locate
from harness.checkpoint.safetensors import read_whole_header
from harness.checkpoint.tensor_writer import Planned, write_tensors
from harness.errors import HarnessError
from harness.predict.deliver import Wish, deliver
from harness.show.checkpoint import checkpoint_table
from tests.support.exported import recipe_of_kind, write_checkpoint


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    recipe = recipe_of_kind("full")
    out = tmp_path / "run/checkpoints/000005/pretrained_model"
    deliver(
        locate(str(write_checkpoint(tmp_path / "5", recipe))), recipe, out, Wish("lerobot"), lambda _: None
    )
    return out


def file_of(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    planned = [Planned(name, array.shape, "float32") for name, array in tensors.items()]
    write_tensors(path, planned, tensors.items())
    return path


def poke(path: Path, name: str, value: float) -> None:
    """Sets the first element of a tensor of the file."""
    (tensor,) = (each for each in read_whole_header(path, path.parent).tensors if each.name == name)
    with path.open("r+b") as file:
        file.seek(tensor.begin)
        file.write(np.float32(value).tobytes())


@pytest.mark.parametrize("below", [".", "../..", "../../..", "model.safetensors"])
def test_a_policy_is_described_from_its_headers(policy: Path, below: str) -> None:
    found = inspect((policy / below).resolve())
    assert (found.layout, found.tensors) == ("pytorch", 116)
    assert found.steps[0].complete, found.findings
    assert found.parameters["language"].dtypes == ["float32"]
    assert set(found.parameters) == {"vision", "language", "expert", "projections", "unused"}
    assert found.lora.present is False
    assert found.non_finite is None
    if below != "model.safetensors":
        assert (found.kind, found.step) == ("LeRobot pi05", 5)
    from rich.console import Console

    console = Console(width=100, record=True, file=None)
    console.print(checkpoint_table(found))
    assert "116" in console.export_text()


def test_deep_counts_what_is_not_finite_and_sees_another_file(policy: Path) -> None:
    clean = inspect(policy, deep=True)
    assert (clean.non_finite, clean.findings) == (0, [])
    assert all(leaf.sha256 for leaf in clean.leaves)
    assert clean.parameters["expert"].norm
    poke(policy / "model.safetensors", "model.time_mlp_in.bias", np.nan)
    found = inspect(policy, deep=True)
    assert found.non_finite == 1
    assert found.parameters["projections"].non_finite == 1
    assert any("model.time_mlp_in.bias" in text for text in found.findings)
    assert any("sha256 differs" in text for text in found.findings)
    assert not found.steps[0].complete


def test_a_comparison_that_is_not_made_is_refused(policy: Path) -> None:
    with pytest.raises(HarnessError) as caught:
        inspect(policy, against="base")
    assert caught.value.code == "nothing-to-compare"


def test_deep_reads_no_file_that_a_link_names_elsewhere(policy: Path, tmp_path: Path) -> None:
    file = policy / "model.safetensors"
    file.rename(tmp_path / "elsewhere.safetensors")
    with (tmp_path / "elsewhere.safetensors").open("ab") as other:
        other.write(b"more, so that its sha256 differs")
    file.symlink_to(tmp_path / "elsewhere.safetensors")
    (policy / "more.safetensors").write_bytes((tmp_path / "elsewhere.safetensors").read_bytes()[:-32])
    found = inspect(policy / "more.safetensors", deep=True)
    assert not any("sha256" in text for text in found.findings)
    with pytest.raises(HarnessError) as caught:
        inspect(policy, deep=True)
    assert "leads out" in (caught.value.got or "")


def test_the_norm_of_what_is_finite_is_that_of_any_other_checkpoint(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    values[2] = np.inf
    file_of(tmp_path / "model.safetensors", {"action_in_proj.weight": values.reshape(2, 3)})
    found = inspect(tmp_path, deep=True)
    (leaf,) = found.leaves
    assert (leaf.non_finite, found.non_finite) == (1, 1)
    assert leaf.norm == found.parameters["projections"].norm == pytest.approx(51**0.5)


def test_adapters_of_peft_are_told_with_their_rank(tmp_path: Path) -> None:
    layers = "base_model.model.model.paligemma_with_expert.gemma_expert.model.layers"
    name = layers + ".{}.self_attn.q_proj.lora_{}.weight"
    tensors = {}
    for layer in (0, 1):
        tensors |= {name.format(layer, "A"): np.ones((4, 64)), name.format(layer, "B"): np.ones((128, 4))}
    file_of(
        tmp_path / "adapter_model.safetensors", {key: value.astype("f4") for key, value in tensors.items()}
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    found = inspect(tmp_path)
    assert found.kind == "PEFT adapters"
    assert found.lora.present is True
    assert found.lora.rank == {"expert q_proj": 4}
    assert found.lora.parameters == 2 * (4 * 64 + 128 * 4)
    assert set(found.parameters) == {"adapters"}


def test_pi0_and_a_model_that_lacks_tensors_are_said(tmp_path: Path) -> None:
    pi0 = {"state_proj.weight": np.ones((4, 4), "f4"), "action_in_proj.weight": np.ones((4, 4), "f4")}
    file_of(tmp_path / "pi0/model.safetensors", pi0)
    found = inspect(tmp_path / "pi0")
    assert not found.steps[0].complete
    assert any("π0, not of π0.5" in text for text in found.findings)
    file_of(tmp_path / "part/model.safetensors", {"action_in_proj.weight": np.ones((1024, 32), "f4")})
    found = inspect(tmp_path / "part")
    assert not found.steps[0].complete
    assert any("is missing" in text for text in found.findings)
