"""Device bytes of openpi's own training step, as it is shipped, from a table of compiled answers. No JAX.

`table.json` holds XLA's answers for upstream's `train_step` at the pinned commit, with upstream's versions,
200 prompt tokens and three cameras. Rows "compiled" come from `python -m benchmarks.openpi_compiled`. Rows
"facts" were compiled the same way before and are rounded to 0.1 GiB. An estimate between rows is never below
the truth:

- Between two batches: the larger one's bytes. The curve is neither straight nor convex (LoRA: 16.1, 18.6,
  21.3, 30.9 GiB at 1, 8, 32, 64), so a chord could lie below it. Beyond the largest batch there is no
  answer: not even a full fine-tune's work bounds LoRA's (at 256 80 and 91 GiB).
- The average (EMA): a copy of all parameters beside the state. It is added to, or taken from, the row that
  differs in it.
- Adapters beside trained base weights: the bytes without them, and their weights, gradients, moments and
  average.
- Several devices: the state of each, counted by upstream's rule of sharding, and the work of its share of the
  batch on one device. With shards the step also holds parameters that it has gathered: the largest array is
  added (two shards at 256: 79.7 GiB compiled, 82.7 counted so).

Source: openpi scripts/train.py, src/openpi/training/sharding.py `fsdp_sharding`,
src/openpi/models/pi0_config.py, commit 15a9616.
"""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import Literal, NamedTuple

from harness.errors import HarnessError
from harness.recipe.parameters import is_trained, parameter_shapes
from harness.recipe.schema import Lora, Model, Trained
from harness.strict import Strict, parse
from harness.units import MIB, format_bytes

COMMIT = "15a9616"
# The card whose answers stand for all. Rows of other cards show how little the card changes.
_CARD = "rtx_a6000"
MAKE = "python -m benchmarks.openpi_compiled"
# Upstream's two adapters. No option asks for another rank. Source: openpi src/openpi/models/gemma.py
# `get_config`.
ADAPTERS = {"paligemma": Lora(rank=16, alpha=16.0), "action_expert": Lora(rank=32, alpha=32.0)}
# Arrays below this size are kept whole on every device. Source: sharding.py `fsdp_sharding`.
_SHARDED_FROM = 4 * MIB

# With a sharded state XLA keeps more of the activations. The count for shards holds only as far as the
# compiler has confirmed it.
_SHARDED_ROWS = 128
# If answers for one setup differ by more than this share, both are reported.
_APART = 0.03

Adapters = Literal["none", "paligemma", "action_expert", "both"]


class Setup(NamedTuple):
    """Everything that changes the bytes of upstream's step.

    `batch` is global. `devices` hold `devices / fsdp` copies of the state, in `fsdp` shards each.
    """

    adapters: Adapters
    trained: Trained
    ema: bool
    batch: int
    devices: int = 1
    fsdp: int = 1


class Answer(NamedTuple):
    """Bytes of each device.

    `how` names the rows of an interpolated answer. For a compiled answer it reports a differing second one.
    """

    bytes: int
    source: Literal["atlas", "interpolated"]
    how: str


class _Row(Strict):
    adapters: Adapters
    trained: Trained
    ema: bool
    phase: Literal["step", "init"]
    batch: int
    devices: int
    fsdp: int
    card: str
    bytes: int
    arguments: int | None = None
    temporary: int | None = None
    source: Literal["compiled", "facts"]

    @property
    def setup(self) -> Setup:
        return Setup(self.adapters, self.trained, self.ema, self.batch, self.devices, self.fsdp)


class _Table(Strict):
    commit: str
    jax: str
    rows: list[_Row]


@functools.cache
def rows() -> list[_Row]:
    """The rows of the table."""
    data = json.loads(resources.files("harness.openpi").joinpath("table.json").read_text())
    return parse(
        _Table,
        data,
        where="table.json",
        code="upstream-table-invalid",
        fix=f"restore harness/openpi/table.json, or make it anew: {MAKE}",
    ).rows


def steps() -> list[_Row]:
    """The rows of the training step, those of the reference card first."""
    return sorted((row for row in rows() if row.phase == "step"), key=lambda row: row.card != _CARD)


def model_with(adapters: Adapters) -> Model:
    """Upstream's π0.5 of LIBERO with these adapters."""
    model = Model()
    parts = {
        name: getattr(model, name).model_copy(update={"lora": lora})
        for name, lora in ADAPTERS.items()
        if adapters in (name, "both")
    }
    return model.model_copy(update=parts)


def adapters_of(model: Model) -> Adapters:
    """The experts of `model` that carry adapters."""
    present = [name for name in ADAPTERS if getattr(model, name).lora is not None]
    return (
        "both"
        if len(present) == 2
        else "paligemma"
        if "paligemma" in present
        else "action_expert"
        if present
        else "none"
    )


def state_parts(setup: Setup) -> dict[str, int]:
    """Bytes of weights, moments and average that lie on each device between steps.

    The average covers all parameters, including the frozen ones, which are kept in bfloat16.
    """
    model = model_with(setup.adapters)
    parts = {"weights": 0, "moments": 0, "ema": 0}
    for path, shape in parameter_shapes(model).items():
        trained = is_trained(path, model, setup.trained)
        size = _on_device(shape, 4 if trained else 2, setup.fsdp)
        parts["weights"] += size
        parts["moments"] += 2 * size if trained else 0
        parts["ema"] += size if setup.ema else 0
    return parts


def _largest_array(setup: Setup) -> int:
    model = model_with(setup.adapters)
    return max(
        math.prod(shape) * (4 if is_trained(path, model, setup.trained) else 2)
        for path, shape in parameter_shapes(model).items()
    )


def _on_device(shape: tuple[int, ...], itemsize: int, fsdp: int) -> int:
    size = math.prod(shape) * itemsize
    divisible = any(axis % fsdp == 0 for axis in shape)
    return size // fsdp if fsdp > 1 and len(shape) > 1 and size >= _SHARDED_FROM and divisible else size


def need(setup: Setup) -> Answer:
    """The device bytes of upstream's step.

    Raises: HarnessError "batch-not-divisible", "shards-not-divisible", "upstream-not-compiled".
    """
    _check_shares(setup)
    same = [row for row in steps() if row.setup == setup]
    if same:
        return Answer(same[0].bytes, "atlas", _apart(same))
    local = setup.batch // setup.devices
    if setup.fsdp > 1 and local > _SHARDED_ROWS:
        raise HarnessError(
            "upstream-not-compiled",
            f"upstream's sharded step has not been compiled for more than {_SHARDED_ROWS} rows a device",
            got=f"{local} rows a device",
            need=f"at most {_SHARDED_ROWS}",
            fix=f"--set global_batch={_SHARDED_ROWS * setup.devices}, or more devices",
        )
    alone, how = _on_one_device(setup._replace(batch=local, devices=1, fsdp=1))
    if setup.devices == 1:
        return Answer(alone, "interpolated", how)
    work = alone - sum(state_parts(setup._replace(fsdp=1)).values())
    per_device = sum(state_parts(setup).values()) + work + (_largest_array(setup) if setup.fsdp > 1 else 0)
    return Answer(
        per_device,
        "interpolated",
        f"its share of the state, and the work of batch {local} on one device" + (f" ({how})" if how else ""),
    )


def _apart(same: list[_Row]) -> str:
    """The note for a setup that was compiled more than once with different answers. Empty if they agree."""
    most = max(same, key=lambda row: row.bytes)
    if most.bytes <= same[0].bytes * (1 + _APART):
        return ""
    return f"one of two answers, the other is {format_bytes(most.bytes)} (compiled for {most.card})"


def batches(setup: Setup) -> list[int]:
    """The global batches for which `need` has compiled answers, for this choice of parameters and devices."""
    known = _curve(setup._replace(devices=1, fsdp=1))
    return [batch * setup.devices for batch in known if setup.fsdp == 1 or batch <= _SHARDED_ROWS]


def initialization(setup: Setup) -> int:
    """Bytes of each device before the first step: the state, and if sharded, the whole released weights.

    On one device the weights become the state's. Upstream converts frozen parameters before they reach a
    device.
    """
    whole = state_parts(setup._replace(fsdp=1))["weights"] if setup.fsdp > 1 else 0
    return sum(state_parts(setup).values()) + whole


def _check_shares(setup: Setup) -> None:
    if setup.devices % setup.fsdp:
        raise HarnessError(
            "shards-not-divisible",
            f"fsdp={setup.fsdp} shards cannot be laid over {setup.devices} devices: upstream refuses it when"
            " it starts",
            got=f"{setup.devices} devices",
            need=f"a multiple of {setup.fsdp} devices",
            fix=f"--set fsdp={math.gcd(setup.devices, setup.fsdp)}, or --gpu NAME:{setup.fsdp}",
        )
    if setup.batch % setup.devices:
        below, above = (
            setup.batch // setup.devices * setup.devices,
            -(-setup.batch // setup.devices) * setup.devices,
        )
        raise HarnessError(
            "batch-not-divisible",
            f"{setup.devices} devices cannot share a global batch of {setup.batch} equally: upstream refuses"
            " it when it starts",
            got=f"{setup.batch} rows",
            need=f"a multiple of {setup.devices}",
            fix=f"--set global_batch={below or above}",
        )


def _on_one_device(setup: Setup) -> tuple[int, str]:
    """(bytes, the rows they come from). The text is empty if a row matches exactly."""
    curve = _curve(setup)
    if setup.batch in curve:
        compiled = any(row.setup == setup for row in steps())
        return curve[setup.batch], (
            "" if compiled else "those of the nearest that was compiled, and the parts that differ, counted"
        )
    larger = [batch for batch in curve if batch > setup.batch]
    if larger:
        return curve[min(larger)], f"those of batch {min(larger)}, the next that was compiled"
    raise HarnessError(
        "upstream-not-compiled",
        "upstream's step for this choice of what is trained has not been compiled for a batch of"
        f" {setup.batch} a device",
        got=f"{setup.trained}, adapters on {setup.adapters}, {setup.batch} rows a device",
        need=(
            f"at most {max(curve)} a device"
            if curve
            else "what is trained in pi05_libero or pi05_libero_lora"
        ),
        fix=(
            f"--set global_batch={max(curve)}, or more devices"
            if curve
            else "--recipe pi05_libero_lora, or --backend ours"
        ),
    )


def _curve(setup: Setup) -> dict[int, int]:
    """Batch → bytes on one device.

    It uses exact rows, rows that differ only in the average, and for a full fine-tune rows without adapters.
    """
    alike = [
        row
        for row in steps()
        if row.card == _CARD and row.setup._replace(batch=0, ema=False) == setup._replace(batch=0, ema=False)
    ]
    copy = state_parts(setup._replace(ema=True))["ema"]
    derived = {row.batch: row.bytes + (copy if setup.ema else -copy) for row in alike if row.ema != setup.ema}
    if setup.trained == "full" and setup.adapters != "none":
        plain = setup._replace(adapters="none")
        more = (
            sum(state_parts(setup).values())
            - sum(state_parts(plain).values())
            + state_parts(setup)["weights"]
            - state_parts(plain)["weights"]
        )
        derived = {batch: size + more for batch, size in _curve(plain).items()} | derived
    return dict(sorted((derived | {row.batch: row.bytes for row in alike if row.ema == setup.ema}).items()))
