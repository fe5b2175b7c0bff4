"""Tests `harness predict`: one frame through a checkpoint equals the result computed by hand.

Bad input is reported before a weight is read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harness.artifacts import Gpu, Host, Machine, Prediction
from harness.checkpoint.inspect import inspect
from harness.checkpoint.locate import locate, recipe_of
from harness.checkpoint.store import Store
from harness.data.lerobot import open_dataset
from harness.data.sample import sample_dataset_path
from harness.data.tokenizer import load_tokenizer
from harness.data.transforms import resize_with_pad
from harness.errors import HarnessError
from harness.model.pi05 import Observation, bind, graph_of
from harness.predict.predict import Device, Question, device_for, predict
from harness.report.page import render
from harness.run.directory import RunDir
from harness.show.prediction import prediction_table
from harness.show.prediction_picture import plot
from tests.support.lerobot_writer import write
from tests.support.openpi_checkpoints import openpi_checkpoint
from tests.support.tiny import random_params, tiny

CPU = Device("cpu", "cpu", None, None)
LOW = {"state": np.linspace(-2.0, -1.0, 8), "actions": np.linspace(-1.5, -0.5, 7)}
HIGH = {"state": np.linspace(1.0, 3.0, 8), "actions": np.linspace(0.5, 2.5, 7)}
ALL = {camera: feature for camera, feature in tiny().data.cameras.items() if feature}


def stats_json() -> str:
    """Statistics that no run of ours would compute: the prediction must come from the checkpoint's own."""
    return json.dumps(
        {
            "norm_stats": {
                key: {
                    "mean": [0.0] * len(LOW[key]),
                    "std": [1.0] * len(LOW[key]),
                    "q01": [*LOW[key]],
                    "q99": [*HIGH[key]],
                }
                for key in LOW
            }
        }
    )


def save(directory: Path, step: int) -> None:
    recipe = tiny()
    params = {path: jnp.asarray(value) for path, value in random_params(recipe, seed=step).items()}
    store = Store(directory, keep_every_steps=1)
    record = {"step": step, "recipe": recipe.model_dump(mode="json")}
    train_state = {"step": jnp.int32(step), "params": {}, "opt_state": ()}
    store.save(
        step,
        params=params,
        train_state=train_state,
        norm_stats_json=stats_json(),
        asset_id=recipe.data.asset_id,
        record=record,
    )
    store.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    (directory / "manifest.json").write_text("{}")
    for step in (3, 5):
        save(directory / "checkpoints", step)
    return directory


def ask(
    source: Path, question: Question, *overrides: str, recipe: str | None = None, on: Device = CPU
) -> Prediction:
    located = locate(str(source))
    return predict(located, recipe_of(located, recipe, list(overrides)), question, on, lambda _: None)


def by_hand(seed: int, sampling_steps: int, params_seed: int, frame: int) -> np.ndarray:
    """The same frame without the loader, the step or the transforms: [H, 7]."""
    recipe, data = tiny(), open_dataset(sample_dataset_path())
    tokens = load_tokenizer("sample").encode(data.task(frame))
    images = {
        camera: jnp.asarray(resize_with_pad(data.image(frame, feature), 56)[None] / 127.5 - 1.0, jnp.float32)
        for camera, feature in ALL.items()
    }
    masks = dict.fromkeys(images, jnp.ones(1, bool))
    observation = Observation(
        images, masks, jnp.asarray([tokens], jnp.int32), jnp.ones((1, len(tokens)), bool)
    )
    noise = jax.random.normal(jax.random.key(seed), (1, 10, 32))
    params = {path: jnp.asarray(value) for path, value in random_params(recipe, seed=params_seed).items()}
    actions = np.asarray(
        bind(graph_of(recipe.model), params).sample_actions(observation, noise, sampling_steps)
    )[0, :, :7]
    return (actions.astype(np.float64) + 1) / 2 * (HIGH["actions"] - LOW["actions"] + 1e-6) + LOW["actions"]


def test_it_is_what_the_model_gives_for_that_frame(run: Path) -> None:
    """The newest step of a run; a frame near the episode's end, so that the error must leave the padding
    out.
    """
    data = open_dataset(sample_dataset_path())
    episode = data.episodes[2]
    frame = episode.length - 4
    found = ask(run, Question(episode=2, frame=frame, sampling_steps=3, seed=7))
    want = by_hand(7, 3, 5, episode.first + frame)
    np.testing.assert_allclose(found.predicted, want, rtol=1e-4, atol=1e-5)
    recorded, is_pad = data.action_chunk(episode.first + frame, 10)
    np.testing.assert_array_equal(np.float32(found.recorded), recorded)
    assert found.is_pad == is_pad.tolist() == [False] * 4 + [True] * 6
    np.testing.assert_allclose(found.mean_absolute_error, np.abs(want - recorded)[:4].mean(axis=0), rtol=1e-3)
    assert (found.step, found.task, found.sampling_steps, found.seed) == (5, data.task(episode.first), 3, 7)


def test_one_step_of_it_and_another_seed_give_other_actions(run: Path) -> None:
    first = ask(run / "checkpoints/3", Question(sampling_steps=2))
    assert first.step == 3
    assert first == ask(run / "checkpoints/3/params", Question(sampling_steps=2)).model_copy(
        update={"step": 3}
    )
    assert first.predicted != ask(run / "checkpoints/3", Question(sampling_steps=2, seed=1)).predicted
    assert first.predicted != ask(run, Question(sampling_steps=2)).predicted


def test_a_checkpoint_of_openpi_needs_a_recipe_and_its_asset_id(tmp_path: Path) -> None:
    directory = openpi_checkpoint("full", tmp_path)
    with pytest.raises(HarnessError) as caught:
        ask(directory, Question())
    assert caught.value.code == "recipe-needed"
    with pytest.raises(HarnessError) as caught:
        ask(directory, Question(), recipe="smoke")
    assert caught.value.code == "asset-missing"
    assert "physical-intelligence/libero" in caught.value.fix
    found = ask(
        directory, Question(sampling_steps=1), "data.asset_id=physical-intelligence/libero", recipe="smoke"
    )
    assert found.step == 4
    assert np.shape(found.predicted) == (10, 7)


@pytest.mark.parametrize(
    ("question", "overrides", "code"),
    [
        (Question(episode=8), [], "episode-out-of-range"),
        (Question(episode=-1), [], "episode-out-of-range"),
        (Question(frame=10_000), [], "frame-out-of-range"),
        (Question(frame=-1), [], "frame-out-of-range"),
        (Question(sampling_steps=0), [], "sampling-steps-invalid"),
        (Question(), ["data.dataset=nowhere"], "dataset-not-found"),
        (Question(), ["data.actions=action"], "dataset-feature-missing"),
        (Question(), ["data.actions=state"], "dataset-of-other-dimensions"),
        (Question(), ["data.cameras.base_0_rgb=front"], "dataset-feature-missing"),
        (Question(), ["data.asset_id=other"], "asset-missing"),
        (Question(), ["model.vocab_size=100"], "tokenizer-too-large"),
        (Question(), ["model.paligemma.lora={rank: 2, alpha: 2}", "train.trained=lora"], "weights-mismatch"),
    ],
)
def test_bad_input_is_refused(run: Path, question: Question, overrides: list[str], code: str) -> None:
    with pytest.raises(HarnessError) as caught:
        ask(run, question, *overrides)
    assert caught.value.code == code
    if code == "weights-mismatch":
        assert caught.value.what.count("lora_") == 10


@pytest.mark.parametrize("state", ["null", "actions"])
def test_a_state_of_any_width_or_none_predicts_the_same(run: Path, state: str) -> None:
    """It does not enter the model."""
    question = Question(sampling_steps=1)
    assert ask(run, question, f"data.state={state}").predicted == ask(run, question).predicted


def test_statistics_that_are_a_link_out_of_the_checkpoint_are_not_read(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "step"
    shutil.copytree(run / "checkpoints/3", copy)
    file = next(copy.rglob("norm_stats.json"))
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(HarnessError) as caught:
        ask(copy, Question(sampling_steps=1))
    # A step with a link out of it is not whole, so it is not even opened.
    assert caught.value.code == "checkpoint-interrupted"
    assert "norm_stats.json" in str(caught.value)


def test_another_robots_dataset_is_refused(run: Path, tmp_path: Path) -> None:
    """Three numbers of state and two of actions, under names of its own."""
    other = write(tmp_path / "other")
    names = [
        "data.state=observation.state",
        "data.actions=action",
        "data.cameras.base_0_rgb=cam",
        "data.cameras.left_wrist_0_rgb=null",
    ]
    with pytest.raises(HarnessError) as caught:
        ask(run, Question(), f"data.dataset={other}", *names)
    assert caught.value.code == "dataset-of-other-dimensions"


def test_what_does_not_fit_is_refused_before_it_is_loaded(run: Path) -> None:
    said: list[str] = []
    located = locate(str(run))
    with pytest.raises(HarnessError) as caught:
        predict(located, recipe_of(located, None), Question(), CPU._replace(usable_bytes=10_000), said.append)
    assert caught.value.code == "does-not-fit"
    assert not any("loading" in text for text in said)


def test_an_interrupted_save_of_openpi_is_refused(tmp_path: Path) -> None:
    directory = openpi_checkpoint("lora", tmp_path)
    assert locate(str(directory)).step == 2
    with pytest.raises(HarnessError) as caught:
        locate(str(directory / "6.orbax-checkpoint-tmp-0"))
    assert caught.value.code == "checkpoint-interrupted"


def test_an_interrupted_step_is_passed_over_and_refused_alone(run: Path, tmp_path: Path) -> None:
    save(tmp_path, 3)
    save(tmp_path, 5)
    (tmp_path / "5/_CHECKPOINT_METADATA").unlink()
    assert locate(str(tmp_path)).step == 3
    with pytest.raises(HarnessError) as caught:
        locate(str(tmp_path / "5"))
    assert caught.value.code == "checkpoint-interrupted"
    with pytest.raises(HarnessError) as caught:
        locate(str(run / "checkpoints/3/train_state"))
    assert caught.value.code == "checkpoint-interrupted"
    (tmp_path / "3/harness/record.json").write_text("[")
    with pytest.raises(HarnessError, match=r"record\.json has changed since it was saved"):
        locate(str(tmp_path / "3"))
    # Nothing says what it was.
    sidecar = tmp_path / "3/harness/digests.json"
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"files": {}}))
    with pytest.raises(HarnessError) as caught:
        recipe_of(locate(str(tmp_path)), None)
    assert caught.value.code == "record-invalid"


@pytest.mark.parametrize("whose", ["ours", "openpi"])
def test_a_step_whose_train_state_was_deleted_is_whole_for_its_weights(whose: str, tmp_path: Path) -> None:
    if whose == "ours":
        directory, number = tmp_path, 5
        save(tmp_path, 3)
        save(tmp_path, 5)
    else:
        directory, number = openpi_checkpoint("full", tmp_path), 4
    shutil.rmtree(directory / f"{number}/train_state")
    assert locate(str(directory)).step == locate(str(directory / str(number))).step == number
    assert inspect(directory).steps[-1].missing == ["train_state/"]


def machine(*free: int) -> Machine:
    gpus = [Gpu(index=i, name=f"card {i}", uuid=f"GPU-{i}", free_bytes=n) for i, n in enumerate(free)]
    return Machine(gpus=gpus, host=Host(ram_available_bytes=2**33))


def test_the_device_is_the_gpu_with_most_free_memory_and_never_another_than_asked_for() -> None:
    assert device_for(machine(2**33, 2**35), None)[:3] == ("cuda", "card 1", "GPU-1")
    assert device_for(machine(2**33), "cpu").platform == "cpu"
    assert device_for(machine(), None).platform == "cpu"
    for device, code in (("cuda", "no-gpu"), ("tpu", "device-unknown")):
        with pytest.raises(HarnessError) as caught:
            device_for(machine(), device)
        assert caught.value.code == code


@pytest.mark.parametrize(("horizon", "dimensions"), [(1, 1), (3, 8), (50, 32)])
def test_plot_and_table_take_any_chunk(horizon: int, dimensions: int) -> None:
    chunk = np.random.default_rng(0).standard_normal((horizon, dimensions)).tolist()
    one = Prediction(
        checkpoint="c",
        step=None,
        dataset="sample",
        episode=0,
        frame=0,
        task="pick up the [red] bowl for $5",
        action_horizon=horizon,
        sampling_steps=1,
        seed=0,
        device="cpu",
        predicted=chunk,
        recorded=chunk,
        is_pad=[i > 1 for i in range(horizon)],
        mean_absolute_error=[0.0] * dimensions,
    )
    assert plot(one).startswith(b"\x89PNG")
    assert prediction_table(one).row_count == 2 * dimensions


def harness(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_verb_prints_the_artifact_and_writes_what_the_report_shows(run: Path, tmp_path: Path) -> None:
    done = harness(
        "predict", str(run), "--episode=1", "--frame=2", "--steps=2", "--json", "--run", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    printed = Prediction.model_validate_json(done.stdout)
    assert Prediction.model_validate_json((tmp_path / "prediction.json").read_text()) == printed
    assert (printed.episode, printed.frame) == (1, 2)
    assert (tmp_path / "predicted_actions.png").read_bytes().startswith(b"\x89PNG")
    assert "predicted_actions.png" in done.stderr
    page = render(RunDir(tmp_path))
    assert "episode 1, frame 2 of sample" in page
    # One panel a dimension of the actions, each with a line for what was recorded and one for what is
    # predicted.
    assert page.count("<polyline") == 2 * len(printed.predicted[0])


def test_the_verb_refuses_with_exit_code_2_and_writes_nothing(run: Path) -> None:
    before = sorted(path.name for path in run.iterdir())
    done = harness("predict", str(run), "--frame=10000")
    assert done.returncode == 2
    assert "[frame-out-of-range]" in done.stderr
    assert "fix:" in done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in run.iterdir()) == before
