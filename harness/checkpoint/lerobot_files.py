"""The files of a LeRobot policy beside its weights: config.json, both processor pipelines, their statistics.

LeRobot's own pipeline for pi05 makes the prompt "Task: …, State: …;\\nAction: ", with the state as digits.
That is model.discrete_state_input. Weights that were trained without it got the prompt "…\\n". Under the
other prompt they act otherwise, and nothing says so. So the pipeline that is written here makes the prompt
of the training. data.relative becomes LeRobot's steps for relative and absolute actions.

Source: lerobot src/lerobot/policies/pi05/{configuration,processor}_pi05.py, processor/pipeline.py
`_save_pretrained`, processor/{normalize,relative_action}_processor.py, commit 7427f31.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifacts import DimensionStats
from harness.checkpoint.expressed import width
from harness.checkpoint.policy import RELATIVE_STEP, STATE_STEP
from harness.checkpoint.pytorch import POLICY_CONFIG
from harness.checkpoint.tensor_writer import Dtype, Planned, write_tensors
from harness.recipe.dimensions import numbers_of
from harness.recipe.schema import CAMERAS, Recipe
from harness.run.directory import write_atomic

_STATE, _ACTION, _IMAGES = "observation.state", "action", "observation.images."
_TOKENIZER = "google/paligemma-3b-pt-224"
_MODES = {"quantile": "QUANTILES", "zscore": "MEAN_STD"}
_STATISTICS = ("mean", "std", "q01", "q99", "min", "max")
# LeRobot divides by q99 - q01, openpi and this harness by q99 - q01 + 1e-6. So that a state gets the same bin
# and an action the same number, what is written as q99 is larger by that. LeRobot's eps stands where the two
# are equal, and with the standard deviation.
QUANTILE_SHIFT = 1e-6
# An action's name, for LeRobot's mask of relative actions: it excludes names that contain a word.
_ABSOLUTE = "absolute"
Stats = Mapping[str, DimensionStats]


def write_policy_files(directory: Path, recipe: Recipe, stats: Stats, dtype: Dtype) -> list[str]:
    """Names of the files that were written to `directory` for a policy trained by `recipe`.

    `stats` has the statistics of the actions, and of the state if there are some.
    Raises: HarnessError "disk-full", "not-writable".
    """
    inputs, outputs = features(recipe, stats)
    modes = {"VISUAL": "IDENTITY", "STATE": _MODES[recipe.data.normalization]}
    modes["ACTION"] = modes["STATE"]
    model, joints = recipe.model, _joints(recipe, outputs[_ACTION]["shape"][0])
    config = {
        "type": "pi05",
        "n_obs_steps": 1,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": modes,
        "paligemma_variant": model.paligemma.variant,
        "action_expert_variant": model.action_expert.variant,
        "dtype": dtype,
        "chunk_size": model.action_horizon,
        # The state of the present frame is added to actions that select_action queued at an earlier one. With
        # relative actions only a queue of one action is right.
        "n_action_steps": 1 if joints else model.action_horizon,
        "max_state_dim": model.action_dim,
        "max_action_dim": model.action_dim,
        "image_resolution": [model.image_size, model.image_size],
        "tokenizer_max_length": model.prompt_tokens,
    }
    if joints is not None:
        config |= {
            "use_relative_actions": True,
            "relative_exclude_joints": joints["exclude_joints"],
            "action_feature_names": joints["action_names"],
        }
    if recipe.train.most_delay:
        # Both draw delays uniformly, and both give clean actions the flow time 0. Only where it is set:
        # earlier versions of LeRobot read no configuration that has the key.
        config["rtc_training_max_delay"] = recipe.train.most_delay
    _write_json(directory / POLICY_CONFIG, config)
    before, after = _pipelines(recipe, inputs, outputs, modes, joints)
    names = [POLICY_CONFIG]
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        names += _write_pipeline(directory, name, steps, stats)
    return names


def _pipelines(
    recipe: Recipe,
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    modes: dict[str, str],
    joints: dict[str, Any] | None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The steps (before the model, after it), in openpi's order: relative, normalized, model, and back."""
    model = recipe.model
    normalize = {"eps": QUANTILE_SHIFT, "features": inputs | outputs, "norm_map": modes}
    before = [
        _step("rename_observations_processor", {"rename_map": {}}),
        _step("to_batch_processor", {}),
        *([] if joints is None else [_step(RELATIVE_STEP, {"enabled": True, **joints})]),
        _step("normalizer_processor", normalize),
        _prompt_step(recipe, inputs),
        _step(
            "tokenizer_processor",
            {
                "max_length": model.prompt_tokens,
                "task_key": "task",
                "padding_side": "right",
                "padding": "max_length",
                "truncation": True,
                "tokenizer_name": _TOKENIZER,
            },
        ),
        _step("device_processor", {"device": "cpu", "float_dtype": None}),
    ]
    after = [
        _step("unnormalizer_processor", normalize | {"features": outputs}),
        *([] if joints is None else [_step("absolute_actions_processor", {"enabled": True})]),
        _step("device_processor", {"device": "cpu", "float_dtype": None}),
    ]
    return before, after


def _prompt_step(recipe: Recipe, inputs: dict[str, Any]) -> dict[str, Any]:
    """The step that makes the prompt of the training."""
    if not recipe.model.discrete_state_input:
        # Ends the task with a line break, as openpi's tokenizer does for a prompt without a state.
        return _step("smolvla_new_line_processor", {})
    # Earlier versions pad the state with zeros up to this width. The training did not pad it.
    width = inputs[_STATE]["shape"][0]
    return _step(STATE_STEP, {"max_state_dim": width, "task_key": "task"})


def _joints(recipe: Recipe, width: int) -> dict[str, Any] | None:
    """LeRobot's mask of relative actions, by names of the dimensions; None if no dimension is relative."""
    numbers = numbers_of(recipe.parts()[0].data.relative)
    if not numbers:
        return None
    names = [f"action_{n}_{'relative' if n in numbers else _ABSOLUTE}" for n in range(width)]
    return {"exclude_joints": [_ABSOLUTE] if len(numbers) < width else [], "action_names": names}


def features(recipe: Recipe, stats: Stats) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs, outputs) by LeRobot's names. Cameras stand in the model's order, which LeRobot keeps."""
    size = recipe.model.image_size
    named = dict(recipe.data.cameras)
    cameras = [name for camera in CAMERAS if (name := named[camera])]  # type: ignore[index]
    inputs: dict[str, Any] = {
        lerobot_name(name): {"type": "VISUAL", "shape": [3, size, size]} for name in cameras
    }
    if "state" in stats:
        inputs[_STATE] = {"type": "STATE", "shape": [width(stats["state"])]}
    return inputs, {_ACTION: {"type": "ACTION", "shape": [width(stats["actions"])]}}


def lerobot_name(feature: str) -> str:
    """The name by which LeRobot's pipelines know a camera: they see only what begins with `observation.`."""
    return feature if feature.startswith("observation.") else f"{_IMAGES}{feature}"


def _step(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"registry_name": name, "config": config}


def _write_pipeline(directory: Path, name: str, steps: list[dict[str, Any]], stats: Stats) -> list[str]:
    """Names of the pipeline's files."""
    names = [f"{name}.json"]
    for number, step in enumerate(steps):
        if "norm_map" in step["config"]:
            file = f"{name}_step_{number}_{step['registry_name']}.safetensors"
            step["state_file"] = file
            _write_statistics(directory / file, stats)
            names.append(file)
    _write_json(directory / f"{name}.json", {"name": name, "steps": steps})
    return names


def _write_statistics(path: Path, stats: Stats) -> None:
    tensors = {
        f"{_ACTION if key == 'actions' else _STATE}.{statistic}": np.asarray(
            np.asarray(values, np.float64) + (QUANTILE_SHIFT if statistic == "q99" else 0), np.float32
        )
        for key, one in stats.items()
        for statistic in _STATISTICS
        if (values := getattr(one, statistic))
    }
    planned = [Planned(name, array.shape, "float32") for name, array in tensors.items()]
    write_tensors(path, planned, tensors.items())


def _write_json(path: Path, body: Any) -> None:
    write_atomic(path, json.dumps(body, indent=2) + "\n")
