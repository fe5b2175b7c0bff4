"""What openpi's readers of datasets take from them and do with it, in the words of a recipe. No JAX.

Source: openpi src/openpi/training/config.py (`LeRobotLiberoDataConfig`, `LeRobotAlohaDataConfig`,
`LeRobotDROIDDataConfig`, `RLDSDroidDataConfig`), policies/{aloha,droid,libero}_policy.py and
training/droid_rlds_dataset.py, commit 15a9616.
"""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple

from harness.openpi.options import Command, is_required
from harness.received.names import why_no_name

_LIBERO, _ALOHA = "LeRobotLiberoDataConfig", "LeRobotAlohaDataConfig"
_DROID, _DROID_RLDS = "LeRobotDROIDDataConfig", "RLDSDroidDataConfig"
# Upstream's name of a picture → the model's.
_ALOHA_CAMERAS = {
    "base_0_rgb": "cam_high",
    "left_wrist_0_rgb": "cam_left_wrist",
    "right_wrist_0_rgb": "cam_right_wrist",
}
# The features that upstream's converter writes: examples/droid/convert_droid_data_to_lerobot.py.
_DROID_FEATURES: dict[str, Any] = {
    "cameras": {
        "base_0_rgb": "exterior_image_1_left",
        "left_wrist_0_rgb": "wrist_image_left",
        "right_wrist_0_rgb": None,
    },
    "state": ["joint_position", "gripper_position"],
    "actions": "actions",
}


class Differs(NamedTuple):
    """What a recipe's data have otherwise than the command's, and what can be done about it."""

    text: str
    fix: str


class Read(NamedTuple):
    """What a command's reader does.

    `data` are keys of a recipe's data. `lost` says what no recipe can do, `differs` what one does otherwise.
    """

    data: dict[str, Any]
    lost: list[str]
    differs: list[Differs]


def read_by(command: Command) -> Read:
    """What the command's reader takes and does."""
    options, reader = command.effective, command.config.data
    dataset = options.get("data.repo-id")
    if reader == _DROID_RLDS and is_required(dataset):
        dataset = "droid"
    asset = str(options.get("data.assets.asset-id") or dataset)
    name = _name_below(asset)
    data = {"dataset": str(dataset), "asset_id": name, "norm_stats": _statistics(options, asset)}
    read = _read(command, data)
    return read if name == asset else read._replace(differs=[*read.differs, _leads_out(asset, name)])


def _read(command: Command, data: dict[str, Any]) -> Read:
    options, reader = command.effective, command.config.data
    if reader == _LIBERO:
        relative = "0-5" if options.get("data.extra-delta-transform") else None
        return Read(data | {"relative": relative}, [], [])
    if reader == _ALOHA:
        return _aloha(command, data)
    if reader == _DROID:
        return Read(data | _DROID_FEATURES, [], [])
    if reader == _DROID_RLDS:
        return _droid_rlds(command, data)
    return Read(data, [_why_not(command)], [])


def _name_below(asset: str) -> str:
    """`asset`, or its last part if it leads out of a checkpoint: a path to a dataset is an asset id too."""
    parts = asset.split("/")
    if not asset.startswith("/") and ".." not in parts:
        return asset
    return next((part for part in reversed(parts) if why_no_name(part) is None), "dataset")


def _leads_out(asset: str, name: str) -> Differs:
    return Differs(
        f"openpi keeps the statistics of {asset!r} at that path, and none in its checkpoints: its asset id"
        f" leads out of them; the recipe keeps them beside the weights, as {name!r}",
        f"--data.assets.asset-id {shlex.quote(name)} has openpi keep them in its checkpoints, and look for"
        " them under that name",
    )


def _statistics(options: dict[str, Any], asset: str) -> str | None:
    """Where the statistics come from, if the command names an assets directory; else from the data."""
    assets, weights = options.get("data.assets.assets-dir"), options.get("weight-loader.params-path")
    if assets is None:
        return None
    if asset.startswith("/"):
        return asset
    home = str(assets).rstrip("/")
    if weights is not None and home == f"{str(weights).rstrip('/').removesuffix('/params')}/assets":
        return "base"
    return f"{home}/{asset}"


def _aloha(command: Command, data: dict[str, Any]) -> Read:
    options, repack = command.effective, command.config.repack or {}
    views = repack.get("images", {})
    data |= {
        "cameras": {camera: views.get(view) for camera, view in _ALOHA_CAMERAS.items()},
        "state": repack.get("state"),
        "actions": repack.get("actions"),
        "relative": "0-5,7-12" if options["data.use-delta-joint-actions"] else None,
        "adapt": "aloha" if options["data.adapt-to-pi"] else None,
        "prompt": options.get("data.default-prompt"),
    }
    lost = []
    if is_required(options.get("data.repo-id")):
        lost.append("no dataset is named (--data.repo-id), without which openpi does not start")
    if data["prompt"] is None:
        lost.append(
            "no prompt is given (--data.default-prompt): this reader drops those of the dataset, and openpi"
            " stops at the first frame"
        )
    if options["data.action-sequence-keys"] != command.config.defaults["data.action-sequence-keys"]:
        lost.append(
            "other features are read as chunks (--data.action-sequence-keys) than its actions are taken from"
        )
    return Read(data, lost, [])


def _droid_rlds(command: Command, data: dict[str, Any]) -> Read:
    options = command.effective
    # Upstream has one test for both: whatever is not this, also None, is velocities as they are recorded.
    positions = options["data.action-space"] == "JOINT_POSITION"
    actions = "joint positions" if positions else "joint velocities"
    differs = [
        Differs(
            "openpi reads DROID in RLDS form; the recipe reads a LeRobot dataset with the features of"
            f" openpi's converter, and with {actions} and the gripper's position as actions",
            "--dataset DIR with the recipe names that dataset",
        ),
        Differs(
            "openpi draws one of two outside cameras and one of three instructions for each episode; the"
            " recipe has exterior_image_1_left and the dataset's instruction",
            "--set data.cameras.base_0_rgb=exterior_image_2_left takes the other camera",
        ),
        Differs(
            "openpi leaves out unsuccessful episodes, and frames in which the robot stands"
            " (filter_dict_path); the recipe trains on all that the dataset has",
            "--set data.episodes.exclude=FILE leaves episodes out; single frames are left out when the"
            " dataset is converted",
        ),
    ]
    if "data.datasets.1.name" in options:
        differs.append(
            Differs(
                "openpi draws from several weighted datasets; the recipe has one",
                "data.datasets in the recipe, with their weights (docs/mixtures.md)",
            )
        )
    return Read(data | _DROID_FEATURES | {"relative": "0-6" if positions else None}, [], differs)


def _why_not(command: Command) -> str:
    if command.config.data == "FakeDataConfig":
        return "it trains on random numbers (FakeDataConfig), for which no dataset stands"
    return (
        f"{command.name} is a configuration for inference: its reader ({command.config.data}) asks for"
        " features whose names no LeRobot dataset may have; pi05_droid_finetune trains on DROID"
    )
