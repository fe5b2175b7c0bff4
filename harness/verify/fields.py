"""Comparison of a manifest's claims with the findings, field by field.

The order is such that the first difference explains those after it. First come the inputs of a run: the
recipe decides what is computed; data and weights are what it is computed from; software, flags and device
decide in which arithmetic. Then come their consequences: statistics, plan, first parameters, the program, and
XLA's compilation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from harness.artifacts import Dataset, NormStats
from harness.artifacts.training import Manifest
from harness.artifacts.verdict import Compared, Status
from harness.recipe.meaning import changed_keys, flat, meaning
from harness.run.surroundings import xla_flags
from harness.verify.image import image_rows

# These flags let XLA write down its compilation. They do not change it.
_ONLY_TELLS = "XLA_FLAGS.--xla_dump"


class Found(NamedTuple):
    """The findings, one for each claim of the manifest. None where a value could not be read.

    `why` gives the reason, by field. `files` are the run's own files, hashed as the manifest hashes them.
    `leaves` are the arrays that training starts from. `image_notes` says, by part of the image, which of its
    files are not as the image's own list says.
    """

    recipe: Mapping[str, Any] | None
    recipe_sha256: str | None
    dataset_sha256: str | None
    dataset_revision: str | None
    norm_stats_sha256: str | None
    weights: Mapping[str, str] | None
    leaves: Mapping[str, str] | None
    plan: Mapping[str, Any] | None
    files: Mapping[str, str] | None
    source_sha256: str | None
    source_revision: str | None
    base_digest: str | None
    lock_sha256: str | None
    packages: Mapping[str, str] | None
    packages_sha256: str | None
    python: str | None
    image_digest: str | None
    image_id: str | None
    image: str | None
    image_content: str | None
    image_parts: Mapping[str, str] | None
    image_environment: Mapping[str, str] | None
    environment: Mapping[str, str] | None
    machine: Mapping[str, Any] | None
    device: str | None
    kernels_sha256: str | None
    step_fingerprint: str | None
    executable_fingerprint: str | None
    upstream: str | None = None
    hosts: Mapping[str, Any] | None = None
    why: Mapping[str, str] = {}
    image_notes: Mapping[str, str] = {}


def compare_fields(manifest: Manifest, found: Found) -> list[Compared]:
    """Every field's comparison, in the order in which differences explain one another."""
    return [*_made_from(manifest, found), *_arithmetic(manifest, found), *_follows(manifest, found)]


def _made_from(manifest: Manifest, found: Found) -> list[Compared]:
    why = found.why
    rows = _mapping(
        "recipe", manifest.recipe, found.recipe, why, matters=lambda key: meaning(key).weight != "cadence"
    )
    # The recipe now against the hash that the manifest took of it: someone may have changed both copies.
    rows.append(_one("recipe_sha256", manifest.recipe_sha256, found.recipe_sha256, why))
    rows.append(_one("dataset", manifest.dataset_sha256, found.dataset_sha256, why))
    # The bytes decide. A branch that has moved on is reported only.
    rows.append(
        _one("dataset_revision", manifest.dataset_revision, found.dataset_revision, why, matters=False)
    )
    weights = _mapping("weights", weights_digests(manifest.weights), found.weights, why)
    arrays = _changed(manifest.weights.get("leaves"), found.leaves)
    if arrays and manifest.weights.get("source") != "random":
        weights = [
            row.model_copy(update={"note": _some(arrays)}) if row.status == "differs" else row
            for row in weights
        ]
    return [*rows, *weights]


def _arithmetic(manifest: Manifest, found: Found) -> list[Compared]:
    why = found.why
    source = _one("source", manifest.source_sha256, found.source_sha256, why)
    rows = [
        source,
        # Two commits may hold the same source. If the source itself is known, it decides.
        _one(
            "source_revision",
            manifest.source_revision,
            found.source_revision,
            why,
            matters=source.status == "cannot tell",
        ),
        *_upstream(manifest, found),
        _one("base", manifest.base_digest, found.base_digest, why),
        _one("lock", manifest.lock_sha256, found.lock_sha256, why),
        *_mapping("packages", manifest.packages, found.packages, why),
        *image_rows(manifest, found),
        _one("packages_sha256", manifest.packages_sha256, found.packages_sha256, why),
        _one("python", manifest.python, found.python, why),
        _one("image_digest", manifest.image_digest, found.image_digest, why),
        # Each build has another engine id, and the image's name computes nothing.
        _one("image_id", manifest.image_id, found.image_id, why, matters=False),
        _one("image", manifest.image, found.image, why, matters=False),
    ]
    flags, here = (
        None if each is None else _environment(each) for each in (manifest.environment, found.environment)
    )
    only_tell = {key for each in (flags, here) for key in flat(each or {}) if key.startswith(_ONLY_TELLS)}
    rows += _mapping("environment", flags, here, why, matters=lambda name: name not in only_tell)
    rows.append(_one("device", manifest.device, found.device, why))
    # XLA compiles for this processor's instructions, and divides the work among this number of cores.
    on_cpu = {"processor", "cores"} if manifest.plan.levers.platform == "cpu" else set()
    for row in _mapping("machine", manifest.machine, found.machine, why):
        rows.append(
            row if row.field.partition(".")[2] in on_cpu else row.model_copy(update={"matters": False})
        )
    return [*rows, *_hosts(manifest, found)]


def _hosts(manifest: Manifest, found: Found) -> list[Compared]:
    """The machines of the processes, if either run had several. Their number is a lever of the plan."""
    if not manifest.hosts and not found.hosts:
        return []
    rows = _mapping("hosts", manifest.hosts, found.hosts, found.why)
    return [row.model_copy(update={"matters": False}) for row in rows]


def _upstream(manifest: Manifest, found: Found) -> list[Compared]:
    """openpi's commit, if either run was trained by openpi."""
    recorded = manifest.upstream.commit if manifest.upstream else None
    return (
        []
        if recorded is None and found.upstream is None
        else [_one("upstream", recorded, found.upstream, found.why)]
    )


def _follows(manifest: Manifest, found: Found) -> list[Compared]:
    why = found.why
    rows = [_one("norm_stats", manifest.norm_stats_sha256, found.norm_stats_sha256, why)]
    # Plans are exact: another plan computes the same, but sums in another order. Saving changes nothing.
    levers = manifest.plan.levers.model_dump(mode="json")
    rows += _mapping("plan", levers, found.plan, why, matters=lambda key: key != "save")
    rows += _mapping("files", _recorded_files(manifest), found.files, why)
    leaves = _mapping("leaves", manifest.weights.get("leaves"), found.leaves, why)
    # If they were not recomputed, files or seed have answered for them above.
    rows += [
        row.model_copy(update={"matters": False}) if row.status == "cannot tell" else row for row in leaves
    ]
    # Only a plan for a GPU has a choice of kernels.
    rows.append(
        _one(
            "kernels",
            manifest.kernels_sha256,
            found.kernels_sha256,
            why,
            matters=manifest.plan.levers.platform == "cuda",
        )
    )
    rows.append(_one("step_fingerprint", manifest.step_fingerprint, found.step_fingerprint, why))
    rows.append(
        _one("executable_fingerprint", manifest.executable_fingerprint, found.executable_fingerprint, why)
    )
    return rows


def _recorded_files(manifest: Manifest) -> dict[str, str]:
    return {Dataset.FILE: manifest.dataset_sha256, NormStats.FILE: manifest.norm_stats_sha256}


def changed_files(manifest: Manifest, files: Mapping[str, str]) -> list[Compared]:
    """A row for each of the run's own `files` that is not as its manifest says."""
    rows = _mapping("own_files", _recorded_files(manifest), files, {})
    return [row for row in rows if row.status == "differs"]


def weights_digests(weights: Mapping[str, Any]) -> dict[str, str]:
    """File or directory → sha256 in a manifest's `weights`. For random weights: the seed.

    A local path is named by its last part.
    """
    if weights.get("source") == "random":
        return {"source": "random", "seed": str(weights.get("seed"))}
    files = weights.get("files", {})
    return {"source": str(weights.get("source"))} | {
        name.rpartition("/")[2] if name.startswith("/") else name: item["sha256"]
        for name, item in files.items()
    }


def first_difference(rows: list[Compared]) -> str | None:
    """The name of the first field that differs and matters."""
    return next((row.field for row in rows if row.status == "differs" and row.matters), None)


def overall(rows: list[Compared], others: list[Status]) -> Status:
    """The verdict over all fields and replays."""
    every: list[Status] = [row.status for row in rows if row.matters] + others
    return "differs" if "differs" in every else "cannot tell" if "cannot tell" in every else "equal"


def _environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """The variables, with XLA's flags split: their order changes nothing, so each flag is compared alone."""
    return {name: xla_flags(value) if name == "XLA_FLAGS" else value for name, value in variables.items()}


def _changed(recorded: Mapping[str, str] | None, found: Mapping[str, str] | None) -> list[str]:
    a, b = recorded or {}, found or {}
    return sorted(path for path in a.keys() & b.keys() if a[path] != b[path])


def _some(names: list[str]) -> str:
    return f"arrays that differ: {', '.join(names[:3])}" + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def _mapping(
    name: str,
    recorded: Mapping[str, Any] | None,
    found: Mapping[str, Any] | None,
    why: Mapping[str, str],
    *,
    matters: Callable[[str], bool] = lambda _: True,
) -> list[Compared]:
    """One row for each key that differs, or a single row if none does."""
    if recorded is None or found is None:
        return [_one(name, recorded, found, why)]
    a, b = flat(recorded), flat(found)
    changed = changed_keys(a, b)
    rows = [
        Compared(
            field=f"{name}.{key}",
            status="differs",
            recorded=_text(a.get(key)),
            found=_text(b.get(key)),
            matters=matters(key),
        )
        for key in changed
    ]
    # Differences that matter stand first.
    rows.sort(key=lambda row: not row.matters)
    return (
        rows
        if any(row.matters for row in rows)
        else [Compared(field=name, status="equal", note=f"{len(a)} values"), *rows]
    )


def _one(name: str, recorded: Any, found: Any, why: Mapping[str, str], *, matters: bool = True) -> Compared:
    if recorded is None or found is None:
        note = why.get(name) or ("the run did not record it" if recorded is None else "not found here")
        # A value that neither side knows is no reason for doubt (a run outside a container has no image).
        return Compared(
            field=name,
            status="cannot tell",
            recorded=_text(recorded),
            found=_text(found),
            matters=matters and not (recorded is None and found is None),
            note=note,
        )
    return Compared(
        field=name,
        status="equal" if recorded == found else "differs",
        recorded=_text(recorded),
        found=_text(found),
        matters=matters,
    )


def _text(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return f"{len(value)} values"
    return None if value is None else str(value)
