"""The effect of a configuration in openpi's PyTorch trainer, and how that differs from the JAX trainer.

The PyTorch trainer is another program with other numbers.

Source: openpi scripts/train_pytorch.py, src/openpi/models_pytorch/*.py, src/openpi/training/data_loader.py
and README.md ("PyTorch Support", "Precision Settings"), commit 15a9616.
"""

from __future__ import annotations

from harness.artifacts import Finding
from harness.openpi.options import Command, said

_LORA = "_lora"
SCRIPT = "scripts/train_pytorch.py"
# Begins a configuration's default that is a placeholder text.
_PLACEHOLDER = "/path/to/your/"
# The facts of `OpenpiCommand` that are known of the compiled JAX step alone.
UNKNOWN = (
    "trained",
    "parameters_total",
    "parameters_trained",
    "param_norm",
    "device_bytes",
    "fits",
    "recipe",
)


def unknown() -> dict[str, str]:
    """Field → the reason why the facts about the JAX step do not apply to this trainer."""
    why = (
        f"{SCRIPT} is another program: its step is PyTorch's, and what is known here is that of"
        " scripts/train.py"
    )
    return dict.fromkeys(UNKNOWN, why) | {
        "trained": "every parameter of the PyTorch model: it has neither adapters nor a freeze filter",
        "parameters_trained": "every parameter; how many the PyTorch model has is not known here",
        "param_norm": "the PyTorch trainer logs none",
        "recipe": "no recipe of ours does the same: see how it differs from scripts/train.py",
    }


def differences(command: Command) -> list[str]:
    """The differences from a run of scripts/train.py with the same configuration, each a sentence."""
    options = command.effective
    precision = options.get("pytorch-training-precision", "bfloat16")
    bits = {
        "float32": "weights, moments and computation in float32",
        "bfloat16": "weights and both moments in bfloat16 (norms and the patch embedding in float32)",
    }.get(str(precision), f"precision {precision}")
    texts = [
        (
            f"{bits}; the JAX trainer keeps both in float32 and computes in"
            f" {options.get('model.dtype', 'bfloat16')}"
        ),
        _shared(command),
        (
            "weights of the start come from --pytorch-weight-path alone; the configuration's weight loader is"
            " not used"
        ),
        "one crop, rotation, brightness and contrast a batch; the JAX trainer draws them for each picture",
        "noise, times and order of the data are PyTorch's own draws: no step equals one of the JAX trainer",
        "checkpoints are model.safetensors and optimizer.pt; all are kept, whatever --keep-period says",
    ]
    if options.get("ema-decay") is not None:
        average = (
            f"no average of the weights: the configuration's ema_decay of {options['ema-decay']} is not used"
        )
        texts.insert(1, average)
    return texts


def _shared(command: Command) -> str:
    """The contents of each process's memory, as a sentence."""
    count = command.line.processes
    said = (
        "a number of processes that the line does not say"
        if count is None
        else f"{count} process{'es' if count > 1 else ''}"
    )
    sharded = int(command.effective["fsdp-devices"])
    ignored = f"; --fsdp-devices {sharded} is not used" if sharded > 1 else ""
    return f"no FSDP: {said}, each with the whole model, its gradients and both moments{ignored}"


def findings(command: Command) -> list[Finding]:
    """The faults of a line for this trainer: whatever stops it, or makes it train something unexpected.

    The first finding is that it is another trainer.
    """
    options = command.effective
    own = {name: value for name, value in command.given.items() if not name.startswith("pytorch-")}
    count = command.line.processes
    times = (
        ""
        if count == 1
        else (
            f", started {'an unknown number of' if count is None else count} times by {command.line.launcher}"
        )
    )
    found = [
        Finding(
            severity="error",
            check="another-trainer",
            got=f"{command.line.program}: openpi's PyTorch trainer{times}",
            need="scripts/train.py: the bytes, counts and recipes known here are those of its step",
            fix=f"harness import openpi {said(command.name, own)}",
        )
    ]
    return [
        *found,
        *_stops(command),
        *_weights(options.get("pytorch-weight-path")),
        *_lora(command),
        *_batch(int(options["batch-size"]), count),
    ]


def _stops(command: Command) -> list[Finding]:
    """Errors for configurations that this trainer does not take."""
    if command.config.family == "pi0_fast":
        got, fix = (
            f"{command.name} is of π0-FAST, which has no PyTorch model",
            "harness import openpi pi05_libero",
        )
    elif command.effective.get("data.rlds-data-dir") is not None or "RLDS" in command.config.data:
        got, fix = (
            f"{command.name} reads RLDS, for which the PyTorch trainer has no loader",
            f"harness import openpi {command.name}",
        )
    else:
        return []
    return [
        Finding(
            severity="error",
            check="pytorch-cannot",
            got=got,
            need="a configuration that the PyTorch trainer takes",
            fix=fix,
        )
    ]


def _weights(path: object) -> list[Finding]:
    if path is not None and not str(path).startswith(_PLACEHOLDER):
        return []
    if path is None:
        got = (
            "no --pytorch-weight-path: training starts from random weights, whatever the configuration's"
            " weight loader names"
        )
    else:
        got = f"--pytorch-weight-path is {path}, a placeholder: openpi stops when it loads it"
    return [
        Finding(
            severity="error",
            check="random-weights" if path is None else "weights-placeholder",
            got=got,
            need=(
                "a directory with model.safetensors, made by openpi's"
                " examples/convert_jax_model_to_pytorch.py"
            ),
            fix="--pytorch-weight-path DIRECTORY",
        )
    ]


def _lora(command: Command) -> list[Finding]:
    adapted = [
        name
        for name in ("model.paligemma-variant", "model.action-expert-variant")
        if str(command.effective.get(name)).endswith(_LORA)
    ]
    if not adapted and not command.config.freezes:
        return []
    words = [f"--{name} {command.effective[name]}" for name in adapted]
    got = (
        f"{' and '.join(words) or command.name}: the PyTorch model has no adapters and freezes nothing, so"
        " everything is trained"
    )
    fix = "harness plan --recipe pi05_libero_lora"
    return [
        Finding(
            severity="error",
            check="lora-trains-everything",
            got=got,
            need="a trainer with LoRA, if this is to be LoRA",
            fix=fix,
        )
    ]


def _batch(batch: int, processes: int | None) -> list[Finding]:
    """A warning if the processes do not divide the batch: the trainer silently drops the remainder."""
    if processes is None or (batch % processes == 0 and batch >= processes):
        return []
    each = batch // processes
    got = f"--batch-size {batch} over {processes} processes: {each} in each, {each * processes} in all"
    fix = f"--batch-size {max(1, each) * processes}"
    return [
        Finding(
            severity="warning",
            check="batch-not-divisible",
            got=got,
            need=f"a multiple of {processes}",
            fix=fix,
        )
    ]
