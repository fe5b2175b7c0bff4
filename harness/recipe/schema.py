"""The recipe's schema. A recipe says what is learned; a plan says how a machine carries it out.

A recipe is a YAML file; the shipped ones lie in `harness/recipe/`. The figures of the published recipe come
from openpi src/openpi/training/config.py (`pi05_libero`) and training/optimizer.py at commit 15a9616.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field, field_validator, model_validator

from harness.recipe.data_schema import CAMERAS, Data, Episodes, Part
from harness.recipe.holdout import Holdout
from harness.recipe.meaning import without_cadence
from harness.redact import holds_secret

__all__ = [
    "CAMERAS",
    "PALIGEMMA",
    "ActionDelay",
    "Data",
    "Episodes",
    "Expert",
    "Lora",
    "Model",
    "Optimizer",
    "Part",
    "Recipe",
    "Schedule",
    "Train",
    "Trained",
    "Weights",
]

# The file of the tokenizer "paligemma". Source: openpi src/openpi/models/tokenizer.py, commit 15a9616.
PALIGEMMA = "gs://big_vision/paligemma_tokenizer.model"

GemmaVariant = Literal["gemma_2b", "gemma_300m", "dummy"]
VisionVariant = Literal["So400m/14", "Ti/14", "mu/14"]
Trained = Literal["full", "lora", "lora_frozen_vision", "action_expert"]


class Lora(Part):
    """Low-rank adapters on attention and feed-forward of one expert. Their product is scaled by alpha / rank.

    Upstream omits that scale in the feed-forward; `scale_feed_forward: false` reproduces this. If alpha ==
    rank, as in all of upstream's configurations, there is no difference.
    """

    rank: int = Field(gt=0)
    alpha: float = Field(gt=0)
    scale_feed_forward: bool = True

    def feed_forward_scale(self) -> float:
        return self.alpha / self.rank if self.scale_feed_forward else 1.0


class Expert(Part):
    variant: GemmaVariant
    lora: Lora | None = None


class Model(Part):
    """π0.5's shape.

    The recipe pads prompts to `prompt_tokens`. A plan may compute fewer tokens, with the same result.

    `discrete_state_input` writes the state into the prompt, in 256 bins, as π0.5 was pre-trained. Otherwise
    the state does not enter the model.
    """

    LATER = frozenset({"discrete_state_input"})

    paligemma: Expert = Expert(variant="gemma_2b")
    action_expert: Expert = Expert(variant="gemma_300m")
    vision: VisionVariant = "So400m/14"
    vocab_size: int = Field(257_152, gt=0)
    image_size: int = Field(224, gt=0, multiple_of=14)
    action_dim: int = Field(32, gt=0)
    action_horizon: int = Field(10, gt=0)
    prompt_tokens: int = Field(200, gt=0)
    discrete_state_input: bool = False
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"


class Schedule(Part):
    """Learning rate: linear warm-up from peak / (warmup_steps + 1) to `peak`, then a cosine down to `end`.

    The cosine ends at step `decay_steps`, which counts from step 0.
    """

    warmup_steps: int = Field(ge=0)
    peak: float = Field(gt=0)
    decay_steps: int = Field(gt=0)
    end: float = Field(ge=0)

    @model_validator(mode="after")
    def _warms_up_before_the_end(self) -> Schedule:
        if self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps ({self.decay_steps}) counts from step 0 and must exceed warmup_steps"
                f" ({self.warmup_steps})"
            )
        return self


class Optimizer(Part):
    """AdamW after gradient clipping by global norm.

    `moments` is the storage type of Adam's two moments. Types other than float32 are approximate.
    """

    b1: float = Field(0.9, ge=0, lt=1)
    b2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-10, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    moments: Literal["float32", "bfloat16", "int8"] = "float32"
    schedule: Schedule


class Weights(Part):
    """The initial parameters.

    `source` is an openpi `params` directory (local, gs:// or https://), a local file or directory of
    safetensors of openpi's PyTorch trainer or of LeRobot, or null for random parameters.
    """

    source: str | None = None

    @field_validator("source")
    @classmethod
    def _no_password(cls, source: str | None) -> str | None:
        # The recipe is written into the run, its manifest and the report.
        if source is not None and "://" in source and "@" in source.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError(
                "the address holds a user name or password, which would be written into the run; give it"
                " without"
            )
        return source


class ActionDelay(Part):
    """The simulated delay of training-time real-time chunking.

    A delay d is drawn for each sample, uniform from 0 to `max`. The first d actions of its chunk are given
    clean, and the loss counts the others. Source: https://arxiv.org/abs/2512.05964.
    """

    max: int = Field(ge=0)


class Train(Part):
    """The training settings.

    `save: trained` leaves the frozen parameters out of checkpoints, and names the base weights instead.

    `frozen` other than bfloat16 (quantized) and `ema_every_steps` other than 1 are approximate: upstream does
    neither. `holdout` keeps episodes out of training, and measures on them at every save. `action_delay`
    gives the model the first actions of a chunk, as a robot that cannot wait does; null: none of them.
    """

    # Absent from the hash of earlier recipes, whose runs resume.
    LATER = frozenset({"holdout", "action_delay"})

    trained: Trained
    steps: int = Field(gt=0)
    global_batch: int = Field(gt=0)
    # JAX takes 32 bits of it: 2**32 would be the seed 0.
    seed: int = Field(42, ge=0, lt=2**32)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    ema_every_steps: int = Field(1, gt=0)
    frozen: Literal["bfloat16", "int8", "int4"] = "bfloat16"
    optimizer: Optimizer
    save_every_steps: int = Field(1_000, gt=0)
    keep_every_steps: int = Field(5_000, gt=0)
    log_every_steps: int = Field(1, gt=0)
    save: Literal["all", "trained"] = "all"
    holdout: Holdout | None = None
    action_delay: ActionDelay | None = None

    @field_validator("action_delay")
    @classmethod
    def _no_delay_in_one_way(cls, delay: ActionDelay | None) -> ActionDelay | None:
        # That nothing is delayed is said in one way, so that it has one hash.
        return None if delay == ActionDelay(max=0) else delay

    @property
    def most_delay(self) -> int:
        """The largest number of given actions that is trained; 0 if none are."""
        return 0 if self.action_delay is None else self.action_delay.max


class Recipe(Part):
    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$", max_length=100)
    description: str
    model: Model = Model()
    data: Data
    weights: Weights = Weights()
    train: Train

    @model_validator(mode="after")
    def _no_secret(self) -> Recipe:
        # The recipe is written into the run, its manifest, its checkpoints and the report. A run with a
        # redacted value could not be resumed.
        if holds_secret(self.model_dump_json()):
            raise ValueError(
                "a value is or holds a secret (a key, a signed or password-bearing address), which would be"
                " written into the run; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _adapters_match_who_is_trained(self) -> Recipe:
        has_lora = bool(self.model.paligemma.lora or self.model.action_expert.lora)
        if self.train.trained.startswith("lora") and not has_lora:
            raise ValueError(
                f"train.trained is {self.train.trained!r} but neither model.paligemma nor model.action_expert"
                " has a lora"
            )
        return self

    @model_validator(mode="after")
    def _what_is_left_out_can_be_found_again(self) -> Recipe:
        if self.train.save == "trained" and (self.weights.source is None or self.train.trained == "full"):
            raise ValueError(
                "train.save is 'trained', which needs weights.source (the frozen parameters are read from"
                " there) and frozen parameters"
            )
        return self

    @model_validator(mode="after")
    def _a_chunk_is_longer_than_its_delay(self) -> Recipe:
        if self.train.most_delay >= self.model.action_horizon:
            raise ValueError(
                f"train.action_delay.max is {self.train.most_delay}, which leaves nothing to learn of a chunk"
                f" of model.action_horizon {self.model.action_horizon}: give at most"
                f" {self.model.action_horizon - 1}"
            )
        return self

    def parts(self) -> list[Recipe]:
        """The recipe of each dataset of a mixture alone; of one dataset: itself."""
        if self.data.datasets is None:
            return [self]
        return [self.model_copy(update={"data": data}) for data in self.data.parts()]

    def sha256(self) -> str:
        """Hash of all keys that change what a step learns.

        These are the keys that recipe/meaning.py does not call cadence.
        """
        body = without_cadence(self.model_dump(mode="json"))
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
