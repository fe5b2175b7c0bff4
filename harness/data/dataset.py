"""What a dataset is, as an artifact: counts, features, the hash of its content, the length of its prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from harness.artifacts import Dataset
from harness.data.completeness import check_cameras
from harness.data.fetch import Resolved, resolve
from harness.data.lerobot import LeRobotDataset, open_dataset
from harness.data.paths import inside
from harness.data.rows import Block
from harness.data.tokenizer import load_tokenizer
from harness.errors import HarnessError
from harness.recipe import Recipe
from harness.rundir import sha256_file

_PROMPT_MULTIPLE = 16
_THREADS = 4


def describe(recipe: Recipe) -> Dataset:
    """The recipe's dataset, fetched if need be and checked as a whole: every row of its columns, every image and video of its cameras.

    Raises: HarnessError of `resolve`, of `open_dataset` and of its reader, of `load_tokenizer`; "action-dim-too-small",
    "tokenizer-too-large".
    """
    resolved, dataset = open_for(recipe)
    used, odd_rows = _check_rows(dataset)
    odd_images = check_cameras(dataset, {name for name in recipe.data.cameras.values() if name is not None})
    longest = _longest_prompt(recipe, [dataset.tasks[index] for index in used])
    sha256, total_bytes = content_hash(resolved.path)
    rounded = -(-longest // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE
    return Dataset(
        source=resolved.source,
        revision=resolved.revision,
        path=str(resolved.path),
        format_version=dataset.version,
        fps=dataset.fps,
        episodes=len(dataset.episodes),
        frames=dataset.frames,
        tasks=[dataset.tasks[index] for index in used],
        features=dataset.features,
        cameras=dict(recipe.data.cameras),
        sha256=sha256,
        longest_prompt_tokens=longest,
        prompt_tokens=min(rounded, recipe.model.prompt_tokens),
        total_bytes=total_bytes,
        findings=[*odd_rows, *odd_images, *_findings(recipe, longest)],
    )


def open_for(recipe: Recipe) -> tuple[Resolved, LeRobotDataset]:
    """Where the recipe's dataset lies, and the dataset, with features that fit the recipe. No row is read.

    Raises: HarnessError of `resolve` and of `open_dataset`; "dataset-feature-missing", "dataset-feature-invalid",
    "action-dim-too-small", "tokenizer-too-large".
    """
    resolved = resolve(recipe.data)
    dataset = open_dataset(resolved.path, state=recipe.data.state, actions=recipe.data.actions)
    _check_features(recipe, dataset)
    _check_tokenizer(recipe)
    return resolved, dataset


def content_hash(root: Path) -> tuple[str, int]:
    """Hash and size of all data and metadata: every file below a directory of `root`, but hidden ones.

    It depends on the names and the bytes alone. A README, a licence and a downloader's own notes do not count.
    """
    files = sorted(_content(root), key=lambda path: path.relative_to(root).as_posix().encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = pool.map(sha256_file, files)
        total = hashlib.sha256()
        for path, digest in zip(files, hashes, strict=True):
            total.update(f"{digest} {path.relative_to(root).as_posix()}\n".encode())
    return total.hexdigest(), sum(path.stat().st_size for path in files)


def _content(root: Path) -> Iterator[Path]:
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if len(parts) > 1 and not any(part.startswith(".") for part in parts) and path.is_file():
            yield inside(root, "/".join(parts))


def _check_features(recipe: Recipe, dataset: LeRobotDataset) -> None:
    for camera, name in recipe.data.cameras.items():
        if name is not None:
            taken = {other for of, other in recipe.data.cameras.items() if other is not None and of != camera}
            dataset.feature(name, ("image", "video"), f"data.cameras.{camera}", taken)
    for key, name, other in (("data.state", recipe.data.state, recipe.data.actions), ("data.actions", recipe.data.actions, recipe.data.state)):
        feature = dataset.feature(name, ("float", "int", "uint", "bool"), key, {other})
        if len(feature.shape) != 1 or feature.shape[0] == 0:
            raise HarnessError(
                "dataset-feature-invalid", f"feature {name!r} is not a vector", got=feature.shape, need="one axis", fix=f"--set {key}=ANOTHER_FEATURE"
            )
        if feature.shape[0] > recipe.model.action_dim:
            raise HarnessError(
                "action-dim-too-small",
                f"{key} is wider than the model's action_dim",
                got=feature.shape[0],
                need=f"at most {recipe.model.action_dim}",
                fix=f"--set {key}=ANOTHER_FEATURE; released weights have action_dim 32",
            )


def _check_rows(dataset: LeRobotDataset) -> tuple[list[int], list[str]]:
    """The task indices that frames really have, in order, and what is odd about the rows. Every row is checked on the way."""
    used: set[int] = set()
    odd: list[str] = []
    for block in dataset.blocks():
        used |= set(np.unique(block.task_index).tolist())
        odd = odd or _other_pace(dataset, block)
    return sorted(used), odd


def _other_pace(dataset: LeRobotDataset, block: Block) -> list[str]:
    """A finding when an episode's frames are not 1/fps apart: an action chunk then spans another time than the recipe's author had in mind."""
    steps = np.diff(block.timestamp)
    steps[np.cumsum([episode.length for episode in block.episodes])[:-1] - 1] = 1 / dataset.fps
    wrong = np.abs(steps - 1 / dataset.fps) > 0.25 / dataset.fps
    if not wrong.any():
        return []
    row = int(np.argmax(wrong))
    place = f"{block.episodes[0].file} rows {row} and {row + 1}"
    return [f"{place} are {steps[row]:.4g} s apart, and meta/info.json says {dataset.fps:g} frames a second ({1 / dataset.fps:.4g} s)"]


def _check_tokenizer(recipe: Recipe) -> None:
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise HarnessError(
            "tokenizer-too-large",
            f"tokenizer {recipe.data.tokenizer!r} has tokens that the model has no embedding for",
            got=tokenizer.vocab_size,
            need=f"at most {recipe.model.vocab_size}",
            fix=f"--set model.vocab_size={tokenizer.vocab_size}, or another data.tokenizer",
        )


def _longest_prompt(recipe: Recipe, tasks: list[str]) -> int:
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    return max(len(tokenizer.encode(task)) for task in tasks)


def _findings(recipe: Recipe, longest: int) -> list[str]:
    limit = recipe.model.prompt_tokens
    if longest <= limit:
        return []
    return [f"the longest prompt has {longest} tokens and is cut to {limit}, as upstream does; --set model.prompt_tokens={longest} keeps all of it"]
