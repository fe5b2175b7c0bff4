"""checkpoint.json: the findings of `inspect`."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field

from harness.artifacts.base import Artifact
from harness.strict import Strict

# The program that wrote a checkpoint.
Layout = Literal["harness", "openpi", "pytorch"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
# A drawing has one column per layer. The deepest part of π0.5 has 27 layers.
MOST_LAYERS = 1_000
# The dtypes of values. Integers are codes, counters or indices.
VALUE_DTYPES = ("float", "bfloat")


class CheckpointItem(Strict):
    name: str
    bytes: int
    arrays: int | None = None


class CheckpointStep(Strict):
    step: int | None
    path: str
    complete: bool
    items: list[CheckpointItem]
    bytes: int
    missing: list[str] = []


class InterruptedSave(Strict):
    path: str
    step: int | None
    missing: list[str]
    age_s: float
    bytes: int
    safe_to_delete: bool
    reason: str


class LoraReport(Strict):
    present: bool | None
    rank: dict[str, int] = {}
    parameters: int = 0


class GroupReport(Strict):
    """A group of parameters.

    `norm` is None if the arrays were not read, if none of them holds values, or if it is beyond float64.
    """

    parameters: int
    bytes: int
    arrays: int
    dtypes: list[str]
    trained: int | None = None
    non_finite: int | None = None
    norm: float | None = None

    @property
    def norm_overflows(self) -> bool:
        """True if `norm` is None because the sum of squares is beyond float64."""
        read = self.non_finite is not None
        return self.norm is None and read and any(dtype.startswith(VALUE_DTYPES) for dtype in self.dtypes)


class LeafReport(Strict):
    """One array, as `inspect --deep` read it.

    `sha256` is that of its elements in C order as stored, so it does not depend on chunks or files.

    `norm` is None for integer codes, which are not values, and where it is beyond float64. `missing_chunks`
    counts stored pieces that are absent and were read as zeros.
    """

    item: str
    path: str
    dtype: str
    shape: list[int]
    sha256: str | None
    non_finite: int | None
    norm: float | None
    missing_chunks: int = 0


class AdapterReport(Strict):
    """One pair of adapters.

    `effective_rank` is [least, median, most] over its layers of exp(entropy of the singular values) of A·B.

    `product_norm` is the norm of A·B before the factor alpha/rank. `relative` is that norm over the norm of
    the adapted weight, if that is stored too. Both are None where they are beyond float64.
    """

    path: str
    rank: int
    effective_rank: tuple[float, float, float] | None
    product_norm: float | None
    relative: float | None = None


class Movement(Strict):
    """The distance between a group of parameters and the same group of the reference.

    Norm of the difference, norm of the reference, their ratio, and the share of elements that differ. A norm
    beyond float64 is None, and so is its ratio.
    """

    name: str
    layer: int | None = Field(None, ge=0, lt=MOST_LAYERS)
    update_norm: float | None
    base_norm: float | None
    relative: float | None
    changed: float
    parameters: int


class Moved(Strict):
    """The parts of the network that moved, and by how much.

    `groups` are those of `parameters`; `blocks` are finer, layer by layer.

    Adapters that the reference does not have count as what they add to the weights: A·B times alpha/rank.
    `notes` say how the comparison was made. `only_here` and `only_there` are parameters that the other side
    does not have. `not_compared` have another shape or cannot be read.
    """

    against: str
    against_step: int | None
    groups: list[Movement]
    blocks: list[Movement]
    only_here: list[str]
    only_there: list[str]
    not_compared: list[str]
    notes: list[str] = []


class Checkpoint(Artifact):
    """The findings about a directory of checkpoints.

    `lora`, `parameters` and the fields after them describe `step`, the newest whole step.

    `partial`: something could not be read; `unknown` says what.

    `kind` and `tensors` are of PyTorch's safetensors: which program saved them, and how many there are.
    `pipeline` is what a LeRobot policy's own pipeline shows its model.

    `base` names the weights below a step that holds only trained parameters. `leaves` and `adapters` are
    filled with --deep, `moved` with --against.
    """

    FILE: ClassVar[str] = "checkpoint.json"
    path: str
    layout: Layout | None
    steps: list[CheckpointStep]
    interrupted: list[InterruptedSave]
    step: int | None = None
    lora: LoraReport
    parameters: dict[str, GroupReport]
    parameters_total: int | None = None
    parameters_trained: int | None = None
    ema: bool | None = None
    non_finite: int | None = None
    base: str | None = None
    kind: str | None = None
    tensors: int | None = None
    pipeline: str | None = None
    leaves: list[LeafReport] = []
    adapters: list[AdapterReport] = []
    moved: Moved | None = None
    partial: bool = False
    findings: list[str] = []
    unknown: dict[str, str] = {}
