"""The page of a dataset: one HTML page that needs no network and no script.

It shows episodes, camera strips, states, actions and prompts. The caller passes the reader of the dataset and
the normalization.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from harness.artifacts import Dataset, NormStats
from harness.report.template import template

# Episodes shown in full, spread evenly over the dataset. Each has its own line colour in report.css.
SHOWN_EPISODES = 6
STRIP_FRAMES = 8
THUMBNAIL = 128
# Limit for all strips together: base64 adds a third, and the page stays under 2 MB.
MAX_IMAGE_BYTES = 1_200_000
LINE_POINTS = 150
# Normalized values beyond this are drawn at the edge. The numbers beside the chart state them.
MOST_SHOWN = 4.0
MOST_DIMENSIONS = 32
MOST_TASKS = 100
# A chart's drawing units. The browser stretches it.
WIDTH, HEIGHT = 300, 120

T = TypeVar("T")
Normalized = Callable[[str, np.ndarray], np.ndarray]


class EpisodeSpan(Protocol):
    """An episode: frames `first` to `first + length` of the dataset."""

    @property
    def index(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def length(self) -> int: ...


class Columns(Protocol):
    """All frames: state [N, S], actions [N, A]."""

    @property
    def state(self) -> np.ndarray: ...
    @property
    def actions(self) -> np.ndarray: ...


class Frames(Protocol):
    """The part of a dataset that the page reads."""

    @property
    def episodes(self) -> Sequence[EpisodeSpan]: ...
    @property
    def columns(self) -> Columns: ...
    def image(self, i: int, feature: str) -> np.ndarray: ...
    def task(self, i: int) -> str: ...


class Strip(NamedTuple):
    camera: str
    uri: str


class Shown(NamedTuple):
    number: int
    frames: int
    seconds: float
    task: str
    strips: list[Strip]


class Line(NamedTuple):
    colour: int
    path: str


class Chart(NamedTuple):
    """One dimension. `top` and `bottom` are where 1 and -1 lie, in drawing units."""

    name: str
    lines: list[Line]
    top: float
    bottom: float
    numbers: list[tuple[str, float]]
    outside_percent: float
    finding: str | None


class Bin(NamedTuple):
    label: str
    episodes: int
    percent: float


def render(
    dataset: Dataset,
    stats: NormStats,
    frames: Frames,
    tokens: dict[str, int],
    normalized: Normalized,
    mode: str,
    *,
    seen: Columns | None = None,
    names: dict[str, list[str]] | None = None,
    told: dict[str, str] | None = None,
) -> str:
    """The page as HTML, under 2 MB.

    `tokens` is the length of each task's prompt. `mode` names the normalization. `seen` are state and actions
    as the model sees them, if that is not as they are recorded; `told` says how, by key. `names` are those of
    the dimensions, by key.

    Raises: HarnessError of the dataset's reader if a picture that is shown cannot be read.
    """
    seen, told = seen or frames.columns, told or {}
    episodes = spread(frames.episodes, SHOWN_EPISODES)
    shown = [_show(dataset, frames, episode, len(episodes)) for episode in episodes]
    lengths = [episode.length for episode in frames.episodes]
    tasks = Counter(dict.fromkeys(dataset.tasks, 0))
    for episode in frames.episodes:
        tasks[frames.task(episode.first)] += 1
    return template("dataset.html.j2", number=_number).render(
        dataset=dataset,
        stats=stats,
        shown=shown,
        charts={
            key: charts(
                key, getattr(seen, key), episodes, stats, normalized, names=(names or {}).get(key, [])
            )
            for key in ("state", "actions")
            if key in stats.norm_stats
        },
        told=told,
        mode=mode,
        lengths=histogram(lengths, "frames"),
        shortest=min(lengths),
        longest=max(lengths),
        tasks=[(task, count, tokens.get(task)) for task, count in tasks.most_common(MOST_TASKS)],
        prompts=histogram([n for task, n in tokens.items() for _ in range(tasks[task])], "tokens"),
        seconds=dataset.frames / dataset.fps,
        width=WIDTH,
        height=HEIGHT,
    )


def spread(values: Sequence[T], count: int) -> list[T]:
    """`count` of the values, or all: the first, the last, and evenly spaced ones between."""
    indices = np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))
    return [values[index] for index in indices]


def _show(dataset: Dataset, frames: Frames, episode: EpisodeSpan, of: int) -> Shown:
    cameras = [(camera, feature) for camera, feature in dataset.cameras.items() if feature is not None]
    budget = MAX_IMAGE_BYTES // max(1, of * len(cameras))
    indices = spread(range(episode.first, episode.first + episode.length), STRIP_FRAMES)
    strips = [
        Strip(f"{camera} ({feature})", strip([frames.image(i, feature) for i in indices], budget))
        for camera, feature in cameras
    ]
    return Shown(
        episode.index, episode.length, episode.length / dataset.fps, frames.task(episode.first), strips
    )


def strip(images: list[np.ndarray], budget: int) -> str:
    """Pictures side by side as a JPEG data URI of at most `budget` bytes before base64."""
    from PIL import Image

    size = THUMBNAIL
    while True:
        small = [Image.fromarray(image) for image in images]
        for picture in small:
            picture.thumbnail((size * 2, size))
        sheet = Image.new(
            "RGB", (sum(p.width for p in small) + 2 * (len(small) - 1), max(p.height for p in small)), "white"
        )
        left = 0
        for picture in small:
            sheet.paste(picture, (left, 0))
            left += picture.width + 2
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=78)
        if buffer.tell() <= budget or size <= THUMBNAIL // 8:
            return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        size //= 2


def charts(
    key: str,
    values: np.ndarray,
    episodes: list[EpisodeSpan],
    stats: NormStats,
    normalized: Normalized,
    *,
    names: Sequence[str] = (),
) -> list[Chart]:
    """One chart per dimension: the shown episodes' normalized values over their frames.

    Shapes: values [N, D].
    """
    one = stats.norm_stats["state" if key == "state" else "actions"]
    whole = normalized(key, values)
    longest = max(episode.length for episode in episodes)
    found = []
    for d in range(min(values.shape[1], MOST_DIMENSIONS)):
        column = whole[:, d]
        edge = float(np.clip(np.abs(column).max() * 1.05, 1.25, MOST_SHOWN))
        y = np.clip(HEIGHT / 2 * (1 - column / edge), 1, HEIGHT - 1)
        lines = []
        for colour, episode in enumerate(episodes):
            indices = np.array(spread(range(episode.length), LINE_POINTS))
            x = indices * (WIDTH / max(1, longest - 1))
            points = zip(x, y[episode.first + indices], strict=True)
            lines.append(Line(colour, "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)))
        low, high = float(values[:, d].min()), float(values[:, d].max())
        finding = next(
            (f"{f.problem}; {f.fix}" for f in stats.findings if (f.key, f.dimension) == (key, d)), None
        )
        found.append(
            Chart(
                f"{key}[{d}]" + (f" {names[d]}" if d < len(names) else ""),
                lines,
                HEIGHT / 2 * (1 - 1 / edge),
                HEIGHT / 2 * (1 + 1 / edge),
                [
                    ("min", low),
                    ("q01", one.q01[d]),
                    ("mean", one.mean[d]),
                    ("q99", one.q99[d]),
                    ("max", high),
                ],
                100 * float((np.abs(column) > 1).mean()),
                finding,
            )
        )
    return found


def histogram(values: list[int], unit: str) -> list[Bin]:
    """At most 12 bins of equal width over whole numbers, with the share of the fullest as percent."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = -(-(high - low + 1) // 12)
    counts = Counter((value - low) // width for value in values)
    most = max(counts.values())
    bins = []
    for n in range((high - low) // width + 1):
        first, last = low + n * width, min(high, low + (n + 1) * width - 1)
        label = f"{first} {unit}" if first == last else f"{first}–{last} {unit}"
        bins.append(Bin(label, counts[n], 100 * counts[n] / most))
    return bins


def _number(value: float) -> str:
    """The value with three digits and a true minus sign."""
    return f"{value:.3g}".replace("-", "−").replace("e−0", "e−")
