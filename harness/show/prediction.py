"""A prediction as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from rich.table import Table

from harness.artifacts import Prediction

# So many times of a chunk fit a terminal of 80 columns.
_TIMES = 6


def prediction_table(prediction: Prediction) -> Table:
    """Predicted and recorded actions, at times spread over the chunk, and the mean absolute error of every dimension."""
    horizon = prediction.action_horizon
    times = sorted({round(i * (horizon - 1) / (_TIMES - 1)) for i in range(_TIMES)})
    title = f"{prediction.task}: episode {prediction.episode}, frame {prediction.frame}, at {len(times)} of {horizon} times"
    table = Table(title=title, title_justify="left", caption_justify="left", box=None, pad_edge=False)
    table.add_column("actions")
    for time in times:
        table.add_column(f"+{time}" + ("*" if prediction.is_pad[time] else ""), justify="right")
    table.add_column("mean |error|", justify="right")
    for d, error in enumerate(prediction.mean_absolute_error):
        table.add_row(f"[{d}] recorded".replace("[", "\\["), *(f"{prediction.recorded[time][d]:.3f}" for time in times), "")
        table.add_row("    predicted", *(f"{prediction.predicted[time][d]:.3f}" for time in times), f"{error:.3g}")
    if any(prediction.is_pad):
        table.caption = "* past the episode's end: its last action repeated, not counted in the error"
    return table
