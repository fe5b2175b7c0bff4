"""The dataset artifact: counts, features, a hash of the content, and the length of the longest prompt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import cast

from harness.artifacts import Dataset
from harness.data.completeness import check_cameras
from harness.data.fetch import Resolved, resolve
from harness.data.held_out import Kept, left_out_of
from harness.data.lerobot import LeRobotDataset, open_dataset
from harness.data.mapping import IMAGES, NUMBERS, Wanted
from harness.data.oddities import camera_findings, check_rows
from harness.data.paths import inside, open_file, walk_dataset
from harness.data.tokenizer import tokenizer_of
from harness.errors import HarnessError
from harness.recipe.schema import Recipe

_PROMPT_MULTIPLE = 16
_THREADS = 4


def describe(recipe: Recipe, *, prompts_needed: bool = False) -> Dataset:
    """The recipe's dataset as an artifact. A dataset on the hub is downloaded first.

    Every row of its columns and every image and video of its cameras is checked.

    Without its tokenizer the lengths of the prompts are unknown; with `prompts_needed` that is refused.

    Raises: HarnessError of `resolve`, of `open_dataset` and of its reader, and of `left_out_of`;
    "action-dim-too-small", "tokenizer-too-large".
    """
    resolved, dataset = open_for(recipe)
    left_out = left_out_of(recipe, dataset.episodes)
    rows = check_rows(dataset, recipe)
    odd_images = check_cameras(dataset, {name for name in recipe.data.cameras.values() if name is not None})
    sha256, total_bytes = content_hash(resolved.path)
    found = Dataset(
        source=resolved.source,
        revision=resolved.revision,
        path=str(resolved.path),
        format_version=dataset.version,
        fps=dataset.fps,
        episodes=len(dataset.episodes),
        frames=dataset.frames,
        tasks=[dataset.tasks[index] for index in rows.tasks],
        features=dataset.features,
        cameras=dict(recipe.data.cameras),
        sha256=sha256,
        longest_prompt_tokens=None,
        prompt_tokens=recipe.model.prompt_tokens,
        total_bytes=total_bytes,
        held_out=left_out,
        trained_frames=len(Kept(dataset.episodes, left_out)) if left_out else None,
        findings=[
            *rows.findings,
            *odd_images,
            *camera_findings(dataset, recipe),
            *_state_finding(recipe, dataset),
        ],
    )
    return measure_prompts(recipe, found, needed=prompts_needed)


def measure_prompts(recipe: Recipe, dataset: Dataset, *, needed: bool) -> Dataset:
    """The dataset with the length of its longest prompt.

    If the tokenizer is not on this machine and not `needed`, the length stays unknown, with the reason.

    Raises: HarnessError "tokenizer-too-large", "tokenizer-invalid"; those of `tokenizer_of` if the lengths
    are needed.
    """
    try:
        tokenizer = tokenizer_of(recipe)
    except HarnessError as refusal:
        if needed or not (
            refusal.code.startswith("download-")
            or refusal.code in ("tokenizer-not-found", "not-writable", "disk-full")
        ):
            raise
        why = f"the tokenizer {recipe.data.tokenizer!r} is not here: {refusal.what}"
        return dataset.model_copy(update={"unknown": dataset.unknown | {"longest_prompt_tokens": why}})
    longest = max(len(tokenizer.encode(task)) for task in dataset.tasks)
    rounded = -(-longest // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE
    return dataset.model_copy(
        update={
            "longest_prompt_tokens": longest,
            "prompt_tokens": min(rounded, recipe.model.prompt_tokens),
            "findings": [*dataset.findings, *_cut(recipe, longest)],
            "unknown": {key: why for key, why in dataset.unknown.items() if key != "longest_prompt_tokens"},
        }
    )


def open_for(recipe: Recipe) -> tuple[Resolved, LeRobotDataset]:
    """The location of the recipe's dataset, and the opened dataset. Reads no row.

    Raises an error if its features do not fit the recipe.

    Raises: HarnessError of `resolve` and of `open_dataset`; "dataset-feature-missing",
    "dataset-feature-invalid", "action-dim-too-small".
    """
    resolved = resolve(recipe.data)
    dataset = open_dataset(resolved.path, state=recipe.data.state, actions=recipe.data.actions)
    _check_features(recipe, dataset)
    return resolved, dataset


def content_hash(root: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of all data and metadata.

    Every file in a subdirectory of `root` counts, except hidden ones. The hash depends only on names and
    bytes. Files directly in `root` (README, licence) and a downloader's hidden notes do not count.
    """
    files = sorted(_content(root), key=lambda path: path.relative_to(root).as_posix().encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = pool.map(lambda path: _sha256(root, path), files)
        total = hashlib.sha256()
        for path, digest in zip(files, hashes, strict=True):
            total.update(f"{digest} {path.relative_to(root).as_posix()}\n".encode())
    return total.hexdigest(), sum(path.stat().st_size for path in files)


def _sha256(root: Path, path: Path) -> str:
    with open_file(root, path) as file:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()


def _content(root: Path) -> Iterator[Path]:
    """The files that count as content.

    Refuses a link to a file outside the dataset. FIFOs, devices and linked directories do not count.
    """
    strays: list[Path] = []
    yield from (path for path in walk_dataset(root, strays=strays) if _counts(root, path))
    for path in strays:
        if _counts(root, path) and path.is_symlink() and os.path.isfile(path):
            inside(root, path.relative_to(root).as_posix())


def _counts(root: Path, path: Path) -> bool:
    parts = path.relative_to(root).parts
    return len(parts) > 1 and not any(part.startswith(".") for part in parts)


def _check_features(recipe: Recipe, dataset: LeRobotDataset) -> None:
    data = recipe.data
    wanted = [
        Wanted(f"data.cameras.{camera}", name, IMAGES, may_be_null=True)
        for camera, name in data.cameras.items()
        if name is not None
    ]
    wanted += [Wanted("data.state", data.state, NUMBERS, may_be_null=True)] if data.state is not None else []
    dataset.check_features([*wanted, Wanted("data.actions", data.actions, NUMBERS)])
    width = dataset.features[data.actions].shape[0]
    if width > recipe.model.action_dim:
        raise HarnessError(
            "action-dim-too-small",
            "data.actions is wider than the model's action_dim",
            got=width,
            need=f"at most {recipe.model.action_dim}",
            fix="--set data.actions=ANOTHER_FEATURE; released weights have action_dim 32",
        )


def _state_finding(recipe: Recipe, dataset: LeRobotDataset) -> list[str]:
    """A finding on a state that is wider than the model's vectors.

    The state does not enter this model, so no information is lost.
    """
    name, room = recipe.data.state, recipe.model.action_dim
    width = 0 if name is None else dataset.features[name].shape[0]
    if width <= room:
        return []
    return [
        f"{name} has {width} dimensions, more than model.action_dim ({room}); it does not enter this model,"
        " so nothing of it is lost"
    ]


def _cut(recipe: Recipe, longest: int) -> list[str]:
    limit = recipe.model.prompt_tokens
    if longest <= limit:
        return []
    return [
        f"the longest prompt has {longest} tokens and is cut to {limit}, as upstream does; --set"
        f" model.prompt_tokens={longest} keeps all of it"
    ]
