"""The plan of serving for a terminal of 100 columns. Nothing is printed here."""

from __future__ import annotations

from rich.console import Group, RenderableType

from harness.artifacts import ServedShape, ServingPlan
from harness.show.rows import Cells, line, rows_table
from harness.units import format_bytes


def serving_view(plan: ServingPlan) -> RenderableType:
    """Facts; a row a shape with what is compiled and what is predicted; what the prediction is."""
    verdict = {True: "yes", False: "no", None: "not known"}[plan.fits]
    need = max(shape.device_bytes for shape in plan.shapes)
    rows = f"{plan.batch} row{'s' if plan.batch > 1 else ''}"
    facts = [
        ("device", f"{plan.device}, {format_bytes(plan.usable_bytes)} usable"),
        ("a call", f"{rows}, {plan.steps} Euler steps, cameras {', '.join(plan.cameras)}"),
        ("fits", f"{verdict}: {format_bytes(need)} compiled"),
    ]
    return Group(
        rows_table(f"serving {plan.recipe}", facts),
        shapes_table(plan.shapes),
        line("compiled: by XLA for this card; moved and kernels are of one call"),
        line(f"predicted, not measured: {plan.model}"),
        *[line(f"{name}: unknown, {why}") for name, why in plan.shapes[0].unknown.items()],
        *[line(f"note: {note}") for note in plan.notes],
    )


def shapes_table(shapes: list[ServedShape]) -> Cells:
    """One row per prompt length."""
    columns = ("prompt", "bytes", "kernels", "moved", "operations", "predicted", "floor")
    table = Cells("compiled, and predicted", columns, framed=True)
    for shape in shapes:
        table.row(
            f"{shape.prompt_tokens} tokens",
            format_bytes(shape.device_bytes),
            "?" if shape.kernels is None else f"{shape.kernels:,}",
            "?" if shape.moved_bytes is None else f"{shape.moved_bytes / 1e9:.1f} GB",
            "?" if shape.operations is None else f"{shape.operations / 1e12:.2f} Top",
            _milliseconds(shape.seconds),
            _milliseconds(shape.floor_seconds),
        )
    return table


def _milliseconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{1e3 * seconds:.1f} ms"
