"""Predicted beside recorded actions, as a picture."""

from __future__ import annotations

import io
import math

import numpy as np

from harness.artifacts import Prediction

# The number of columns of plots, and a plot's size in inches.
_COLUMNS, _PANEL = 2, (5.2, 2.2)


def plot(prediction: Prediction) -> bytes:
    """A PNG: one panel per dimension, with recorded and predicted actions over the chunk.

    The padding after the episode's end is grey.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    predicted, recorded = np.array(prediction.predicted), np.array(prediction.recorded)
    times = np.arange(len(predicted))
    dimensions = predicted.shape[1]
    rows = math.ceil(dimensions / _COLUMNS)
    # Not pyplot's figure: this one needs no display and leaves no state behind.
    figure = Figure(figsize=(_COLUMNS * _PANEL[0], rows * _PANEL[1] + 0.9), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for d, panel in enumerate(panels):
        if d >= dimensions:
            panel.set_axis_off()
            continue
        panel.plot(times, recorded[:, d], "o-", color="#1f4e79", markersize=3.5, label="recorded")
        panel.plot(times, predicted[:, d], "s--", color="#d9730d", markersize=3.5, label="predicted")
        if any(prediction.is_pad):
            panel.axvspan(
                prediction.is_pad.index(True) - 0.5,
                len(times) - 0.5,
                color="0.9",
                label="past the episode's end",
            )
        panel.set_title(f"actions[{d}]   mean |error| {prediction.mean_absolute_error[d]:.3g}", fontsize=9)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
    step = "" if prediction.step is None else f"step {prediction.step}, "
    figure.suptitle(
        f"{prediction.task}\n{step}episode {prediction.episode}, frame {prediction.frame}, seed"
        f" {prediction.seed}",
        fontsize=10,
    )
    figure.supxlabel("frames after this one", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
