"""Tests that metadata alone show why weights cannot be a recipe's start, before any planning or compiling."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.artifacts import Machine
from harness.checkpoint.source import find_params, why_not
from harness.doctor.content import weights
from harness.doctor.situation import Situation
from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Recipe
from tests.support.item_writer import write_item, write_step
from tests.test_checkpoint_pytorch import lerobot

LORA = [f"model.{expert}.lora={{rank: 2, alpha: 2.0}}" for expert in ("paligemma", "action_expert")]


def smoke(*overrides: str) -> Recipe:
    return load_recipe("smoke", list(overrides))


def step_of(recipe: Recipe, step: Path, *, leave_out: str = "nothing") -> Path:
    """A step that holds the parameters of the recipe's model, with no data."""
    shapes = {
        path: (shape, "float32")
        for path, shape in parameter_shapes(recipe.model).items()
        if leave_out not in path
    }
    write_item(
        step / "params",
        {f"params/{path}/value": np.zeros(shape, np.float32) for path, (shape, _) in shapes.items()},
    )
    return step


def test_weights_of_the_recipes_model_may_start_it(tmp_path: Path) -> None:
    step = step_of(smoke(), tmp_path / "7")
    assert why_not(step, smoke()) is None
    assert why_not(step / "params", smoke()) is None
    # Adapters begin anew.
    assert why_not(step, smoke(*LORA)) is None


def test_adapters_as_a_full_start_name_the_export(tmp_path: Path) -> None:
    step = step_of(smoke(*LORA), tmp_path / "7")
    for given in (step, step / "params"):
        error = why_not(given, smoke())
        assert error is not None
        assert (error.code, error.fix) == (
            "weights-are-adapters",
            f"harness export {step} OUT, then --set weights.source=OUT",
        )
    assert why_not(step, smoke(*LORA)) is None


def test_another_action_dim_names_the_arrays(tmp_path: Path) -> None:
    error = why_not(step_of(smoke("model.action_dim=8"), tmp_path / "7"), smoke())
    assert error is not None
    assert error.code == "weights-mismatch"
    assert "action_in_proj/kernel has shape (8, 64), not (32, 64)" in error.what


def test_a_run_and_a_directory_of_steps_name_their_newest_whole_step(tmp_path: Path) -> None:
    for step in ("5", "20", "100"):
        write_step(
            tmp_path / "run/checkpoints" / step,
            {"action_in_proj/bias": np.ones(2, np.float32)},
            ["action_in_proj/bias"],
        )
    (tmp_path / "run/checkpoints/100/_CHECKPOINT_METADATA").unlink()
    (tmp_path / "run/checkpoints/300").symlink_to("5")
    for given in (tmp_path / "run", tmp_path / "run/checkpoints"):
        error = why_not(given, smoke())
        assert error is not None
        assert error.code == "weights-step-needed"
        assert error.fix == f"--set weights.source={tmp_path / 'run/checkpoints/20'}"
        assert error.got == "3 steps: 5, 20, 100"


def test_one_step_is_called_one(tmp_path: Path) -> None:
    write_step(tmp_path / "20", {"action_in_proj/bias": np.ones(2, np.float32)})
    with pytest.raises(HarnessError) as caught:
        find_params(tmp_path)
    assert (caught.value.code, caught.value.got) == ("weights-step-needed", "step 20")
    assert "several" not in caught.value.what


@pytest.mark.parametrize(
    "below", ["", "checkpoints/005000", "checkpoints/005000/pretrained_model/model.safetensors"]
)
def test_pytorch_weights_are_named(tmp_path: Path, below: str) -> None:
    error = why_not(lerobot(tmp_path / "run") / below, smoke())
    assert error is not None
    assert error.code == "pytorch-checkpoint"


def test_what_was_trained_is_looked_at_with_its_base(tmp_path: Path) -> None:
    base = step_of(smoke(), tmp_path / "base/1")
    step = tmp_path / "run/2"
    write_item(step / "params", {"params/action_in_proj/bias/value": np.zeros(64, np.float32)})
    (step / "harness").mkdir()
    named = step / "harness/base.json"
    named.write_text(json.dumps({"source": str(base), "sha256": "x"}))
    assert why_not(step, smoke()) is None
    named.write_text(json.dumps({"source": "gs://somewhere/params", "sha256": "x"}))
    assert why_not(step, smoke()) is None
    named.write_text(json.dumps({"source": str(step), "sha256": "x"}))
    error = why_not(step, smoke())
    assert error is not None
    assert error.code == "weights-base-circular"


def test_a_params_directory_that_is_a_link_out_of_its_step_is_refused(tmp_path: Path) -> None:
    step_of(smoke(), tmp_path / "mine/1")
    (tmp_path / "step").mkdir()
    (tmp_path / "step/params").symlink_to(tmp_path / "mine/1/params")
    error = why_not(tmp_path / "step", smoke())
    assert error is not None
    assert error.code == "file-leaves-root"


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    step = step_of(smoke(), tmp_path / "7")
    shutil.rmtree(step / "params/d")
    (tmp_path / "empty").mkdir()
    found = {name: why_not(tmp_path / name, smoke()) for name in ("nowhere", "empty", "7")}
    codes = {name: error and error.code for name, error in found.items()}
    assert codes == {
        "nowhere": "weights-missing",
        "empty": "weights-not-a-checkpoint",
        "7": "checkpoint-damaged",
    }


def test_the_doctor_says_it(tmp_path: Path) -> None:
    step = step_of(smoke(*LORA), tmp_path / "7")
    recipe = smoke(f"weights.source={step}")
    machine = Machine.model_construct(gpus=[])
    (finding,) = weights(Situation(recipe, machine, {}, why_not_weights=why_not))
    assert (finding.severity, finding.fix.startswith("harness export")) == ("error", True)
    assert list(weights(Situation(recipe, machine, {}, why_not_weights=lambda *_: None))) == []


def test_train_says_it_before_it_plans(tmp_path: Path) -> None:
    from harness.flow.chain import Chain
    from harness.flow.training import _check_weights
    from harness.received import consent
    from harness.run.directory import RunDir

    def chain(source: object) -> Chain:
        return Chain(RunDir(tmp_path / "run"), smoke(f"weights.source={source}"))

    adapters = chain(step_of(smoke(*LORA), tmp_path / "7"))
    with pytest.raises(HarnessError) as caught:
        _check_weights(adapters, [])
    assert caught.value.code == "weights-are-adapters"
    _check_weights(adapters, ["weights directory"])
    consent.grant("gs://somewhere/params")
    _check_weights(chain("gs://somewhere/params"), [])


def test_the_doctor_plans_nothing_for_weights_that_cannot_be_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.doctor.planned import plan
    from harness.flow.chain import Chain
    from harness.flow.diagnose import plan_or_refusal

    planned: list[object] = []
    monkeypatch.setattr(Chain, "plan", lambda *args, **_: planned.append(args) or "a plan")
    machine = Machine.model_construct(gpus=[])
    chain = Chain(None, smoke(f"weights.source={step_of(smoke(*LORA), tmp_path / '7')}"))
    made = plan_or_refusal(chain, machine, None, None, allow=[])
    assert isinstance(made, HarnessError)
    assert not planned
    (said,) = plan(Situation(chain.recipe, machine, {}, refusal=made))
    assert (said.severity, "weights directory" in said.got) == ("unknown", True)
    assert plan_or_refusal(chain, machine, None, None, allow=["weights directory"]) == "a plan"


def test_no_jax_is_loaded_for_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.checkpoint.source import why_not; from"
        " harness.recipe.load import load_recipe; "
    )
    code += (
        "why_not(Path(sys.argv[1]), load_recipe('smoke')); assert not {'jax', 'orbax', 'torch'} &"
        " set(sys.modules)"
    )
    step = step_of(smoke(), tmp_path / "7")
    subprocess.run([sys.executable, "-c", code, str(step)], check=True, timeout=120)


@pytest.mark.parametrize("source", ["a" * 300, "/etc/passwd/x", "a" * 5000])
def test_a_base_that_no_file_can_be_called_is_refused(tmp_path: Path, source: str) -> None:
    from harness.checkpoint.against import moved
    from harness.checkpoint.scan import find
    from harness.checkpoint.steps import read_steps

    with pytest.raises(HarnessError):
        find_params(Path(source))
    step = step_of(smoke(), tmp_path / "7")
    (step / "harness").mkdir(exist_ok=True)
    (step / "harness" / "base.json").write_text(json.dumps({"source": source, "sha256": "0"}))
    (read,) = read_steps(find(step))
    with pytest.raises(HarnessError):
        moved(read, "base", None, None)
