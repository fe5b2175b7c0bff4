"""Tests that an export for LeRobot makes the policy that was trained, or is refused.

What LeRobot's own pipelines did is in a golden file of `benchmarks/other_pipelines.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.artifacts import DimensionStats
from harness.checkpoint.expressed import Widths, check_expressed
from harness.checkpoint.inspect import inspect
from harness.checkpoint.lerobot_files import QUANTILE_SHIFT, write_policy_files
from harness.checkpoint.locate import Located, locate
from harness.checkpoint.policy import STATE_STEP, other_actions
from harness.checkpoint.safetensors import read_tensor, read_whole_header
from harness.checkpoint.source import why_not
from harness.checkpoint.tensor_writer import Planned, write_tensors
from harness.data.dataset import open_for
from harness.data.norm_files import read_norm_stats
from harness.data.prompts import Prompts
from harness.data.space import Space
from harness.data.tokenizer import tokenizer_of
from harness.data.transforms import EPSILON, normalize, normalized, unnormalize
from harness.doctor.content import weights
from harness.errors import HarnessError
from harness.predict.deliver import Wish, deliver, statistics
from harness.predict.predict import checkpoint_stats
from harness.recipe.load import load_recipe
from harness.recipe.schema import Recipe
from tests.support.exported import recipe_of_kind, write_checkpoint
from tests.support.mixtures import mixture
from tests.support.pipelines import KINDS, TASKS, exported_as, frames
from tests.support.situations import situation

GOLDEN = Path(__file__).parent / "golden/export_lerobot_pipelines.npz"


def say(_: str) -> None: ...


def steps_of(out: Path, name: str) -> dict[str, Any]:
    pipeline = json.loads((out / f"policy_{name}.json").read_text())
    return {step["registry_name"]: step["config"] for step in pipeline["steps"]}


@pytest.mark.parametrize("kind", [kind for kind, keys in KINDS.items() if "discrete" in str(keys)])
def test_lerobots_prompts_with_the_state_have_our_tokens(kind: str, tmp_path: Path) -> None:
    recipe, out = exported_as(tmp_path, kind)
    theirs = np.load(GOLDEN)[f"{kind}_prompts"].tolist()
    file = out.parent / "5/assets" / recipe.data.asset_id / "norm_stats.json"
    states = normalized(frames()["states"], read_norm_stats(file).stats["state"], recipe.data.normalization)
    prompts = Prompts(recipe, dict(enumerate(TASKS)), recipe.model.prompt_tokens)
    tokenizer = tokenizer_of(recipe)
    for n, text in enumerate(theirs):
        tokens, mask = prompts(n % len(TASKS), states[n])
        # LeRobot's tokenizer begins with the same token, and cuts at the same length.
        wanted = [tokenizer._bos, *tokenizer._processor.EncodeAsIds(text)][: recipe.model.prompt_tokens]
        assert tokens[mask].tolist() == wanted, text


@pytest.mark.parametrize("kind", KINDS)
def test_lerobots_actions_are_those_of_training_and_prediction(kind: str, tmp_path: Path) -> None:
    recipe, out = exported_as(tmp_path, kind)
    file = out.parent / "5/assets" / recipe.data.asset_id / "norm_stats.json"
    stats, mode = read_norm_stats(file).stats["actions"], recipe.data.normalization
    asked, space = frames(), Space.of(recipe.data)
    seen = normalize(space.actions(asked["recorded"], asked["states"]), stats, mode)
    np.testing.assert_allclose(np.load(GOLDEN)[f"{kind}_normalized"], seen, rtol=0, atol=1e-5)
    robot = space.recorded(unnormalize(asked["normalized"], stats, mode), asked["states"])
    np.testing.assert_allclose(np.load(GOLDEN)[f"{kind}_recorded"], robot, rtol=0, atol=1e-5)


def test_the_steps_stand_in_openpis_order(tmp_path: Path) -> None:
    _, out = exported_as(tmp_path, "relative")
    before, after = steps_of(out, "preprocessor"), steps_of(out, "postprocessor")
    assert [*before][2:5] == ["relative_actions_processor", "normalizer_processor", STATE_STEP]
    assert [*after][:2] == ["unnormalizer_processor", "absolute_actions_processor"]
    # As wide as the state, since earlier versions of the step pad the state with zeros up to this.
    assert before[STATE_STEP]["max_state_dim"] == 8
    config = json.loads((out / "config.json").read_text())
    assert config["use_relative_actions"] is True
    # Its queue of actions would be taken relative to later states.
    assert config["n_action_steps"] == 1
    step = before["relative_actions_processor"]
    relative = [not any(word in name for word in step["exclude_joints"]) for name in step["action_names"]]
    assert [n for n, each in enumerate(relative) if each] == [0, 1, 2, 5]
    assert (config["relative_exclude_joints"], config["action_feature_names"]) == (
        step["exclude_joints"],
        step["action_names"],
    )


def test_without_these_keys_the_pipelines_have_no_such_step(tmp_path: Path) -> None:
    _, out = exported_as(tmp_path, "plain")
    names = {*steps_of(out, "preprocessor"), *steps_of(out, "postprocessor")}
    assert not [name for name in names if "relative" in name or "absolute" in name or "state" in name]
    assert "use_relative_actions" not in json.loads((out / "config.json").read_text())


def test_lerobot_is_told_of_the_delays_of_the_training(tmp_path: Path) -> None:
    vector = [0.0] * 7
    one = DimensionStats(mean=vector, std=vector, q01=vector, q99=vector)
    for name, overrides in (("plain", []), ("delayed", ["train.action_delay.max=4"])):
        (tmp_path / name).mkdir()
        write_policy_files(
            tmp_path / name, load_recipe("pi05_libero", overrides), {"actions": one, "state": one}, "float32"
        )
    plain, delayed = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "delayed")
    )
    assert delayed == plain | {"rtc_training_max_delay": 4}


def test_statistics_come_back_from_lerobots_files(tmp_path: Path) -> None:
    """LeRobot has no 1e-6 in its denominator, so its q99 holds it; who reads takes it off again."""
    assert QUANTILE_SHIFT == EPSILON
    recipe, out = exported_as(tmp_path, "state")
    before = statistics(locate(str(out.parent / "5")), recipe)
    after = statistics(Located(out, None, None), recipe)
    for key, one in before.items():
        np.testing.assert_allclose(after[key].q99, one.q99, rtol=1e-7)
        np.testing.assert_allclose(after[key].q01, one.q01, rtol=1e-7)


def test_statistics_without_a_mean_have_their_dimensions(tmp_path: Path) -> None:
    recipe = recipe_of_kind("full", "model.discrete_state_input=true")
    step = write_checkpoint(tmp_path / "5", recipe)
    file = step / "assets" / recipe.data.asset_id / "norm_stats.json"
    body = json.loads(file.read_text())
    body["norm_stats"] = {
        key: {name: each[name] for name in ("q01", "q99")} for key, each in body["norm_stats"].items()
    }
    file.write_text(json.dumps(body))
    deliver(locate(str(step)), recipe, tmp_path / "out", Wish("lerobot"), say)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["input_features"]["observation.state"]["shape"] == [8]
    assert config["output_features"]["action"]["shape"] == [7]
    assert steps_of(tmp_path / "out", "preprocessor")[STATE_STEP]["max_state_dim"] == 8


def leave_out(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if ".q" in name]:
        del tensors[name]


def exchange(tensors: dict[str, np.ndarray]) -> None:
    tensors["action.q01"], tensors["action.q99"] = tensors["action.q99"], tensors["action.q01"]


def spoil(tensors: dict[str, np.ndarray]) -> None:
    tensors["action.q99"][3] = np.nan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (leave_out, "action has no q01 and no q99, only"),
        (exchange, r"action\[0\]: q01 1.5 is above q99 -1"),
        (spoil, r"action\[3\]: q99 is nan"),
    ],
)
def test_statistics_of_a_policy_that_cannot_be_used_are_refused(
    change: Callable[[dict[str, np.ndarray]], None], said: str, tmp_path: Path
) -> None:
    """They are used by predict and written by an export, as openpi's are, and so checked as openpi's are."""
    recipe, out = exported_as(tmp_path, "state")
    (file,) = out.glob("policy_preprocessor_*.safetensors")
    tensors = {each.name: read_tensor(each, file, out) for each in read_whole_header(file, out).tensors}
    change(tensors)
    file.unlink()
    planned = [Planned(name, array.shape, "float32") for name, array in tensors.items()]
    write_tensors(file, planned, tensors.items())
    where, data = Located(out, None, None), open_for(recipe)[1]
    readers: list[Callable[[], object]] = [
        lambda: statistics(where, recipe),
        lambda: checkpoint_stats(where, recipe, data),
    ]
    for read in readers:
        with pytest.raises(HarnessError) as caught:
            read()
        assert caught.value.code == "norm-stats-invalid"
        assert re.search(said, str(caught.value.got))
    # Mean and standard deviation are whole, and enough for z-scores.
    zscore = recipe_of_kind("full", "data.normalization=zscore")
    assert statistics(where, zscore)["actions"].std == [1.0 + i for i in range(7)]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("plain", "a prompt without the state, absolute actions"),
        ("relative", "the state in the prompt, relative actions"),
    ],
)
def test_inspect_says_what_the_pipeline_shows_the_model(kind: str, said: str, tmp_path: Path) -> None:
    _, out = exported_as(tmp_path, kind)
    assert inspect(out).pipeline == said
    assert inspect(out.parent / "5").pipeline is None


def test_a_start_from_relative_actions_is_noticed_and_one_from_another_prompt_is_not(tmp_path: Path) -> None:
    _, relative = exported_as(tmp_path, "relative")
    _, state = exported_as(tmp_path, "state")
    plain = recipe_of_kind("full")
    assert "relative to the state" in str(other_actions(relative, plain))
    assert other_actions(relative, recipe_of_kind("full", "data.relative=0")) is None
    assert other_actions(state, plain) is None
    assert other_actions(tmp_path / "nowhere", plain) is None
    (relative / "policy_preprocessor.json").write_text('{"steps": [3]}')
    assert other_actions(relative, plain) is None


def test_the_doctor_warns_of_a_start_from_relative_actions(tmp_path: Path) -> None:
    _, out = exported_as(tmp_path, "relative")
    recipe = recipe_of_kind("full", f"weights.source={out}")
    case = situation(tmp_path, recipe=recipe, why_not_weights=why_not, other_actions=other_actions)
    (found,) = weights(case)
    assert (found.severity, "relative to the state" in found.got) == ("warning", True)


def refused(recipe: Recipe, tmp_path: Path, **drop: bool) -> HarnessError:
    step = tmp_path / "5"
    if not step.exists():
        write_checkpoint(step, recipe)
    if drop.get("state"):
        file = step / "assets" / recipe.data.asset_id / "norm_stats.json"
        body = json.loads(file.read_text())
        del body["norm_stats"]["state"]
        file.write_text(json.dumps(body))
    with pytest.raises(HarnessError) as caught:
        deliver(locate(str(step)), recipe, tmp_path / "out", Wish("lerobot", frames=2), say)
    assert [path.name for path in tmp_path.iterdir()] == ["5"]
    return caught.value


def test_what_lerobot_cannot_do_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    adapted = recipe_of_kind("full", "data.adapt=aloha", "data.dataset=nowhere")
    assert refused(adapted, tmp_path).code == "export-not-expressible"
    with_state = recipe_of_kind("full", "model.discrete_state_input=true", "data.dataset=nowhere")
    assert refused(with_state, tmp_path, state=True).code == "statistics-needed"
    for target in ("openpi-jax", "openpi-pytorch"):
        deliver(locate(str(tmp_path / "5")), adapted, tmp_path / target, Wish(target), say)


def test_adapters_alone_of_what_lerobot_cannot_do_are_refused_too(tmp_path: Path) -> None:
    recipe = recipe_of_kind("lora", "data.adapt=aloha", "weights.source=somewhere")
    write_checkpoint(tmp_path / "5", recipe)
    with pytest.raises(HarnessError) as caught:
        deliver(locate(str(tmp_path / "5")), recipe, tmp_path / "out", Wish("lerobot", alone=True), say)
    assert caught.value.code == "export-not-expressible"


def test_a_state_shorter_than_the_actions_cannot_be_taken_from_them() -> None:
    def of(width: int) -> DimensionStats:
        ones = [1.0] * width
        return DimensionStats(mean=ones, std=ones, q01=ones, q99=ones)

    recipe = recipe_of_kind("full", "data.relative=0-5")
    check_expressed(recipe, {"state": of(7), "actions": of(7)}, None)
    with pytest.raises(HarnessError) as caught:
        check_expressed(recipe, {"state": of(6), "actions": of(7)}, None)
    assert caught.value.code == "export-not-expressible"
    with pytest.raises(HarnessError) as caught:
        check_expressed(recipe, {"state": of(4), "actions": of(4)}, None)
    assert caught.value.code == "statistics-needed"
    assert "dimension 4" in str(caught.value.got)


@pytest.mark.parametrize(
    ("second", "widths", "said"),
    [
        ({"relative": [0]}, [Widths(4, 3)] * 2, "data.datasets.1.relative is 0"),
        ({"prompt": "go"}, [Widths(4, 3)] * 2, "data.datasets.0.prompt is null"),
        ({}, [Widths(4, 3), Widths(5, 3)], "data.datasets.1: state 5, actions 3"),
        ({}, None, "outside of its run"),
    ],
)
def test_a_mixture_of_datasets_that_differ_is_refused(
    second: dict[str, Any], widths: list[Widths] | None, said: str
) -> None:
    recipe = mixture({"dataset": "a"}, {"dataset": "b"} | second)
    with pytest.raises(HarnessError) as caught:
        check_expressed(recipe, {}, widths)
    assert caught.value.code == "export-mixture-differs"
    assert said in str(caught.value.got)


def test_a_mixture_of_datasets_that_are_alike_is_not() -> None:
    recipe = mixture({"dataset": "a"}, {"dataset": "b"})
    check_expressed(recipe, {}, [Widths(4, 3), Widths(4, 3)])
