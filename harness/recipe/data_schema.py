"""The part of the recipe's schema that says what is learned from: one dataset, or a mixture of several."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness.received.names import RelativeName
from harness.recipe.dimensions import Dimensions
from harness.recipe.episodes import Numbers, canonical
from harness.strict import Later

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
# More than any mixture that was published.
MOST_DATASETS = 1_000
Cameras = dict[Literal["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"], str | None]


class Part(Later):
    """A part of a recipe. None of its numbers may be infinite or NaN, or a yes or no."""

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, which would be the number 1.
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError(f"{str(value).lower()} (yes or no, on or off) is no number")
        return value


class Episodes(Part):
    """The episodes that are trained on: those of `include` (null: all), less those of `exclude`.

    Each is a list of numbers and of ranges such as "3-7". `load_recipe` also takes one number, one range, or
    a file that holds them, and writes the numbers into the recipe.
    """

    include: Annotated[Numbers, BeforeValidator(canonical)] | None = None
    exclude: Annotated[Numbers, BeforeValidator(canonical)] = []


class Member(Part):
    """One dataset of a mixture. What it does not say is as `data` says it.

    - `weight`: its share of the samples that are drawn, beside the weights of the others. Without weights
      every frame is drawn equally often.
    """

    # A null of the others is written: left out, they would be those of `data`.
    LATER = frozenset({"episodes"})

    dataset: str
    revision: str | None = None
    weight: float | None = Field(None, gt=0)
    cameras: Cameras
    state: str | list[str] | None
    actions: str
    relative: Dimensions = None
    adapt: Literal["aloha"] | None = None
    prompt: str | None = Field(None, min_length=1, max_length=64 * 1024)
    default_prompt: str | None = Field(None, min_length=1, max_length=64 * 1024)
    episodes: Episodes | None = None


# What a dataset of a mixture takes from `data`, unless it says otherwise.
_INHERITED = ("cameras", "state", "actions", "relative", "adapt", "prompt", "default_prompt")
# What `data.dataset` is if there are several.
MIXTURE = "mixture"


class Data(Part):
    """The source of the samples, and the mapping from columns to inputs.

    - `dataset`: "sample" (the one inside the package), a directory, or a hub id.
    - `cameras`: maps each camera of the model to a feature of the dataset, or to null. An absent camera is
      masked, and a plan need not compute it.
    - `state`: a feature, a list of features that are put one after the other, or null. It enters the model
      if model.discrete_state_input says so; otherwise only its statistics are kept beside the weights.
    - `relative`: the action dimensions that become differences to the state of the chunk's first frame, such
      as [0-5, 7-12]. The others stay as recorded.
    - `adapt`: "aloha" turns ALOHA's joints and grippers into those of the robot that π0.5 was pre-trained on.
    - `prompt`: one instruction for all frames, instead of those of their tasks.
    - `default_prompt`: the instruction of frames whose task has none.
    - `datasets`: several datasets that are mixed, instead of `dataset`; each may map its own features.
    - `asset_id`: the name of the statistics inside a checkpoint.
    - `episodes`: which of them are trained on; null: all.
    - `norm_stats`: a file of statistics, or "base" for those that lie in the assets of the checkpoint
      weights.source, under asset_id; null: computed from the data.
    """

    LATER = frozenset({"relative", "adapt", "prompt", "default_prompt", "episodes", "norm_stats", "datasets"})

    dataset: str
    revision: str | None = None
    asset_id: RelativeName
    cameras: Cameras
    state: str | list[str] | None = "state"
    actions: str = "actions"
    relative: Dimensions = None
    adapt: Literal["aloha"] | None = None
    prompt: str | None = Field(None, min_length=1, max_length=64 * 1024)
    tokenizer: str = "paligemma"
    normalization: Literal["quantile", "zscore"] = "quantile"
    degenerate_dimensions: Literal["error", "warn", "pass_through"] = "warn"
    augment: bool = True
    episodes: Episodes | None = None
    norm_stats: str | None = None
    default_prompt: str | None = Field(None, min_length=1, max_length=64 * 1024)
    datasets: list[Member] | None = Field(None, min_length=1, max_length=MOST_DATASETS)
    # Where a recipe says this: at `data`, or at one of its datasets.
    _key: str = PrivateAttr("data")

    @model_validator(mode="before")
    @classmethod
    def _of_each_dataset(cls, data: Any) -> Any:
        """Gives each dataset of a mixture what it takes from `data`, and `data` what all have together."""
        if not isinstance(data, dict) or not isinstance(data.get("datasets"), list):
            return data
        whole = [key for key in ("revision", "episodes") if data.get(key) is not None]
        if data.get("dataset") not in (None, MIXTURE):
            raise ValueError("data.dataset and data.datasets both say what is learned from: give one of them")
        if whole:
            raise ValueError(
                f"data.{whole[0]} belongs to one dataset: give data.datasets.0.{whole[0]} instead, and so on"
            )
        own = {key: data[key] for key in _INHERITED if key in data}
        defaults = {"state": "state", "actions": "actions"} | own
        members = [defaults | each if isinstance(each, dict) else each for each in data["datasets"]]
        return data | {"dataset": MIXTURE, "datasets": members} | _together(members)

    @field_validator("datasets")
    @classmethod
    def _each_once_and_weighted_alike(cls, members: list[Member] | None) -> list[Member] | None:
        names = [member.dataset.partition("@")[0].rstrip("/") for member in members or []]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is named twice: give it one entry, with a weight")
        with_weight = [member.weight is not None for member in members or []]
        if any(with_weight) and not all(with_weight):
            lacking = with_weight.index(False)
            raise ValueError(
                f"data.datasets.{lacking} has no weight, others have: give all of them one, or none"
            )
        return members

    @field_validator("episodes")
    @classmethod
    def _all_of_them(cls, episodes: Episodes | None) -> Episodes | None:
        # That nothing is left out is said in one way, so that it has one hash.
        return None if episodes == Episodes() else episodes

    @model_validator(mode="after")
    def _all_cameras(self) -> Data:
        missing = [name for name in CAMERAS if name not in self.cameras]
        if missing:
            raise ValueError(
                f"cameras lacks {', '.join(missing)} (give a feature name, or null for an absent camera)"
            )
        if not any(self.cameras.values()):
            raise ValueError("cameras: at least one must name a feature of the dataset")
        return self

    @field_validator("state")
    @classmethod
    def _one_feature_is_no_list(cls, state: str | list[str] | None) -> str | list[str] | None:
        if isinstance(state, list) and (not state or len(set(state)) < len(state)):
            raise ValueError("state: a list names one or more features, each once")
        return state[0] if isinstance(state, list) and len(state) == 1 else state

    @property
    def key(self) -> str:
        """The key of a recipe that says this: "data", or "data.datasets.0" and so on."""
        return self._key

    def parts(self) -> list[Data]:
        """The data of each dataset, as a recipe of it alone would say it; of one dataset: itself."""
        if self.datasets is None:
            return [self]
        parts = []
        for n, member in enumerate(self.datasets):
            said = {name: getattr(member, name) for name in Member.model_fields if name != "weight"}
            part = self.model_copy(update=said | {"datasets": None})
            part._key = f"data.datasets.{n}"
            parts.append(part)
        return parts

    def away(self) -> list[Data]:
        """Those of `parts` whose dataset is not on this machine. It may be in the hub's cache."""
        return [
            part
            for part in self.parts()
            if part.dataset != "sample" and not os.path.isdir(os.path.expanduser(part.dataset))
        ]

    @property
    def some_lack_a_camera(self) -> bool:
        """True if a camera of the model is absent in some datasets of a mixture and not in others."""
        seen = [{name for name, feature in part.cameras.items() if feature} for part in self.parts()]
        return any(each != seen[0] for each in seen)

    @property
    def state_features(self) -> tuple[str, ...]:
        """The features that make up the state, in their order."""
        return (
            () if self.state is None else (self.state,) if isinstance(self.state, str) else tuple(self.state)
        )


def _together(members: list[Any]) -> dict[str, Any]:
    """What `data` says of all datasets of a mixture: each camera that one of them has, a state, actions."""
    said = [each for each in members if isinstance(each, dict)]
    maps = [each["cameras"] for each in said if isinstance(each.get("cameras"), dict)]
    cameras = {
        camera: next((one[camera] for one in maps if one.get(camera)), None)
        for camera in CAMERAS
        if any(camera in one for one in maps)
    }
    states = [each.get("state") for each in said]
    found = {"cameras": cameras, "state": next((state for state in states if state is not None), None)}
    return found | ({"actions": said[0].get("actions")} if said else {})
