"""The cards that were measured: a Markdown table, and a picture of what was predicted against it.

    python -m benchmarks.measured_cards [--picture benchmarks/gpu/measured.png]
    python -m benchmarks.measured_cards --add calibration.json --origin "our run, 2026-12-01"

Nothing is measured here. `harness calibrate` writes calibration.json on the machine that has the card.
`--add` takes such a file among the shipped ones (`harness/plan/gpus/`), under the card's key in the planner's
table, without the uuid of the card. Predicted seconds are those of today's cost model. Predicted bytes are
the planner's, or the compiler's where the planner was not asked.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.artifacts import Calibration
from harness.errors import HarnessError
from harness.plan import cards
from harness.plan.calibrated import predicted_now
from harness.plan.measured import measured_cards, name_of
from harness.received.files import ARTIFACT_BYTES
from harness.received.json import read_json
from harness.received.text import word
from harness.run.directory import write_atomic
from harness.strict import parse
from harness.units import GIB

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "harness/plan/gpus"
PICTURE = HERE / "gpu/measured.png"
# The share within which predicted seconds are wanted.
WANTED = 0.15


class Row(NamedTuple):
    """One measured plan. Bytes and seconds that are not known are None."""

    card: str
    name: str
    software: str
    predicted_bytes: int | None
    peak_bytes: int | None
    predicted_s: float | None
    measured_s: float


def rows() -> list[Row]:
    """The plans of all shipped cards that predictions may follow from."""
    found = []
    for key, card in measured_cards().items():
        software = f"jax {card.jax}" + (f", {card.plugin}" if card.plugin else "")
        for stage in card.plans():
            plan = stage.plan
            assert plan is not None
            size = plan.planned_bytes if plan.planned_bytes is not None else plan.compiled_bytes
            found.append(
                Row(
                    key,
                    name_of(stage, card.total_bytes),
                    software,
                    size,
                    plan.peak_bytes,
                    predicted_now(card, plan),
                    plan.step_s,
                )
            )
    return found


def table(every: list[Row]) -> list[str]:
    """The lines of the Markdown table in the README."""
    heads = [
        "card",
        "plan",
        "bytes by the compiler",
        "allocator's peak",
        "seconds predicted",
        "measured",
        "with",
    ]
    cells = [
        [
            row.card,
            row.name,
            _gib(row.predicted_bytes),
            _gib(row.peak_bytes),
            "not known" if row.predicted_s is None else f"{row.predicted_s:.2f}",
            f"{row.measured_s:.2f}",
            row.software,
        ]
        for row in every
    ]
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *cells)]


def _gib(size: int | None) -> str:
    return "not recorded" if size is None else f"{size / GIB:.2f} GiB"


def picture(every: list[Row], path: Path) -> None:
    """Draws predicted against measured, bytes on the left and seconds on the right.

    Raises: HarnessError "not-writable".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 5))
    handles = [
        right.plot([], [], _MARKS[n % len(_MARKS)], color=f"C{n % 10}", label=_legend(row))[0]
        for n, row in enumerate(every)
    ]
    sizes = [(_in_gib(row.peak_bytes), _in_gib(row.predicted_bytes)) for row in every]
    times = [(row.measured_s, row.predicted_s) for row in every]
    _panel(left, sizes, "allocator's peak, GiB", "predicted, GiB")
    _panel(right, times, "measured seconds of a step", "predicted by the cost model", WANTED)
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=8, frameon=False)
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, bbox_inches="tight")
    pyplot.close(figure)
    write_atomic(path, drawn.getvalue())


_MARKS = "os^DvPX"


def _in_gib(size: int | None) -> float | None:
    return None if size is None else size / GIB


def _legend(row: Row) -> str:
    """What a point is, and how far the predictions are from it."""
    off = []
    if row.predicted_bytes and row.peak_bytes:
        off.append(f"bytes {100 * (row.predicted_bytes / row.peak_bytes - 1):+.1f} %")
    if row.predicted_s:
        off.append(f"seconds {100 * (row.predicted_s / row.measured_s - 1):+.1f} %")
    return f"{row.card}, {row.name} ({row.software}): {', '.join(off) or 'no prediction'}"


def _panel(
    axes: Any, points: Sequence[tuple[float | None, float | None]], x: str, y: str, band: float = 0.0
) -> None:
    """One half of the picture: the line of equals, the wanted band around it, a point for each plan."""
    known = [(n, measured, made) for n, (measured, made) in enumerate(points) if measured and made]
    most = 1.15 * max((max(point[1:]) for point in known), default=1.0)
    ends = [0.0, most]
    axes.plot(ends, ends, color="0.6", linewidth=1)
    if band:
        low, high = [(1 - band) * end for end in ends], [(1 + band) * end for end in ends]
        axes.fill_between(ends, low, high, color="0.92")
        axes.text(0.03 * most, 0.93 * most, f"grey: within {band:.0%}", fontsize=8, color="0.4")
    for n, measured, made in known:
        axes.plot(measured, made, _MARKS[n % len(_MARKS)], color=f"C{n % 10}", markersize=8)
    axes.set_xlim(0, most)
    axes.set_ylim(0, most)
    axes.set_aspect("equal")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def add(path: Path, origin: str) -> Path:
    """Takes a calibration among the shipped ones, and returns its file there.

    Raises: HarnessError "artifact-invalid", "gpu-unknown", "calibration-empty".
    """
    fix = "harness calibrate writes such a file on the machine that has the card"
    try:
        data = read_json(path, path.parent, ARTIFACT_BYTES, finite=True)
    except (OSError, ValueError) as error:
        raise HarnessError("artifact-invalid", f"{path} cannot be read: {error}", fix=fix) from error
    found = parse(Calibration, data, where=str(path), code="artifact-invalid", fix=fix)
    if not found.plans():
        raise HarnessError(
            "calibration-empty",
            f"{path} has no plan that ran on an idle card at its usual clock",
            got=", ".join(f"{stage.name} {stage.state}" for stage in found.stages) or "no stage",
            need="a measured plan without marks",
            fix=f"harness calibrate --minutes 15, then --add {word(path)} again",
        )
    target = SHIPPED / f"{cards.find(found.card)}.json"
    shipped = found.model_copy(update={"uuid": None, "origin": origin})
    write_atomic(target, shipped.model_dump_json(indent=1, exclude_none=True) + "\n")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.measured_cards", description="The cards that were measured."
    )
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--add", type=Path, help="a calibration.json to take among the shipped ones")
    parser.add_argument("--origin", default="", help="whose measurement it is, and when")
    options = parser.parse_args()
    if options.add is not None:
        if not options.origin:
            parser.error("--add needs --origin: whose measurement it is, and when")
        print(add(options.add, options.origin))
        measured_cards.cache_clear()
    every = rows()
    print("\n".join(table(every)))
    picture(every, options.picture)


if __name__ == "__main__":
    main()
