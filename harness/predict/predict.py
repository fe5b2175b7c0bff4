"""Predicts the actions of a checkpoint at one frame of a dataset, beside the recorded actions.

Axes: H action horizon, A real dimensions of an action, D action_dim of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts import DimensionStats, Gpu, Machine, Prediction
from harness.checkpoint.locate import Located, is_of_mixture
from harness.data.batch import one_frame
from harness.data.compare import first, width_without_padding
from harness.data.dataset import open_for
from harness.data.lerobot import LeRobotDataset
from harness.data.norm_files import Key, read_norm_stats
from harness.data.prompts import instruction
from harness.data.space import Space
from harness.data.transforms import unnormalize
from harness.errors import HarnessError
from harness.predict.lerobot_stats import read_policy_stats
from harness.received.files import walk
from harness.received.text import word
from harness.recipe.sampling import check_steps
from harness.recipe.schema import Recipe
from harness.run.cuda import check_device, computes_bfloat16
from harness.run.steps import ASSETS, NORM_STATS
from harness.units import GIB, MIB, format_bytes

# Memory that XLA's figure does not include: the CUDA context and its libraries; on a CPU, the process itself.
_GPU_MARGIN_BYTES = int(1.5 * GIB)
_HOST_MARGIN_BYTES = 512 * MIB

# What of a batch enters the model.
INPUTS = ("images", "tokens", "token_mask")
Stats = dict[str, DimensionStats]
Say = Callable[[str], None]


class Device(NamedTuple):
    """The device that a prediction is made on."""

    platform: str
    name: str
    uuid: str | None
    usable_bytes: int | None


class Question(NamedTuple):
    """The frame to predict, the number of Euler steps, and the seed of the first noise.

    `frame` counts from the start of `episode`.
    """

    episode: int = 0
    frame: int = 0
    sampling_steps: int = 10
    seed: int = 0


def device_for(machine: Machine, device: str | None) -> Device:
    """The visible GPU with the most free memory, or the CPU if there is none or it is asked for.

    A GPU without bfloat16 is left out where another is there. Of a GPU in MIG mode, an instance.
    Raises: HarnessError "device-unknown", "no-gpu".
    """
    check_device(device)
    usable_gpus = machine.usable_gpus
    able = [gpu for gpu in usable_gpus if computes_bfloat16(gpu.compute_capability) is not False]
    offered = [each for gpu in able or usable_gpus for each in _offered(gpu)]
    if offered and device != "cpu":
        best = max(offered, key=lambda each: each.usable_bytes or 0)
        usable = None if best.usable_bytes is None else best.usable_bytes - _GPU_MARGIN_BYTES
        return best._replace(usable_bytes=usable)
    if device == "cuda":
        raise HarnessError(
            "no-gpu",
            "there is no usable GPU here",
            got=machine.gpu_error or "no GPU visible",
            need="an NVIDIA GPU",
            fix="--device cpu",
        )
    available = machine.host.ram_available_bytes
    return Device("cpu", "cpu", None, None if available is None else available - _HOST_MARGIN_BYTES)


def _offered(gpu: Gpu) -> list[Device]:
    """The devices that CUDA offers of a GPU, with all that is free: itself, or its visible MIG instances."""
    name = gpu.name or f"GPU {gpu.index}"
    if gpu.mig_mode and gpu.mig_devices:
        return [
            Device("cuda", mig.name or name, mig.uuid, mig.free_bytes)
            for mig in gpu.mig_devices
            if mig.visible
        ]
    return [Device("cuda", name, gpu.uuid, gpu.free_bytes)]


def predict(
    located: Located, recipe: Recipe, question: Question, on: Device, say: Say, *, base: str | None = None
) -> Prediction:
    """The checkpoint's prediction at one frame, un-normalized with the checkpoint's own statistics.

    It is in the dataset's units, with the state added to relative dimensions.

    The environment names the device.

    `base` is the new directory of the weights that a step of only trained parameters needs.

    Raises: HarnessError "sampling-steps-invalid", "episode-out-of-range", "frame-out-of-range",
    "asset-missing", "dataset-of-other-dimensions", "does-not-fit", "prediction-not-finite", and those of the
    dataset and of the weights.
    """
    # Everything that can be wrong with the question is checked before a weight is read.
    check_steps(question.sampling_steps)
    # Of a mixture the first dataset, unless --dataset names another.
    recipe = recipe.parts()[0]
    resolved, data = open_for(recipe)
    index = _index(data, question)
    stats = checkpoint_stats(located, recipe, data)
    batch = one_frame(recipe, data, stats, index)
    recorded, is_pad = data.action_chunk(index, recipe.model.action_horizon)  # [H, A]
    sampled = sampler(located, recipe, question.sampling_steps, batch, on, say, base)(batch, question.seed)
    predicted = in_units(recipe, stats, sampled, data.state(index))  # [H, A]
    if not np.isfinite(predicted).all():
        raise HarnessError(
            "prediction-not-finite",
            f"{located.path} predicts NaN or infinity at this frame",
            need="finite actions",
            fix=f"harness inspect {word(located.path)} --deep, or take an earlier step",
        )
    return Prediction(
        checkpoint=str(located.path),
        step=located.step,
        dataset=resolved.source,
        episode=question.episode,
        frame=question.frame,
        task=instruction(recipe.data, data.task(index)),
        action_horizon=recipe.model.action_horizon,
        sampling_steps=question.sampling_steps,
        seed=question.seed,
        device=on.name,
        predicted=predicted.tolist(),
        recorded=recorded.tolist(),
        is_pad=is_pad.tolist(),
        mean_absolute_error=np.abs(predicted - recorded)[~is_pad].mean(axis=0).tolist(),
    )


def in_units(recipe: Recipe, stats: Stats, sampled: np.ndarray, state: np.ndarray | None) -> np.ndarray:
    """Actions float32 [H, A] in the dataset's units, of what the model sampled, [H, D].

    `state` [S] is the recorded one; it is needed only if actions are relative.
    """
    space = Space.of(recipe.data)
    normalized = unnormalize(sampled, stats["actions"], recipe.data.normalization)  # [H, A]
    return space.recorded(normalized, np.zeros(0) if state is None else space.states(state))


def _index(data: LeRobotDataset, question: Question) -> int:
    """The frame's number in the whole dataset."""
    episodes = {episode.index: episode for episode in data.episodes}
    episode = episodes.get(question.episode)
    if episode is None:
        raise HarnessError(
            "episode-out-of-range",
            f"{data.path} has no episode {question.episode}",
            got=question.episode,
            need=f"{min(episodes)} to {max(episodes)} ({len(episodes)} episodes)",
            fix=f"--episode {min(max(question.episode, min(episodes)), max(episodes))}",
        )
    if not 0 <= question.frame < episode.length:
        raise HarnessError(
            "frame-out-of-range",
            f"episode {episode.index} of {data.path} has no frame {question.frame}",
            got=question.frame,
            need=f"0 to {episode.length - 1}",
            fix=f"--frame {min(max(question.frame, 0), episode.length - 1)}",
        )
    return episode.first + question.frame


def checkpoint_stats(located: Located, recipe: Recipe, data: LeRobotDataset) -> Stats:
    """Statistics from the checkpoint's own assets, without upstream's zero padding.

    A LeRobot policy has them in the files of its pipelines. Those of the state are there only if the state
    enters the model, in the prompt.

    Raises: HarnessError "asset-missing", "dataset-of-other-dimensions", "norm-stats-invalid"; UnsafeFile.
    """
    wanted: dict[Key, tuple[str, ...]] = {"actions": (recipe.data.actions,)}
    if recipe.model.discrete_state_input:
        wanted["state"] = recipe.data.state_features
    where, read = stored_stats(located, recipe, tuple(wanted))
    return {key: _of_dataset(key, read, names, data, located, where) for key, names in wanted.items()}


def stored_stats(located: Located, recipe: Recipe, wanted: tuple[Key, ...]) -> tuple[Path, Stats]:
    """Where the checkpoint keeps its statistics, and those of `wanted` as they lie there, with any padding.

    Raises: HarnessError "asset-missing", "norm-stats-invalid"; UnsafeFile.
    """
    assets, mode = located.path / ASSETS, recipe.data.normalization
    file = assets / recipe.data.asset_id / NORM_STATS
    read: Stats
    if file.is_file():
        theirs = read_norm_stats(file, mode, keys=wanted, root=located.path)
        where, read = file, dict(theirs.stats.items())
    else:
        where, read = located.path, read_policy_stats(located.path, mode)
    if "actions" not in read:
        named = (path for path in walk(assets) if path.name == file.name) if assets.is_dir() else ()
        there = sorted(path.parent.relative_to(assets).as_posix() for path in named)
        raise HarnessError(
            "asset-missing",
            f"{located.path} holds no statistics of {recipe.data.asset_id!r}",
            got=", ".join(there) or "no assets",
            need=str(file),
            fix=(
                f"--set {word(f'data.asset_id={there[0]}')}"
                if there
                else "give a step that was saved by training: the statistics belong to the weights"
            ),
        )
    return where, read


def stats_of(key: Key, read: Mapping[str, DimensionStats], where: Path) -> DimensionStats:
    """The statistics of `key` among those that were read at `where`.

    Raises: HarnessError "asset-missing".
    """
    if key not in read:
        raise HarnessError(
            "asset-missing",
            f"{where} holds no statistics of the {key}",
            got=", ".join(sorted(read)),
            need=f"statistics of the {key}, which the model reads",
            fix="give a step that was saved by training: the statistics belong to the weights",
        )
    return read[key]


def _of_dataset(
    key: Key, read: Stats, names: tuple[str, ...], data: LeRobotDataset, located: Located, where: Path
) -> DimensionStats:
    """The statistics of the dimensions that the features `names` of the dataset have together."""
    stored = stats_of(key, read, where)
    dimensions = sum(data.features[name].shape[0] for name in names)
    width = width_without_padding(stored, dimensions)
    # The statistics of a mixture have the dimensions of its widest dataset.
    if width != dimensions and not (width > dimensions and is_of_mixture(located)):
        said = " and ".join(map(repr, names))
        raise HarnessError(
            "dataset-of-other-dimensions",
            f"the checkpoint was trained on other {key} than {said} of {data.path}",
            got=f"{dimensions} dimensions in the dataset",
            need=f"{width}, as in {where}",
            fix=f"--dataset with a dataset of that robot, or --set data.{key}=FEATURE",
        )
    return first(stored, dimensions)


def sampler(
    located: Located,
    recipe: Recipe,
    sampling_steps: int,
    like: dict[str, Any],
    on: Device,
    say: Say,
    base: str | None,
) -> Callable[[dict[str, Any], int], np.ndarray]:
    """sample(batch, seed) → normalized actions [H, D], for batches of one frame with the shapes of `like`.

    The program is compiled first, so XLA gives its memory before a weight is loaded.

    Raises: HarnessError "does-not-fit", and those of the weights.
    """
    import jax

    from harness.checkpoint.weights import load_params
    from harness.model.pi05 import bind, graph_of
    from harness.train.compiled import device_bytes
    from harness.train.setup import keeper, setup_of
    from harness.train.sharding import Layout
    from harness.train.step import observe

    setup = setup_of(recipe, Layout(jax.local_devices()[:1]))
    graph = graph_of(recipe.model, remat="none")
    shape = (1, recipe.model.action_horizon, recipe.model.action_dim)
    inputs = {name: like[name] for name in INPUTS}

    def sample(params: dict[str, jax.Array], inputs: dict[str, Any], key: jax.Array) -> jax.Array:
        return bind(graph, params).sample_actions(
            observe(inputs, None), jax.random.normal(key, shape), sampling_steps
        )

    say("compiling")
    compiled = jax.jit(sample).lower(setup.shapes.state.params, inputs, jax.random.key(0)).compile()
    need = device_bytes(compiled.memory_analysis())["device"]
    if on.usable_bytes is not None and need > on.usable_bytes:
        raise HarnessError(
            "does-not-fit",
            f"sampling does not fit {on.name}; nothing was allocated",
            got=f"{format_bytes(on.usable_bytes)} usable",
            need=f"{format_bytes(need)} by XLA's buffer assignment",
            fix="free the device's memory (harness probe shows who holds it)"
            + (", or --device cpu" if on.platform == "cuda" else ""),
        )
    say(f"loading the parameters of {located.path}")
    # Quantized as in training. A step of only trained parameters has a base whose weights are not quantized
    # yet.
    params = load_params(located.path, setup.shapes.params, base=base, keep=keeper(setup)).params

    def sampled(batch: dict[str, Any], seed: int) -> np.ndarray:
        return np.asarray(compiled(params, {name: batch[name] for name in INPUTS}, jax.random.key(seed)))[0]

    return sampled


def output_directory(located: Located, run: Path | None) -> Path:
    """The directory of prediction and plot.

    It is the named run, else the checkpoint's own run, else the current directory.
    """
    return run or located.run or Path()
