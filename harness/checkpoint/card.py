"""The model card of an export: README.md in the form that the hub of Hugging Face reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.checkpoint.card_keys import key_rows
from harness.received.text import one_line
from harness.recipe.schema import Recipe
from harness.units import format_bytes

_LIBRARY = {"openpi-jax": "openpi", "openpi-pytorch": "openpi", "lerobot": "lerobot"}
_HOW = {
    "openpi-jax": (
        "openpi in JAX loads it: a training configuration of this model, and this directory as the checkpoint"
        " (`scripts/serve_policy.py policy:checkpoint --policy.dir=DIR`)."
    ),
    "openpi-pytorch": (
        "openpi in PyTorch loads it: a training configuration of this model, and this directory as the"
        " checkpoint (`scripts/serve_policy.py policy:checkpoint --policy.dir=DIR`)."
    ),
    "lerobot": (
        "LeRobot loads it: `--policy.path=DIR`. The pipelines in it make the prompt of the training, and"
        " normalize with the statistics of the training."
    ),
}


def model_card(export: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The card's text. `export` is the content of harness/export.json.

    `facts`: `dataset_sha256`, `step`, `run`, `evaluation`; what is absent is said to be unknown.
    """
    recipe = export["recipe"]
    lines = [
        "---",
        f"library_name: {_LIBRARY[export['target']]}",
        "pipeline_tag: robotics",
        "tags: [pi05, robotics]",
        "---",
        "",
        f"# π0.5, {one_line(recipe['name'])}",
        "",
        one_line(recipe["description"]),
        "",
        _HOW[export["target"]],
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in _rows(export, facts)),
        "",
        "## Evaluation",
        "",
        _evaluation(facts),
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps(recipe, indent=2, ensure_ascii=False),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _rows(export: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("weights for", export["target"]),
        ("type", export["dtype"] or "as stored"),
        ("adapters merged", f"{len(export['merged'])} weights" if export["merged"] else "none"),
        ("step", facts.get("step", "unknown")),
        ("dataset", export["recipe"]["data"]["dataset"]),
        (
            "sha256 of the dataset",
            facts.get("dataset_sha256") or "unknown: the checkpoint does not record it",
        ),
    ]
    rows += key_rows(Recipe.model_validate(export["recipe"]), export["target"])
    for name, entry in export["files"].items():
        size = f", {format_bytes(entry['bytes'])}" if "bytes" in entry else ""
        rows.append((f"sha256 of {name}", f"{entry['sha256']}{size}"))
    rows += [
        # The last names of its path: the card is made to be shared.
        (f"made from {'/'.join(Path(location).parts[-3:])}", f"sha256 {digest}")
        for location, digest in zip(export["source"], export["sha256"], strict=True)
    ]
    check = export.get("check")
    rows.append(
        (
            "actions against the source",
            "not compared (harness export STEP OUT --check 4)"
            if check is None
            else f"largest difference {check['largest']:.3g} of {check['tolerance']:.3g} allowed,"
            f" {check['frames']} frames",
        )
    )
    return rows


def _evaluation(facts: Mapping[str, Any]) -> str:
    found = facts.get("evaluation")
    return one_line(str(found)) if found else "None is recorded beside the checkpoint."


def _cell(value: object) -> str:
    return one_line(str(value)).replace("|", "\\|")
