"""The movement of the parameters as a picture.

A row is a part of the network, a column is a layer. The colour is the movement relative to the size.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

from harness.artifacts import Checkpoint, Moved
from harness.checkpoint.scan import find
from harness.run.directory import MOVED, write_atomic

_ROW_INCHES, _COLUMN_INCHES = 0.34, 0.27


def write(checkpoint: Checkpoint, inspected: Path, run: Path | None) -> Path:
    """Path of the picture, which it writes: in the named run, else in the checkpoint's own, else here."""
    assert checkpoint.moved is not None
    path = (run or find(inspected).run or Path()) / MOVED
    name = checkpoint.path if checkpoint.step is None else f"step {checkpoint.step} of {checkpoint.path}"
    write_atomic(path, draw(checkpoint.moved, f"what moved: {name}\nsince {checkpoint.moved.against}"))
    return path


def grid(moved: Moved) -> tuple[list[str], int, np.ndarray]:
    """(names of the rows, number of layers, relative movement [rows, layers]).

    NaN where there is no such layer, and where a norm is not finite. A part without layers has one column.
    """
    names = list(dict.fromkeys(block.name for block in moved.blocks))
    layers = max((block.layer + 1 for block in moved.blocks if block.layer is not None), default=1)
    values = np.full((len(names), layers), np.nan)
    totals: dict[tuple[int, int], list[float]] = {}
    for block in moved.blocks:
        # A part may have leaves in layers and one beside them, such as the last norm. That leaf counts in the
        # first column.
        column = block.layer if block.layer is not None else 0
        entry = totals.setdefault((names.index(block.name), column), [0.0, 0.0])
        for index, norm in enumerate((block.update_norm, block.base_norm)):
            entry[index] += math.inf if norm is None else norm * norm
    for (row, column), (update, base) in totals.items():
        values[row, column] = (
            math.sqrt(update / base) if base and math.isfinite(update) and math.isfinite(base) else math.nan
        )
    return names, layers, values


def draw(moved: Moved, title: str) -> bytes:
    """A PNG. Parts that did not move are grey."""
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names, layers, values = grid(moved)
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1e-6, 1e-5)
    # Not pyplot's figure: this one needs no display and leaves no state behind.
    figure = Figure(
        figsize=(3.6 + max(layers, 12) * _COLUMN_INCHES, 1.9 + len(names) * _ROW_INCHES), layout="constrained"
    )
    panel, bars = figure.subplots(1, 2, width_ratios=[max(layers, 8), 6])
    colours = LogNorm(max(low, high * 1e-4), max(high, low * 1.01))
    shape = {"edgecolors": "white", "linewidth": 0.5}
    edges = np.arange(layers + 1), np.arange(len(names) + 1)
    panel.pcolormesh(
        *edges,
        np.ma.masked_where(values != 0, np.zeros_like(values)),
        cmap=ListedColormap(["#e4e4e4"]),
        **shape,
    )
    mesh = panel.pcolormesh(
        *edges,
        np.ma.masked_invalid(np.where(values > 0, values, np.nan)),
        norm=colours,
        cmap="viridis",
        **shape,
    )
    panel.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    panel.invert_yaxis()
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("layer (a part without layers has one column); grey did not move", fontsize=8)
    panel.tick_params(labelsize=8)
    figure.colorbar(mesh, ax=panel, location="top", shrink=0.7, aspect=40).set_label(
        "norm of the update / norm of the weights", fontsize=8
    )
    widths = [math.log10(group.relative / low) + 1 if group.relative else 0.0 for group in moved.groups]
    bars.barh([group.name for group in moved.groups], widths, height=0.6, color="#1f4e79")
    for row, (group, width) in enumerate(zip(moved.groups, widths, strict=True)):
        words = (
            "unknown"
            if group.relative is None
            else f"{group.relative:.1e}"
            if group.relative
            else "did not move"
        )
        bars.text(width + 0.05, row, words, va="center", fontsize=8)
    bars.set_xlim(0, max([*widths, 1.0]) * 1.6)
    bars.set_ylim(max(len(moved.groups), 10) - 0.5, -0.5)
    bars.set_xticks([])
    bars.tick_params(labelsize=8)
    bars.set_xlabel("relative, log length", fontsize=8)
    bars.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
