"""The claims about a run, each with its evidence or with the missing evidence."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from harness.artifacts import Checkpoint, Curve, Diagnosis, Manifest, Memory, Metrics, Status, Verdict
from harness.units import format_bytes, format_count

Mark = Literal["good", "bad", "warn", "open"]


class Claim(NamedTuple):
    """One claim. `mark` "open": nothing here tells; `reason` then says what would.

    `source` is the file of the run that supports the claim, if there is one.
    """

    name: str
    mark: Mark
    answer: str
    reason: str
    source: str = ""


def of_run(status: Status | None) -> Claim:
    if status is None:
        return Claim("Run", "open", "unknown", "no file shows how far it got")
    marks: dict[str, Mark] = {"finished": "good", "died": "bad", "silent": "bad", "stopped": "warn"}
    return Claim("Run", marks.get(status.state, "open"), status.state, status.reason)


def of_curve(curve: Curve | None) -> Claim:
    if curve is None:
        return Claim(
            "Learning",
            "open",
            "not analysed",
            "harness analyse tells learning from noise (the command is below)",
        )
    marks: dict[str, Mark] = {"learning": "good", "inconclusive": "open"}
    partial = f". Partial: {'; '.join(curve.partial)}" if curve.partial else ""
    return Claim(
        "Learning",
        marks.get(curve.verdict, "bad"),
        curve.verdict,
        "; ".join(curve.reasons) + partial,
        Curve.FILE,
    )


def of_losses(rows: list[Metrics]) -> Claim | None:
    bad = [row.step for row in rows if not (math.isfinite(row.loss) and math.isfinite(row.grad_norm))]
    if not rows or not bad:
        return None
    return Claim(
        "Numbers",
        "bad",
        "not finite",
        f"at {len(bad)} of the logged steps loss or gradient is NaN or infinite, first at step {bad[0]:,}",
    )


def of_trained(manifest: Manifest | None, checkpoint: Checkpoint | None) -> Claim:
    name = "Who was trained"
    if manifest is None:
        return Claim(name, "open", "unknown", "there is no manifest.json")
    said = (
        f"{format_count(manifest.parameters_trained)} of {format_count(manifest.parameters_total)} parameters"
        " by the recipe"
    )
    found = checkpoint.parameters_trained if checkpoint else None
    if found is None:
        return Claim(name, "open", said, "the checkpoint's optimizer state was not read: harness inspect")
    if checkpoint and any(finding.startswith("lora-trains-everything") for finding in checkpoint.findings):
        return Claim(
            name,
            "bad",
            "not a LoRA run",
            next(f for f in checkpoint.findings if f.startswith("lora-trains-everything")),
        )
    if found == manifest.parameters_trained:
        return Claim(
            name,
            "good",
            said,
            f"and the checkpoint's optimizer keeps state of exactly these {found:,}",
            Checkpoint.FILE,
        )
    return Claim(
        name, "bad", said, f"yet the checkpoint's optimizer keeps state of {found:,}", Checkpoint.FILE
    )


def of_checkpoint(checkpoint: Checkpoint | None) -> Claim:
    if checkpoint is None:
        return Claim("Checkpoint", "open", "not inspected", "harness inspect writes checkpoint.json")
    source, whole = Checkpoint.FILE, [step for step in checkpoint.steps if step.complete]
    if not whole:
        return Claim(
            "Checkpoint",
            "bad",
            "none is whole",
            "; ".join(checkpoint.findings[:2]) or "no step was finished",
            source,
        )
    if checkpoint.non_finite:
        return Claim(
            "Checkpoint",
            "bad",
            "not finite",
            f"{checkpoint.non_finite:,} elements are NaN or infinite",
            source,
        )
    read = (
        "every array was read, all finite"
        if checkpoint.non_finite is not None
        else "by its metadata; --deep reads every array"
    )
    mark: Mark = (
        "warn"
        if checkpoint.partial or len(whole) < len(checkpoint.steps) or checkpoint.interrupted
        else "good"
    )
    more = f"; {len(checkpoint.interrupted)} interrupted beside it" if checkpoint.interrupted else ""
    return Claim(
        "Checkpoint",
        mark,
        f"{len(whole)} of {len(checkpoint.steps)} whole",
        f"step {checkpoint.step}: {read}{more}",
        source,
    )


def of_memory(memory: Memory | None) -> Claim | None:
    if memory is None or memory.predicted_bytes is None:
        return None
    predicted = f"predicted {format_bytes(memory.predicted_bytes)}"
    if memory.peak_bytes is None:
        return Claim(
            "Memory",
            "open",
            predicted,
            memory.unknown.get("peak_bytes", "the allocator does not tell what was in use"),
        )
    ratio = memory.peak_bytes / memory.predicted_bytes if memory.predicted_bytes else math.inf
    said = f"{predicted}, {format_bytes(memory.peak_bytes)} in use at most on {memory.device}"
    return Claim(
        "Memory", "good" if ratio <= 1 else "warn", f"{ratio:.0%} of the prediction", said, Memory.FILE
    )


def of_doctor(diagnosis: Diagnosis | None) -> Claim | None:
    if diagnosis is None:
        return None
    errors = [finding for finding in diagnosis.findings if finding.severity == "error"]
    worst = errors or [finding for finding in diagnosis.findings if finding.severity == "warning"]
    unseen = list(
        dict.fromkeys(finding.check for finding in diagnosis.findings if finding.severity == "unknown")
    )
    if not worst and unseen:
        return Claim("Doctor", "open", f"{len(unseen)} checks could not be carried out", ", ".join(unseen))
    if not worst:
        return Claim(
            "Doctor",
            "good",
            "nothing found",
            f"{len(diagnosis.passed)} checks passed before the run",
            Diagnosis.FILE,
        )
    kind = (
        ("error" if errors else "warning") + ("s" if len(worst) > 1 else "") + (" allowed" if errors else "")
    )
    return Claim(
        "Doctor",
        "bad" if errors else "warn",
        f"{len(worst)} {kind}",
        "; ".join(f"{each.check}: {each.got}" for each in worst[:3]),
        Diagnosis.FILE,
    )


def of_verdict(verdict: Verdict | None, manifest_sha256: str | None) -> Claim:
    """The claim of verdict.json.

    The file may have come with the run, and nothing in it shows who wrote it. So the claim is never shown as
    more than a claim.
    """
    name = "Verified"
    if verdict is None:
        return Claim(
            name,
            "open",
            "not yet",
            "harness verify compares every field and replays steps (the command is below)",
        )
    marks: dict[str, Mark] = {"equal": "open", "differs": "bad", "cannot tell": "open"}
    replay = verdict.replay
    told = f"{sum(field.status == 'equal' for field in verdict.fields)} of {len(verdict.fields)} fields equal"
    told += f"; {replay.steps} steps replayed: {replay.status}" if replay else "; no step was replayed"
    reason = (
        f"{verdict.first_difference or told}; {signature(verdict)}; {binding(verdict, manifest_sha256)};"
        " harness verify tells for yourself"
    )
    return Claim(name, marks[verdict.verdict], f"claimed: {verdict.verdict}", reason, Verdict.FILE)


def signature(verdict: Verdict) -> str:
    """The time and the device that a verdict states."""
    if verdict.by is None:
        return "it does not say when or on which machine"
    return (
        f"written {verdict.by.time} by harness {verdict.by.harness}, on"
        f" {verdict.by.device or 'a device that it does not name'}"
    )


def binding(verdict: Verdict, manifest_sha256: str | None) -> str:
    """The statement whether the verdict is about the manifest that lies here."""
    if verdict.manifest_sha256 is None:
        return "bound to no manifest"
    return (
        "on this manifest"
        if verdict.manifest_sha256 == manifest_sha256
        else "on another manifest than the one here"
    )
