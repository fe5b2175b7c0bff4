"""Findings on data that train badly without an error.

Examples: no instruction, a camera that shows nothing, depth used as colour, actions that never change.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from harness.data.lerobot import LeRobotDataset
from harness.data.prompts import instruction
from harness.data.rows import Block
from harness.data.targets import Targets
from harness.data.targets import findings as target_findings
from harness.recipe.schema import Recipe

# Decoded frames per camera, spread evenly over the dataset.
SAMPLED_FRAMES = 16
# Most dimensions that a finding names.
_NAMED = 8
# The part of the gaps that agree where the metadata are wrong, not the rows.
_NEARLY_ALL = 0.99


class Rows(NamedTuple):
    """The task indices that occur in frames, sorted, and findings on the rows."""

    tasks: list[int]
    findings: list[str]


def check_rows(dataset: LeRobotDataset, recipe: Recipe) -> Rows:
    """Task indices and findings of the rows. Reads and checks every row.

    Raises: HarnessError of the dataset's reader.
    """
    frames: Counter[int] = Counter()
    without = skips = 0
    lacking: set[str] = set()
    pace = _Pace(dataset.fps)
    blank = [index for index, task in dataset.tasks.items() if not instruction(recipe.data, task).strip()]
    low, high = np.array(np.inf), np.array(-np.inf)
    targets = Targets(dataset.frames)
    for block in dataset.blocks():
        targets.look(block)
        tasks, counts = np.unique(block.task_index, return_counts=True)
        frames.update(dict(zip(tasks.tolist(), counts.tolist(), strict=True)))
        without += _episodes_with(block, blank)
        skips += block.skips
        lacking.update(block.lacking)
        pace.look(block)
        low, high = np.minimum(low, block.actions.min(axis=0)), np.maximum(high, block.actions.max(axis=0))
    empty = sum(frames[index] for index in blank)
    said = [
        f"{empty:,} of {dataset.frames:,} frames, in {without:,} of {len(dataset.episodes):,} episodes, have"
        " no instruction (their task is empty)"
    ]
    return Rows(
        sorted(frames),
        [
            *pace.findings(),
            *_skipped(skips),
            *_lacking(lacking),
            *(said if empty else []),
            *_still(recipe.data.actions, low, high, dataset.frames),
            *target_findings(recipe, targets, dataset.names.get(recipe.data.actions), len(low)),
        ],
    )


def _skipped(count: int) -> list[str]:
    """A finding on frames that were taken out of episodes, of which the others kept their numbers."""
    if not count:
        return []
    where = "once" if count == 1 else f"{count:,} times"
    return [
        f"frame_index passes over numbers {where}: frames were taken out there; an action chunk goes on with"
        " the next row, as in LeRobot"
    ]


def _lacking(columns: set[str]) -> list[str]:
    """A finding on columns that tables lack, and that are taken from the order of the rows."""
    if not columns:
        return []
    return [
        f"tables have no column {' and '.join(sorted(columns))}: their rows count in the order in which they"
        " stand, as LeRobot reads them, and a row that is lost or misplaced is not seen by it"
    ]


def _episodes_with(block: Block, tasks: list[int]) -> int:
    """Number of the block's episodes that have a frame of one of these tasks."""
    here = np.isin(block.task_index, tasks)
    starts = np.cumsum([0, *(episode.length for episode in block.episodes[:-1])])
    return int(np.logical_or.reduceat(here, starts).sum())


def _still(name: str, low: np.ndarray, high: np.ndarray, frames: int) -> list[str]:
    """A finding on action dimensions that have the same value in every frame."""
    still = [d for d in range(len(low)) if low[d] == high[d]] if frames > 1 else []
    if not still:
        return []
    values = {d: f"{low[d]:g}" for d in still}
    if len(still) == len(low) and not low.any():
        return [
            f"{name}: all {len(low)} dimensions are 0 in all {frames:,} frames; there is nothing to learn"
        ]
    named = ", ".join(f"{name}[{d}] is {values[d]}" for d in still[:_NAMED]) + (
        f" and {len(still) - _NAMED} more" if len(still) > _NAMED else ""
    )
    return [
        f"{len(still)} of {len(low)} dimensions of the actions never change in {frames:,} frames: {named}"
    ]


class _Pace:
    """The gaps between the rows of each episode, in seconds, compared with 1/fps of the metadata.

    An action chunk spans another time than the recipe's author intended if they differ.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.rows = self.gaps = self.wrong = self.alike = 0
        # Where the first wrong gap is, its length, and the usual wrong gap.
        self.where, self.first, self.usual = "", 0.0, 0.0

    def look(self, block: Block) -> None:
        """Counts the gaps of a block."""
        steps = np.diff(block.timestamp)
        within = np.ones(len(steps), dtype=bool)
        within[np.cumsum([episode.length for episode in block.episodes])[:-1] - 1] = False
        wrong = within & (np.abs(steps - 1 / self.fps) > 0.25 / self.fps)
        if wrong.any() and not self.where:
            at = int(np.argmax(wrong))
            row = block.episodes[0].row + at
            self.where = f"{block.episodes[0].file} rows {row} and {row + 1}"
            self.first, self.usual = float(steps[at]), float(np.median(steps[wrong]))
        alike = within & (np.abs(steps - self.usual) <= 0.25 * abs(self.usual))
        self.rows += len(block.timestamp)
        self.gaps += int(within.sum())
        self.wrong += int(wrong.sum())
        self.alike += int(alike.sum()) if self.where else 0

    def findings(self) -> list[str]:
        if not self.wrong:
            return []
        if self.usual > 0 and self.alike >= _NEARLY_ALL * self.gaps:
            rows = self.rows - (self.gaps - self.alike)
            return [
                f"the table runs at {1 / self.usual:.4g} frames a second throughout ({rows:,} of"
                f" {self.rows:,} rows): fps in meta/info.json is wrong, which says {self.fps:g}"
            ]
        return [
            f"{self.where} are {self.first:.4g} s apart, and meta/info.json says {self.fps:g} frames a second"
            f" ({1 / self.fps:.4g} s); {self.wrong:,} of {self.gaps:,} gaps between rows differ"
        ]


def camera_findings(dataset: LeRobotDataset, recipe: Recipe) -> list[str]:
    """Findings on the features that are mapped to cameras.

    A feature mapped twice, depth, and pictures that show nothing.

    Raises: HarnessError of the dataset's reader.
    """
    cameras = {camera: name for camera, name in recipe.data.cameras.items() if name is not None}
    findings = []
    for name, count in Counter(cameras.values()).items():
        if count > 1:
            findings.append(
                f"{name} is mapped to {count} cameras:"
                f" {', '.join(camera for camera, of in cameras.items() if of == name)}"
            )
        if name in dataset.depth or "depth" in name.lower():
            why = "the metadata call it a depth map" if name in dataset.depth else "its name says depth"
            findings.append(f"{name} is mapped as a colour camera, and {why}")
        findings += _shows_nothing(dataset, name)
    return findings


def _shows_nothing(dataset: LeRobotDataset, name: str) -> list[str]:
    """A finding on a camera whose sampled pictures have one colour each, or are all the same."""
    indices = np.unique(
        np.linspace(0, dataset.frames - 1, min(SAMPLED_FRAMES, dataset.frames)).round().astype(int)
    )
    plain, black, kinds = 0, 0, set()
    for i in indices:
        image = dataset.image(int(i), name)
        one = bool((image == image[0, 0]).all())
        plain, black = plain + one, black + (one and not image.any())
        kinds.add(hash(image.tobytes()))
    looked = f"of {len(indices)} sampled frames"
    if plain:
        return [f"{name}: {plain} {looked} are of one colour" + (f", {black} of them black" if black else "")]
    if len(kinds) == 1 and len(indices) > 1:
        return [f"{name}: all {len(indices)} sampled frames are the same picture, to the last pixel"]
    return []
