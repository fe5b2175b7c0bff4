"""manifest.json and the lines of metrics.jsonl."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from harness.artifacts.base import Artifact
from harness.artifacts.plan import Backend, Candidate
from harness.strict import Strict


class Upstream(Strict):
    """openpi's own trainer, where that is what trains.

    `commit` is the checkout's, "unknown" where nothing tells; `pinned` the one the harness knows.

    `unlike_lock` are packages of another version than openpi's lock has. `notes` say what else is not as
    upstream would have it, and what the run went through that its own resume does: such as batches that were
    seen again.
    """

    commit: str
    pinned: str
    unlike_lock: list[str] = []
    notes: list[str] = []


class Distance(Strict):
    """One key in which the recipe is not the published one, and what that makes of the run."""

    key: str
    published: Any
    here: Any
    weight: str
    why: str


class _Digest(BaseModel):
    """What a manifest says of a file of weights, and what later versions may add."""

    model_config = ConfigDict(extra="allow")
    sha256: str


class _Weights(BaseModel):
    """The part of a manifest's `weights` that is computed with."""

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
    """What is read of a manifest's recipe where it is of another version of the harness."""

    model_config = ConfigDict(extra="allow")
    name: str | None = None
    train: _Train
    weights: _Start | None = None


def _like(form: type[BaseModel]) -> AfterValidator:
    """A check that a mapping has the form; it stays a mapping, with all its keys."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        form.model_validate(value)
        return value

    return AfterValidator(check)


class Manifest(Artifact):
    """What this run is, written before step 0.

    `weights` is where the first state came from: source, sha256 of its files, and `leaves`, the sha256 of
    every array that training starts from. `environment` holds the variables that change what is computed, by
    a list of names, so that no secret comes along. `image_id` is the engine's; `image_digest` is over what
    the image holds (`harness.run.surroundings.image_digest`). `machine` is what it ran on. `step_fingerprint`
    is a hash of the program as it is handed to XLA, `executable_fingerprint` of what XLA made of it for this
    device with these flags; `kernels_sha256` that of the choice of kernels that autotuning made, on a GPU.
    `published` is the recipe's distance from the published one. `upstream` is None when the harness itself
    trains; otherwise packages, lock and Python are those of openpi's environment, and there is no compiled
    program of ours. `unknown` says why a field is None.
    """

    FILE: ClassVar[str] = "manifest.json"
    run: str
    created: str
    recipe: Annotated[dict[str, Any], _like(_Recipe)]
    recipe_sha256: str
    plan: Candidate
    dataset_sha256: str
    dataset_revision: str | None
    norm_stats_sha256: str
    parameters_total: int
    parameters_trained: int
    weights: Annotated[dict[str, Any], _like(_Weights)]
    source_revision: str | None
    lock_sha256: str | None
    image: str | None
    image_id: str | None = None
    image_digest: str | None = None
    base_digest: str | None = None
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
    unknown: dict[str, str] = {}

    @property
    def backend(self) -> Backend:
        """Whose trainer the run was started with."""
        return "ours" if self.upstream is None else "openpi"


class Metrics(Strict):
    """One line of metrics.jsonl.

    `grad_norm` is before clipping; `param_norm` counts kernels, after the update.

    `step` is a whole number that every reader has exactly, JavaScript too.
    `frames` is a digest of the numbers of the frames in the batch, in their order; lines of older versions
    have none. `mean_of_steps`: loss and norms are the mean over so many steps up to this one, as openpi's
    trainer logs them. `data_s` is None where the trainer does not tell it. What is None is left out of the
    file.
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
