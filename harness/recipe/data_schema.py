"""The part of the recipe's schema that says what is learned from: one dataset, or a mixture of several."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from harness.received.names import RelativeName
from harness.recipe.dimensions import Dimensions
from harness.recipe.episodes import Numbers, canonical
from harness.strict import Strict

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
Cameras = dict[Literal["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"], str | None]
# Keys of `Data` that came later. At their default they are left out of the written recipe and of its hash,
# which so stay what they were.
LATER: dict[str, Any] = {
    "relative": None,
    "adapt": None,
    "prompt": None,
    "episodes": None,
    "norm_stats": None,
}


class Part(Strict):
    """A part of a recipe. None of its numbers may be infinite or NaN.

    `LATER` has the keys that earlier versions did not have. At the value given there such a key is left out
    of every written form, so that the bytes and the hash of an earlier recipe stay what they were.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    LATER: ClassVar[dict[str, Any]] = {}

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later = self.LATER
        return {key: value for key, value in dump(self).items() if key not in later or value != later[key]}


class Episodes(Part):
    """The episodes that are trained on: those of `include` (null: all), less those of `exclude`.

    Each is a list of numbers and of ranges such as "3-7". `load_recipe` also takes one number, one range, or
    a file that holds them, and writes the numbers into the recipe.
    """

    include: Annotated[Numbers, BeforeValidator(canonical)] | None = None
    exclude: Annotated[Numbers, BeforeValidator(canonical)] = []


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
    - `asset_id`: the name of the statistics inside a checkpoint.
    - `episodes`: which of them are trained on; null: all.
    - `norm_stats`: a file of statistics, or "base" for those that lie in the assets of the checkpoint
      weights.source, under asset_id; null: computed from the data.
    """

    LATER = LATER

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
    def state_features(self) -> tuple[str, ...]:
        """The features that make up the state, in their order."""
        return (
            () if self.state is None else (self.state,) if isinstance(self.state, str) else tuple(self.state)
        )
