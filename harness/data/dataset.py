"""The dataset artifact: counts, features, a hash of the content, and the length of the longest prompt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import cast

from harness.artifacts import Dataset, LeftOut
from harness.data.completeness import check_cameras, check_files_there
from harness.data.fetch import Resolved, resolve
from harness.data.held_out import Kept, left_out_of
from harness.data.lerobot import LeRobotDataset, open_data
from harness.data.mapping import IMAGES, NUMBERS, Wanted, likely_state, widths_of
from harness.data.mixture import prompts_together, together, twice
from harness.data.oddities import camera_findings, check_rows
from harness.data.paths import inside, open_file, walk_dataset
from harness.data.prompts import most_tokens
from harness.data.space_check import check_space
from harness.data.tokenizer import tokenizer_of
from harness.errors import HarnessError
from harness.received.litter import is_litter
from harness.received.text import word
from harness.recipe.episodes import compact, spelled_out
from harness.recipe.schema import Recipe

_PROMPT_MULTIPLE = 16
_THREADS = 4


def describe(recipe: Recipe, *, prompts_needed: bool = False) -> Dataset:
    """The recipe's dataset as an artifact. A dataset on the hub is downloaded first.

    Every row of its columns and every image and video of its cameras is checked.

    Without its tokenizer the lengths of the prompts are unknown; with `prompts_needed` that is refused.

    Raises: HarnessError of `resolve`, of `open_data` and of its reader, and of `left_out_of`;
    "action-dim-too-small", "tokenizer-too-large", "dataset-twice".
    """
    if recipe.data.datasets is None:
        return _describe(recipe, prompts_needed)
    check_each_once([resolve(part.data) for part in recipe.parts()])
    return together(recipe, [_describe(part, prompts_needed) for part in recipe.parts()])


def check_each_once(resolved: list[Resolved]) -> None:
    """Refuses a mixture in which two names lead to one directory.

    Raises: HarnessError "dataset-twice".
    """
    for n, one in enumerate(resolved):
        same = next((other for other in resolved[:n] if other.path == one.path), None)
        if same is not None:
            raise twice(n, one.source, same.source)


def _describe(recipe: Recipe, prompts_needed: bool) -> Dataset:
    resolved, dataset = open_for(recipe)
    left_out = left_out_of(recipe, dataset.episodes)
    cameras = {name for name in recipe.data.cameras.values() if name is not None}
    check_files_there(dataset, cameras)
    rows = check_rows(dataset, recipe)
    odd_images = check_cameras(dataset, cameras)
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
        left_out=_left_out(dataset),
        held_out=left_out,
        trained_frames=len(Kept(dataset.episodes, left_out)) if left_out else None,
        findings=[
            *rows.findings,
            *odd_images,
            *camera_findings(dataset, recipe),
            *dataset.odd,
            *_empty_finding(dataset),
            *_state_finding(recipe, dataset),
            *_horizon_finding(recipe, dataset),
        ],
    )
    return measure_prompts(recipe, found, needed=prompts_needed)


def measure_prompts(recipe: Recipe, dataset: Dataset, *, needed: bool) -> Dataset:
    """The dataset with the length of its longest prompt.

    With the state in the prompt it is the length for the state that takes most tokens.

    If the tokenizer is not on this machine and not `needed`, the length stays unknown, with the reason.

    Raises: HarnessError "tokenizer-too-large", "tokenizer-invalid"; those of `tokenizer_of` if the lengths
    are needed.
    """
    if dataset.members:
        parts = zip(recipe.parts(), dataset.members, strict=True)
        members = [measure_prompts(part, member, needed=needed) for part, member in parts]
        return dataset.model_copy(update=prompts_together(members) | {"members": members})
    try:
        tokenizer = tokenizer_of(recipe)
    except HarnessError as refusal:
        if needed or not (
            refusal.code.startswith("download-")
            or refusal.code
            in ("tokenizer-not-found", "not-writable", "disk-full", "offline", "fetch-not-asked")
        ):
            raise
        why = f"the tokenizer {recipe.data.tokenizer!r} is not here: {refusal.what}"
        return dataset.model_copy(update={"unknown": dataset.unknown | {"longest_prompt_tokens": why}})
    width = widths_of(recipe.data, dataset.features)["state"]
    longest = max(most_tokens(recipe, tokenizer, task, width) for task in dataset.tasks)
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

    Raises: HarnessError of `resolve` and of `open_data`; "dataset-feature-missing",
    "dataset-feature-invalid", "action-dim-too-small".
    """
    resolved = resolve(recipe.data)
    dataset = open_data(recipe.data, resolved.path)
    _check_features(recipe, dataset)
    return resolved, dataset


def content_hash(root: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of all data and metadata.

    Every file in a subdirectory of `root` counts, except hidden ones and what systems lay there. The hash
    depends only on names and bytes. Files directly in `root` (README, licence) and a downloader's hidden
    notes do not count.
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
    return len(parts) > 1 and not is_litter(*parts) and not any(part.startswith(".") for part in parts)


def _left_out(dataset: LeRobotDataset) -> LeftOut | None:
    read = {episode.index for episode in dataset.episodes}
    rest = [episode for episode in dataset.listed if episode.index not in read]
    if not rest:
        return None
    return LeftOut(
        episodes=compact(episode.index for episode in rest), frames=sum(episode.length for episode in rest)
    )


def _check_features(recipe: Recipe, dataset: LeRobotDataset) -> None:
    data = recipe.data
    wanted = [
        Wanted(f"data.cameras.{camera}", name, IMAGES, may_be_null=True)
        for camera, name in data.cameras.items()
        if name is not None
    ]
    one = len(data.state_features) == 1
    wanted += [Wanted("data.state", name, NUMBERS, may_be_null=one) for name in data.state_features]
    dataset.check_features([*wanted, Wanted("data.actions", data.actions, NUMBERS)])
    widths = widths_of(data, dataset.features)
    width = widths["actions"]
    if width > recipe.model.action_dim:
        raise HarnessError(
            "action-dim-too-small",
            "data.actions is wider than the model's action_dim",
            got=width,
            need=f"at most {recipe.model.action_dim}",
            fix=(
                f"--set {word(f'model.action_dim={width}')}, since these weights begin at random"
                if recipe.weights.source is None
                else f"--set {word(data.key)}.actions=ANOTHER_FEATURE; released weights have action_dim 32"
            ),
        )
    check_space(recipe, dataset.path, widths["state"], width, likely_state(dataset.features))


def _empty_finding(dataset: LeRobotDataset) -> list[str]:
    """A finding on episodes that the metadata list without frames: nothing of them is read."""
    empty = [episode.index for episode in dataset.empty]
    return [f"episodes without frames are left out: {spelled_out(compact(empty))}"] if empty else []


def _state_finding(recipe: Recipe, dataset: LeRobotDataset) -> list[str]:
    """A finding on a state that is wider than the model's vectors.

    No information is lost: the state enters this model through the prompt, or not at all.
    """
    room, width = recipe.model.action_dim, widths_of(recipe.data, dataset.features)["state"]
    if width <= room:
        return []
    how = (
        "it enters this model through the prompt, so nothing of it is lost"
        if recipe.model.discrete_state_input
        else "it does not enter this model, so nothing of it is lost"
    )
    name = " and ".join(recipe.data.state_features)
    return [f"{name} has {width} dimensions, more than model.action_dim ({room}); {how}"]


def _horizon_finding(recipe: Recipe, dataset: LeRobotDataset) -> list[str]:
    """A finding on a horizon that is longer than episodes: their chunks are padding for the most part."""
    horizon = recipe.model.action_horizon
    lengths = [episode.length for episode in dataset.episodes]
    shorter = sum(length < horizon for length in lengths)
    if not shorter:
        return []
    return [
        f"{shorter:,} of {len(lengths):,} episodes have fewer frames than model.action_horizon ({horizon}):"
        " no chunk of theirs is whole, and its end repeats the last action; --set"
        f" model.action_horizon={min(lengths)} is as long as the shortest"
    ]


def _cut(recipe: Recipe, longest: int) -> list[str]:
    limit = recipe.model.prompt_tokens
    if longest <= limit:
        return []
    has = "can have" if recipe.model.discrete_state_input else "has"
    return [
        f"the longest prompt {has} {longest} tokens and is cut to {limit}, as upstream does; --set"
        f" model.prompt_tokens={longest} keeps all of it"
    ]
