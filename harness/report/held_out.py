"""The curves of the held-out episodes as coordinates for inline SVG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from harness.artifacts.choice import Apart, Choice, Interval

# Drawing units of a panel. The browser keeps their proportion.
WIDTH, HEIGHT = 460, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 24
# So many saves get a label below them.
_LABELS = 7
_DIGITS = ".4g"


class Dot(NamedTuple):
    """One save. `kind` is chosen, disk or gone."""

    x: float
    y: float
    kind: str
    words: str


class Chart(NamedTuple):
    """A curve with its intervals. `across` and `up` are (position, text) of the ticks on each axis."""

    title: str
    band: str
    line: str
    dots: list[Dot]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]


def charts(choice: Choice) -> list[Chart]:
    """The held-out loss and the error of actions over all dimensions; of a mixture also each one's loss."""
    found = [
        _chart("held-out loss", choice, [mark.loss for mark in choice.marks]),
        _chart("action error, share of the spread", choice, [mark.action for mark in choice.marks]),
        *(
            _chart(f"held-out loss of {name}", choice, [mark.datasets[part].loss for mark in choice.marks])
            for part, name in enumerate(_datasets(choice))
        ),
    ]
    return [chart for chart in found if chart is not None]


def dimension_charts(choice: Choice) -> list[Chart]:
    """The error of each dimension of the actions, in the robot's units; of 64 dimensions at most."""
    errors = [("", [mark.errors for mark in choice.marks])]
    for part, name in enumerate(_datasets(choice)):
        errors.append((f" of {name}", [mark.datasets[part].errors for mark in choice.marks]))
    found = [
        _chart(f"actions[{d}]{name}", choice, [save[d] for save in saves])
        for name, saves in errors
        for d in range(min(64, *map(len, saves)) if saves else 0)
    ]
    return [chart for chart in found if chart is not None]


def _datasets(choice: Choice) -> list[str]:
    """The names of a mixture's datasets, as far as every save has them."""
    names = [[one.dataset for one in mark.datasets] for mark in choice.marks]
    return names[0] if names and all(each == names[0] for each in names) else []


def _chart(title: str, choice: Choice, values: list[Interval]) -> Chart | None:
    known = [
        (mark, each, each.mean)
        for mark, each in zip(choice.marks, values, strict=True)
        if each.mean is not None
    ]
    if not known:
        return None
    ends = [
        (mean if each.low is None else each.low, mean if each.high is None else each.high)
        for _, each, mean in known
    ]
    low, high = _range([mean for _, _, mean in known], ends)
    first, last = known[0][0].step, known[-1][0].step
    wide, tall = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def x(step: int) -> float:
        return _LEFT + (wide / 2 if first == last else (step - first) / (last - first) * wide)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return _TOP + (1 - share) * tall

    upper = [f"{x(mark.step):.1f},{y(end):.1f}" for (mark, _, _), (_, end) in zip(known, ends, strict=True)]
    lower = [f"{x(mark.step):.1f},{y(end):.1f}" for (mark, _, _), (end, _) in zip(known, ends, strict=True)]
    dots = [
        Dot(
            x(mark.step),
            y(mean),
            _kind(mark.step, mark.on_disk, choice),
            f"step {mark.step:,}: {each.words(_DIGITS)}",
        )
        for mark, each, mean in known
    ]
    shown = sorted({round(i * (len(known) - 1) / (_LABELS - 1)) for i in range(_LABELS)})
    return Chart(
        title,
        " ".join([*upper, *reversed(lower)]),
        " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in dots),
        dots,
        [(dots[i].x, f"{known[i][0].step:,}") for i in shown],
        [(y(value), f"{value:.3g}") for value in (low, (low + high) / 2, high)],
    )


def _range(means: list[float], ends: list[tuple[float, float]]) -> tuple[float, float]:
    """The axis: all intervals, but no more than three times the range of the means on either side.

    Wide intervals of a few episodes would otherwise flatten the curve.
    """
    least, most = min(means), max(means)
    spread = (most - least) or abs(most) or 1.0
    low = max(min(low for low, _ in ends), least - 3 * spread)
    high = min(max(high for _, high in ends), most + 3 * spread)
    return (low, high) if high > low else (least - spread, most + spread)


def _kind(step: int, on_disk: bool, choice: Choice) -> str:
    return "chosen" if step == choice.chosen else "disk" if on_disk else "gone"


def _distance(apart: Apart) -> str:
    """How many switches came early or late, and by how many frames on average."""
    return f"{apart.many}, by {apart.frames:.1f}" if apart.many else "0"


# The filters of the template.
FILTERS: dict[str, Callable[[Any], str]] = {
    "interval": lambda each: each.words(_DIGITS),
    "distance": _distance,
}
