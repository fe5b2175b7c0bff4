"""What a manifest claims, field by field, against what is found: ordered so that the first difference explains those after it.

A recipe decides what is computed, data and weights what it is computed from, software and device in which arithmetic; the
compiled program and the metrics follow from all of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.artifacts.training import Manifest
from harness.artifacts.verdict import Compared, Status

# Cadence and names do not change what a step learns (Recipe.sha256 leaves them out too).
_NO_MATTER = frozenset({"name", "description", "train.steps", "train.save_every_steps", "train.keep_every_steps", "train.log_every_steps", "train.save"})


class Found(NamedTuple):
    """What was found, in place of what the manifest says; None where it could not be read, and `why` says why, by field."""

    recipe: Mapping[str, Any] | None
    dataset_sha256: str | None
    norm_stats_sha256: str | None
    weights: Mapping[str, str] | None
    plan: Mapping[str, Any] | None
    packages: Mapping[str, str] | None
    python: str | None
    lock_sha256: str | None
    source_revision: str | None
    image: str | None
    environment: Mapping[str, str] | None
    machine: Mapping[str, Any] | None
    device: str | None
    step_fingerprint: str | None
    why: Mapping[str, str] = {}


def compare(manifest: Manifest, found: Found) -> list[Compared]:
    """Every field, in the order in which differences explain one another."""
    rows = _mapping("recipe", manifest.recipe, found.recipe, found.why, ignored=_NO_MATTER)
    rows.append(_one("dataset", manifest.dataset_sha256, found.dataset_sha256, found.why))
    rows.append(_one("norm_stats", manifest.norm_stats_sha256, found.norm_stats_sha256, found.why))
    rows += _mapping("weights", weights_digests(manifest.weights), found.weights, found.why)
    # Plans are exact: another one computes the same in another order of summation.
    rows += _mapping("plan", manifest.plan.levers.model_dump(mode="json"), found.plan, found.why)
    rows += _mapping("packages", manifest.packages, found.packages, found.why)
    rows.append(_one("python", manifest.python, found.python, found.why))
    rows.append(_one("lock", manifest.lock_sha256, found.lock_sha256, found.why))
    rows.append(_one("source", manifest.source_revision, found.source_revision, found.why))
    # The lock and the base stand behind the image's name; the name itself computes nothing.
    rows.append(_one("image", manifest.image, found.image, found.why, matters=False))
    rows += _mapping("environment", manifest.environment, found.environment, found.why)
    rows.append(_one("device", manifest.device, found.device, found.why))
    rows += [row.model_copy(update={"matters": False}) for row in _mapping("machine", manifest.machine, found.machine, found.why)]
    rows.append(_one("step_fingerprint", manifest.step_fingerprint, found.step_fingerprint, found.why))
    return rows


def weights_digests(weights: Mapping[str, Any]) -> dict[str, str]:
    """File or directory → sha256 of a manifest's `weights`; the seed for random ones. A local path is named by its last part."""
    if weights.get("source") == "random":
        return {"source": "random", "seed": str(weights.get("seed"))}
    files = weights.get("files", {})
    return {"source": str(weights.get("source"))} | {name.rpartition("/")[2] if name.startswith("/") else name: item["sha256"] for name, item in files.items()}


def first_difference(rows: list[Compared]) -> str | None:
    """The name of the first field that differs and matters."""
    return next((row.field for row in rows if row.status == "differs" and row.matters), None)


def overall(rows: list[Compared], others: list[Status]) -> Status:
    """The verdict over all fields and replays."""
    every: list[Status] = [row.status for row in rows if row.matters] + others
    return "differs" if "differs" in every else "cannot tell" if "cannot tell" in every else "equal"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`; lists are values."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    if not value and prefix:
        return {prefix: {}}
    return {path: leaf for key, inner in value.items() for path, leaf in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()}


def _mapping(name: str, recorded: Mapping[str, Any] | None, found: Mapping[str, Any] | None, why: Mapping[str, str], *, ignored: Any = ()) -> list[Compared]:
    """One row for each key that differs, or a single one when none does."""
    if recorded is None or found is None:
        return [_one(name, recorded, found, why)]
    a, b = flat(recorded), flat(found)
    changed = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    rows = [
        Compared(field=f"{name}.{key}", status="differs", recorded=_text(a.get(key)), found=_text(b.get(key)), matters=key not in ignored) for key in changed
    ]
    # What matters stands first.
    rows.sort(key=lambda row: not row.matters)
    return rows if any(row.matters for row in rows) else [Compared(field=name, status="equal", note=f"{len(a)} values"), *rows]


def _one(name: str, recorded: Any, found: Any, why: Mapping[str, str], *, matters: bool = True) -> Compared:
    if recorded is None or found is None:
        note = why.get(name) or ("the run did not record it" if recorded is None else "not found here")
        # What neither side knows (a run outside of a container has no image) is no reason for doubt.
        return Compared(
            field=name,
            status="cannot tell",
            recorded=_text(recorded),
            found=_text(found),
            matters=matters and not (recorded is None and found is None),
            note=note,
        )
    return Compared(field=name, status="equal" if recorded == found else "differs", recorded=_text(recorded), found=_text(found), matters=matters)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
