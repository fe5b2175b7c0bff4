"""manifest.json and the lines of metrics.jsonl."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from harness.artifacts.base import Artifact
from harness.artifacts.dataset import Dataset, Given, LeftOut
from harness.artifacts.plan import Backend, Candidate
from harness.strict import Later, Strict


class Upstream(Strict):
    """openpi's own trainer, if it is the one that trains.

    `commit` is the checkout's, "unknown" where nothing tells. `pinned` is the commit that the harness knows.

    `unlike_lock` are packages of another version than in openpi's lock. `notes` state other departures from
    upstream, and effects of openpi's own resume on the run, such as batches that were seen again.
    """

    commit: str
    pinned: str
    unlike_lock: list[str] = []
    notes: list[str] = []


class Distance(Strict):
    """One key in which the recipe differs from the published one, and the consequence for the run."""

    key: str
    published: Any
    here: Any
    weight: str
    why: str


class Used(Strict):
    """A dataset that the run learns from: its identity, what of it is trained on, and what is not."""

    source: str
    revision: str | None
    sha256: str
    episodes: int
    frames: int
    left_out: LeftOut | None = None
    held_out: list[int] = []
    share: int = 1


def used(dataset: Dataset) -> list[Used]:
    """The data of a run, for its manifest: each dataset of a mixture with its share of the samples."""
    return [
        Used(
            source=each.source,
            revision=each.revision,
            sha256=each.sha256,
            episodes=each.episodes,
            frames=each.frames,
            left_out=each.left_out,
            held_out=each.held_out,
            share=share,
        )
        for each, share in zip(dataset.parts, dataset.shares or [1], strict=True)
    ]


class _Digest(BaseModel):
    """A manifest's entry for a file of weights. Later versions may add keys."""

    model_config = ConfigDict(extra="allow")
    sha256: str


class _Weights(BaseModel):
    """The part of a manifest's `weights` that the harness computes with."""

    model_config = ConfigDict(extra="allow")
    source: str | None = None
    files: dict[str, _Digest] = {}
    leaves: dict[str, str] | None = None


class _Train(BaseModel):
    model_config = ConfigDict(extra="allow")
    steps: int | None = None


class _Start(BaseModel):
    model_config = ConfigDict(extra="allow")
    source: str | None = None


class _Recipe(BaseModel):
    """The part of a manifest's recipe that is read even if another version of the harness wrote it."""

    model_config = ConfigDict(extra="allow")
    name: str | None = None
    train: _Train
    weights: _Start | None = None


def _like(form: type[BaseModel]) -> AfterValidator:
    """A validator that a mapping has the form. The value stays a mapping with all its keys."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        form.model_validate(value)
        return value

    return AfterValidator(check)


class Manifest(Artifact, Later):
    """The identity of a run, written before step 0.

    `weights` is where the first state came from: source, sha256 of its files, and `leaves`, the sha256 of
    every array that training starts from. `environment` holds the variables that change what is computed; a
    list of names selects them, so no secret is included. `image_id` is the engine's. `image_digest` is over
    the image's packages (`harness.run.surroundings.image_digest`). `image_content` is over all that the image
    holds (`harness.image.contents`); `image_parts` has a value for each of its packages and files, so that a
    difference has a name; `image_environment` holds the variables that were not as the image sets them.
    `machine` is what it ran on.
    `step_fingerprint` is a hash of the program as handed to XLA. `executable_fingerprint` is a hash of what
    XLA compiled from it for this device with these flags. `kernels_sha256` is the hash of the kernels that
    autotuning chose, on a GPU. `published` is the recipe's distance from the published one. `upstream` is
    None when the harness itself trains. Otherwise packages, lock and Python are those of openpi's
    environment, and the harness has no compiled program of its own. `datasets` are the data that it learns
    from; manifests of older versions have none. `norm_stats_given` is the file of statistics that the recipe
    gives. `held_out` are the episodes kept out of training; None if none are, or if a mixture's `datasets`
    name them. `hosts` has, of a run of several processes, the facts of each one's machine by its number; it
    is written only there. `unknown` says why a field is None.
    """

    FILE: ClassVar[str] = "manifest.json"
    RECORDED: ClassVar[bool] = True
    LATER: ClassVar[frozenset[str]] = frozenset({"hosts"})
    run: str
    created: str
    recipe: Annotated[dict[str, Any], _like(_Recipe)]
    recipe_sha256: str
    plan: Candidate
    dataset_sha256: str
    dataset_revision: str | None
    norm_stats_sha256: str
    held_out: list[int] | None = None
    parameters_total: int
    parameters_trained: int
    weights: Annotated[dict[str, Any], _like(_Weights)]
    source_revision: str | None
    lock_sha256: str | None
    image: str | None
    image_id: str | None = None
    image_digest: str | None = None
    base_digest: str | None = None
    image_content: str | None = None
    image_parts: dict[str, str] | None = None
    image_environment: dict[str, str] | None = None
    source_sha256: str | None = None
    source_dirty: bool | None = None
    packages: dict[str, str]
    packages_sha256: str | None = None
    python: str
    environment: dict[str, str] = {}
    machine: dict[str, Any] = {}
    device: str
    step_fingerprint: str | None
    executable_fingerprint: str | None = None
    kernels_sha256: str | None = None
    compiled_bytes: dict[str, int]
    published: list[Distance] = []
    upstream: Upstream | None = None
    datasets: list[Used] = []
    norm_stats_given: Given | None = None
    hosts: dict[str, dict[str, Any]] = {}
    unknown: dict[str, str] = {}

    @property
    def held_out_count(self) -> int:
        """The number of episodes that are kept out of training."""
        return len(self.held_out or []) or sum(len(one.held_out) for one in self.datasets)

    @property
    def backend(self) -> Backend:
        """The name of the trainer that the run was started with."""
        return "ours" if self.upstream is None else "openpi"


class Metrics(Strict):
    """One line of metrics.jsonl.

    `grad_norm` is before clipping; `param_norm` counts kernels, after the update.

    `step` is an integer that every reader represents exactly, JavaScript too. `frames` is a digest of the
    numbers of the frames in the batch, in their order; lines of older versions have none. `mean_of_steps`:
    loss and norms are the mean over so many steps up to this one, as openpi's trainer logs them. `data_s` is
    None where the trainer does not report it. `datasets`: of a mixture, the mean loss of each dataset's rows
    in the batch. None values are left out of the file.
    """

    step: int = Field(ge=0, lt=2**53, strict=True)
    loss: float
    grad_norm: float
    param_norm: float
    learning_rate: float
    frames: str | None = None
    step_s: float
    data_s: float | None = None
    time: float
    mean_of_steps: int | None = None
    datasets: dict[str, float] | None = None
