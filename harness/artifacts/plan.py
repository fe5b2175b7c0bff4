"""plan.json: how this machine carries out a recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.artifacts.base import Artifact
from harness.strict import Later, Strict
from harness.units import GIB

# The trainer that carries a plan out.
Backend = Literal["ours", "openpi"]
# What the backward pass keeps of a layer, least first; `harness.model.remat` has the levels.
Remat = Literal["block", "mlp", "names", "none"]


# Host memory of a streamed save beside the state: four chunks of 64 MiB, each as it was read, packed and on
# its way to the disk (measured: `python -m benchmarks.save_peak`). Of the device it takes the
# chunks as they are read, or as many parts of a leaf that is hashed.
STREAMED_HOST_BYTES = GIB
STREAMED_DEVICE_BYTES = GIB // 4


class Levers(Later):
    """The way in which a step is carried out.

    All levers are exact: they do not change what the recipe says is learned.

    `hosts` is the number of processes that share the devices equally, one a machine. It is written only where
    it is not 1, so that plans of one machine have the bytes, and the hashes, that they always had.

    global batch = microbatch x accumulation_steps x devices. `devices` hold `devices / fsdp` replicas of the
    state, each in `fsdp` shards. Gradients of all microbatches are summed in one float32 buffer.

    `remat` says what the backward pass keeps of each layer; it computes the rest again. "block": its input
    alone. "mlp": also the two wide products of the gated feed-forward, of language model and action expert.
    "names": also queries, keys, values and the result of attention, of the vision tower as well, and that
    tower's wide product. "none": all of it, and nothing is computed again. Each takes more memory than the
    one before, and less time.

    `attention` "chunked" holds the logits of a few samples at a time. `compute_copy` makes, once a step,
    bfloat16 copies of the parameters that the model would cast to bfloat16 in every microbatch. `host` names
    the parts of the state that lie in pinned host memory between their uses and pass through the device in
    pieces. It excludes bfloat16 moments, whose random rounding depends on position. Of masters the device
    always has the copy, from step to step: the update writes it.

    `save` "async" copies the state to the host and writes it while training goes on. "streamed" writes it
    from where it lies, while training waits, and copies 64 MiB at a time. It is written only where it is
    "streamed", as `hosts`.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"hosts", "save"})
    platform: Literal["cpu", "cuda"]
    devices: int = Field(1, gt=0)
    hosts: int = Field(1, gt=0)
    fsdp: int = Field(1, gt=0)
    microbatch: int = Field(gt=0)
    accumulation_steps: int = Field(1, gt=0)
    prompt_tokens: int = Field(gt=0)
    cameras: list[str]
    remat: Remat = "block"
    attention: Literal["full", "chunked"] = "full"
    compute_copy: bool = False
    host: list[Literal["ema", "moments", "masters"]] = []
    save: Literal["async", "streamed"] = "async"

    @model_validator(mode="after")
    def _shards_divide_devices(self) -> Levers:
        if self.devices % self.fsdp:
            raise ValueError(f"fsdp ({self.fsdp}) does not divide devices ({self.devices})")
        if self.devices % self.hosts:
            raise ValueError(f"hosts ({self.hosts}) does not divide devices ({self.devices})")
        return self


class Candidate(Strict):
    """One plan.

    `changes` are the recipe keys that it must change, each explained in `deviations`. An exact plan has none.

    `phases` holds the device bytes of init, load, step and save where they are known; `device_bytes` is the
    largest. `shared_phases` holds device and host bytes together, for machines where CPU and GPU share one
    memory.

    `source` "compiled" or "atlas": the compiler's answer for exactly this step. "interpolated": its answer
    for a larger step, never too few bytes. "counted": state and gradients counted without the compiler, a
    lower bound; used only where it already exceeds the device.
    """

    levers: Levers
    changes: dict[str, Any] = {}
    deviations: list[str] = []
    device_bytes: int | None = None
    host_bytes: int | None = None
    disk_bytes: int | None = None
    phases: dict[str, int] = {}
    shared_phases: dict[str, int] = {}
    seconds_per_step: float | None = None
    flops_per_step: float | None = None
    verdict: Literal["fits", "rejected"]
    reason: str
    source: Literal["atlas", "compiled", "interpolated", "counted"]
    breakdown: dict[str, int] = {}
    unknown: dict[str, str] = {}


class Cluster(Strict):
    """The machines of a plan for several, one a process.

    `names` are those of the machines, in the order of the processes; none for machines that are not here.
    `net_bytes_per_s` is the rate of each machine's network, one way. `net` says whose word it is: "given" by
    the user, the "interface"'s own, or "assumed"; "within": the processes are on one machine. `exchange_s`
    are the seconds of a step that the network takes. `one_host_s` is the predicted step of one such machine
    with the same shards; None where it would not hold them. `device_uuids` are the cards of each process.
    """

    names: list[str] = []
    devices_per_host: int
    net_bytes_per_s: float | None = None
    net: Literal["given", "interface", "assumed", "within"] = "assumed"
    exchange_s: float | None = None
    one_host_s: float | None = None
    device_uuids: list[list[str]] = []


class Calibrated(Strict):
    """How the predicted seconds follow from a calibration of this machine's card.

    They are `pace` times the cost model's: the mean over `steps` measured steps. `error` is how far the mean
    over all others is from each of these steps, at most; None where there is one step. `measured` is the day,
    `same_card` whether it was this very card, and not another of its kind.
    """

    measured: str
    steps: int = Field(gt=0)
    pace: float = Field(gt=0, allow_inf_nan=False)
    error: float | None = Field(None, ge=0, allow_inf_nan=False)
    same_card: bool | None = None
    sha256: str


class Plan(Artifact, Later):
    """The plan for a recipe on a device.

    `usable_bytes` of each device = free - `context_bytes` - `margin_bytes`. JAX gets `memory_fraction` of its
    total: free - context.

    `backend` names the trainer that carries the plan out. With `shared_memory`, CPU and GPU share one memory,
    and `usable_bytes` is of both together. `device_uuids` are the cards that the chosen plan runs on,
    `device_uuid` is the first. `notes` are facts that a person should know beside the plan. `cluster` is
    there, and written, only where several machines carry the plan out; `calibrated` only where the predicted
    seconds follow from a calibration.
    """

    FILE: ClassVar[str] = "plan.json"
    LATER: ClassVar[frozenset[str]] = frozenset({"cluster", "calibrated"})
    backend: Backend = "ours"
    recipe: str
    recipe_sha256: str
    device: str
    device_uuid: str | None = None
    device_uuids: list[str] = []
    usable_bytes: int | None = None
    free_bytes: int | None = None
    context_bytes: int = 0
    margin_bytes: int = 0
    memory_fraction: float | None = None
    host_usable_bytes: int | None = None
    shared_memory: bool = False
    parameters_total: int
    parameters_trained: int
    chosen: Candidate | None
    candidates: list[Candidate]
    notes: list[str] = []
    cluster: Cluster | None = None
    calibrated: Calibrated | None = None

    def of_process(self, number: int) -> Plan:
        """The plan as process `number` carries it out: on its own cards."""
        if self.cluster is None:
            return self
        own = self.cluster.device_uuids[number] if self.cluster.device_uuids else []
        return self.model_copy(update={"device_uuids": own, "device_uuid": own[0] if own else None})
