"""openpi's side of openpi_inputs.py: its transforms on given frames.

    ENV/bin/python openpi_inputs_upstream.py SCRATCH

openpi's own interpreter runs it, where the harness is not installed. It writes found.npz.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import sys
import types
from typing import Any

import numpy as np

for _name in (
    "lerobot",
    "lerobot.common",
    "lerobot.common.datasets",
    "lerobot.common.datasets.lerobot_dataset",
):
    try:
        __import__(_name)
    except ImportError:
        sys.modules[_name] = types.ModuleType(_name)


def main() -> None:
    scratch = pathlib.Path(sys.argv[1])
    job = json.loads((scratch / "job.json").read_text())
    import openpi.models.tokenizer as tokenizers

    tokenizers.download.maybe_download = lambda *_, **__: pathlib.Path(job["tokenizer"])
    found: dict[str, Any] = {}
    for case, (robot, name, options) in job["cases"].items():
        frames = dict(np.load(scratch / f"{robot}.npz"))
        for key, value in inputs(config_of(name, options), frames, job["index"]).items():
            found[f"{case}/{key}"] = value
    np.savez(scratch / "found.npz", **found)


def config_of(name: str, options: list[str]) -> Any:
    """The configuration, read as upstream's own command line reads it."""
    import openpi.training.config as configs

    sys.argv = ["train.py", name, "--exp-name", "made", *options]
    return configs.cli()


def inputs(config: Any, frames: dict[str, np.ndarray], index: list[int]) -> dict[str, Any]:
    """The model's inputs at `index`, and the exact statistics of all frames before normalization."""
    from openpi import transforms

    # The statistics are those of the frames; nothing is fetched.
    factory = dataclasses.replace(config.data, assets=type(config.data.assets)())
    data = factory.create(pathlib.Path("/nothing"), config.model)
    before = transforms.compose([*data.repack_transforms.inputs, *data.data_transforms.inputs])
    horizon = config.model.action_horizon

    def seen(i: int) -> dict[str, Any]:
        return before(item(config, data, frames, i, horizon))

    count = int(frames["lengths"].sum())
    # As compute_norm_stats.py: the loader gives float32.
    whole = [
        {key: np.asarray(seen(i)[key], np.float32) for key in ("state", "actions")} for i in range(count)
    ]
    values = {
        key: np.concatenate([one[key].reshape(-1, one[key].shape[-1]) for one in whole])
        for key in ("state", "actions")
    }
    stats = {key: exact(value) for key, value in values.items()}
    after = transforms.compose(
        [
            transforms.Normalize(stats, use_quantiles=data.use_quantile_norm),
            *data.model_transforms.inputs,
        ]
    )
    found = [after(seen(i)) for i in index]
    kept: dict[str, Any] = {
        "state": np.stack([np.asarray(one["state"], np.float32) for one in found]),
        "actions": np.stack([np.asarray(one["actions"], np.float32) for one in found]),
        "tokens": np.stack([one["tokenized_prompt"] for one in found]).astype(np.int32),
        "token_mask": np.stack([one["tokenized_prompt_mask"] for one in found]),
    }
    for camera in found[0]["image"]:
        pictures = [np.asarray(one["image"][camera]) for one in found]
        assert all(picture.dtype == np.uint8 and picture.shape == (224, 224, 3) for picture in pictures)
        kept[f"image_sha256/{camera}"] = np.array(
            [hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest() for picture in pictures]
        )
        kept[f"image_mask/{camera}"] = np.array([bool(one["image_mask"][camera]) for one in found])
    for key, value in stats.items():
        running = upstream_statistics(values[key])
        for name in ("mean", "std", "q01", "q99"):
            kept[f"stats/{key}/{name}"] = getattr(value, name)
            kept[f"running/{key}/{name}"] = getattr(running, name)
        # How far upstream's quantiles may lie from exact ones: a bin of its histogram, a gap between rows.
        wide = (values[key].max(axis=0) - values[key].min(axis=0)) / 5000
        for name, share in (("q01", 0.01), ("q99", 0.99)):
            low, high = (np.quantile(values[key], share, axis=0, method=side) for side in ("lower", "higher"))
            kept[f"running/{key}/{name}_within"] = high - low + wide
    return kept | policy_outputs(data, stats, found)


def policy_outputs(data: Any, stats: Any, found: list[Any]) -> dict[str, Any]:
    """What upstream's policy gives back for the normalized actions, as Policy.infer does."""
    from openpi import transforms

    back = transforms.compose(
        [
            *data.model_transforms.outputs,
            transforms.Unnormalize(stats, use_quantiles=data.use_quantile_norm),
            *data.data_transforms.outputs,
        ]
    )
    outputs = [
        back({key: np.asarray(one[key], np.float32) for key in ("state", "actions")})["actions"]
        for one in found
    ]
    return {"outputs": np.stack(outputs).astype(np.float32)}


def exact(values: np.ndarray) -> Any:
    """The exact statistics of rows [N, D], in upstream's form."""
    from openpi.shared import normalize

    wide = values.astype(np.float64)
    return normalize.NormStats(
        mean=wide.mean(axis=0),
        std=wide.std(axis=0),
        q01=np.quantile(wide, 0.01, axis=0),
        q99=np.quantile(wide, 0.99, axis=0),
    )


def upstream_statistics(values: np.ndarray) -> Any:
    """What upstream's own running statistics make of all rows in one batch."""
    from openpi.shared import normalize

    running = normalize.RunningStats()
    running.update(values)
    return running.get_statistics()


def item(config: Any, data: Any, frames: dict[str, np.ndarray], i: int, horizon: int) -> dict[str, Any]:
    """A frame as the configuration's own reader gives it."""
    import torch

    ends = np.cumsum(frames["lengths"])
    episode = int(np.searchsorted(ends, i, side="right"))
    rows = np.minimum(np.arange(i, i + horizon), ends[episode] - 1)
    task = str(frames["tasks"][episode])
    actions = next(name for name in frames if name in ("vector/action", "vector/actions"))
    if type(config.data).__name__ == "RLDSDroidDataConfig":
        return {
            "actions": frames[actions][rows],
            "observation": {
                "image": frames["camera/exterior_image_1_left"][i],
                "wrist_image": frames["camera/wrist_image_left"][i],
                "joint_position": frames["vector/joint_position"][i],
                "gripper_position": frames["vector/gripper_position"][i],
            },
            "prompt": task.encode(),
        }
    # LeRobot's reader: tensors, pictures as channels first in [0, 1], one number without an axis.
    found: dict[str, Any] = {
        name.removeprefix("camera/"): torch.from_numpy(value[i]).permute(2, 0, 1).to(torch.float32).div(255)
        for name, value in frames.items()
        if name.startswith("camera/")
    }
    for name, value in frames.items():
        if name.startswith("vector/"):
            own = value[rows] if name == actions else value[i]
            found[name.removeprefix("vector/")] = torch.from_numpy(own.copy()).squeeze()
    found["task_index"] = torch.tensor(episode)
    if data.prompt_from_task:
        from openpi import transforms

        tasks = {n: str(text) for n, text in enumerate(frames["tasks"])}
        return transforms.PromptFromLeRobotTask(tasks)(found)
    return found


if __name__ == "__main__":
    main()
