"""A prediction as a table for a terminal. Nothing is printed here."""

from __future__ import annotations

from harness.artifacts import Prediction
from harness.show.rows import Cells

# So many times of a chunk fit on a terminal of 80 columns.
_TIMES = 6


def prediction_table(prediction: Prediction) -> Cells:
    """Predicted and recorded actions at times spread over the chunk, and each dimension's mean error.

    The error is absolute.
    """
    horizon = prediction.action_horizon
    times = sorted({round(i * (horizon - 1) / (_TIMES - 1)) for i in range(_TIMES)})
    title = (
        f"{prediction.task}: episode {prediction.episode}, frame {prediction.frame}, at {len(times)} of"
        f" {horizon} times"
    )
    table = Cells(
        title,
        (
            "actions",
            *(f"+{time}" + ("*" if prediction.is_pad[time] else "") for time in times),
            "mean |error|",
        ),
    )
    for d, error in enumerate(prediction.mean_absolute_error):
        table.row(f"[{d}] recorded", *(f"{prediction.recorded[time][d]:.3f}" for time in times), "")
        table.row(
            "    predicted", *(f"{prediction.predicted[time][d]:.3f}" for time in times), f"{error:.3g}"
        )
    table.note(
        "* past the episode's end: its last action repeated, not counted in the error"
        if any(prediction.is_pad)
        else ""
    )
    return table
