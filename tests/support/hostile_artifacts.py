"""Artifacts whose every text tries to control a terminal, and the tables that show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import artifacts as a
from harness.artifacts.choice import Interval, Mark
from harness.artifacts.curve import CurveSeries, Learning, Seam
from harness.show.checkpoint import checkpoint_table
from harness.show.choice import choice_table
from harness.show.curve import curve_table
from harness.show.dataset import comparison_table, dataset_table, stats_table
from harness.show.doctor import doctor_table
from harness.show.machine import machine_table
from harness.show.openpi import openpi_view
from harness.show.plan import plan_view
from harness.show.prediction import prediction_table
from harness.show.status import status_table
from harness.show.verdict import verdict_table
from tests.support.report_run import manifest

HOSTILE = "[/x][green]equal[/green] :boom: \x1b[2J\x1b]0;t\x07 \u202e \x9b1A end"
FIX = (
    "harness train --set data.degenerate_dimensions=pass_through --run 'runs/a name with blanks' --recipe"
    " pi05_libero_lora --allow 'compute capability'"
)


def curve() -> a.Curve:
    rates = {
        "source": HOSTILE,
        "first": 1.0,
        "last": 1.0,
        "peak": 1.0,
        "warmup_steps": 1,
        "full_rate_steps": 1.0,
        "negligible_below": 0.0,
        "enough_from": 1.0,
    }
    series = {name: [1.0] for name in ("loss", "low", "high", "smooth", "grad_norm", "learning_rate")}
    counts = {"lines": 1, "points": 1, "first_step": 0, "last_step": 1}
    return a.Curve(
        path=HOSTILE,
        form="run",
        recipe=HOSTILE,
        verdict="learning",
        reasons=[HOSTILE],
        needed=[HOSTILE],
        partial=[HOSTILE],
        trend=None,
        learning=Learning(**rates),
        plateau_from_step=None,
        findings=[a.CurveFinding(severity="error", code="x", text=HOSTILE, fix=FIX)],
        seams=[Seam(step=1, kind="resume", replayed=1, disagreeing=0, largest_difference=None)],
        spikes=[],
        jumps=[],
        throughput=None,
        distances=[],
        series=CurveSeries(step=[0], **series),
        unknown={"throughput": HOSTILE},
        **counts,
    )


def checkpoint() -> a.Checkpoint:
    part = a.Movement(name=HOSTILE, update_norm=1.0, base_norm=1.0, relative=None, changed=0.5, parameters=1)
    moved = a.Moved(
        against=HOSTILE,
        against_step=None,
        groups=[part],
        blocks=[],
        only_here=[HOSTILE],
        only_there=[],
        not_compared=[HOSTILE],
        notes=[HOSTILE],
    )
    save = a.InterruptedSave(
        path=HOSTILE, step=None, missing=[HOSTILE], age_s=1.0, bytes=1, safe_to_delete=False, reason=HOSTILE
    )
    step = a.CheckpointStep(
        step=1,
        path=HOSTILE,
        complete=False,
        items=[a.CheckpointItem(name=HOSTILE, bytes=1)],
        bytes=1,
        missing=[HOSTILE],
    )
    group = a.GroupReport(parameters=1, bytes=1, arrays=1, dtypes=[HOSTILE])
    return a.Checkpoint(
        path=HOSTILE,
        layout=None,
        steps=[step],
        interrupted=[save],
        lora=a.LoraReport(present=True, rank={HOSTILE: 1}),
        parameters={HOSTILE: group},
        base=HOSTILE,
        adapters=[a.AdapterReport(path=HOSTILE, rank=1, effective_rank=None, product_norm=1.0)],
        moved=moved,
        findings=[HOSTILE],
    )


def stats() -> a.NormStats:
    one = a.DimensionStats(mean=[0.0], std=[1.0], q01=[0.0], q99=[1.0])
    finding = a.DegenerateDimension(
        key="state", dimension=0, problem=HOSTILE, largest_normalized=None, fix=FIX
    )
    return a.NormStats(
        norm_stats={"state": one, "actions": one}, frames=1, action_horizon=1, findings=[finding]
    )


def comparison() -> a.Comparison:
    found = [
        a.Difference(key="state", dimension=0, statistic=name, ours=0.0, theirs=1.0, share=None)
        for name in ("mean", "std", "q01", "q99")
    ]
    return a.Comparison(
        path=HOSTILE, differences=found, largest_share=None, only_ours={HOSTILE: 1}, only_theirs={}
    )


def dataset() -> a.Dataset:
    counts = {"episodes": 1, "frames": 1, "longest_prompt_tokens": 1, "prompt_tokens": 1, "total_bytes": 1}
    names = {
        "source": HOSTILE,
        "revision": HOSTILE,
        "path": HOSTILE,
        "format_version": HOSTILE,
        "sha256": HOSTILE,
        "tasks": [HOSTILE],
        "findings": [HOSTILE],
    }
    return a.Dataset(
        fps=10,
        features={HOSTILE: a.Feature(dtype=HOSTILE, shape=[1])},
        cameras={HOSTILE: HOSTILE},
        **names,
        **counts,
    )


def finding() -> a.Finding:
    return a.Finding(severity="error", check=HOSTILE, got=HOSTILE, need=HOSTILE, fix=FIX)


def machine() -> a.Machine:
    gpu = a.Gpu(index=0, name=HOSTILE, foreign_processes=[a.GpuProcess(pid=1, name=HOSTILE)])
    return a.Machine(
        gpus=[gpu], driver_version=HOSTILE, host=a.Host(container=HOSTILE, disks=[a.Disk(path=HOSTILE)])
    )


def openpi() -> a.OpenpiCommand:
    names = {
        "commit": "x",
        "command": HOSTILE,
        "config": HOSTILE,
        "model": HOSTILE,
        "deviations": [HOSTILE],
        "meant": HOSTILE,
        "command_meant": HOSTILE,
    }
    return a.OpenpiCommand(
        options={},
        effective={},
        freezes=False,
        parameters_trained=1,
        parameters_total=1,
        findings=[finding()],
        **names,
    )


def plan() -> a.Plan:
    changes = {
        "changes": {HOSTILE: HOSTILE, "train.trained": 7},
        "deviations": [HOSTILE],
        "breakdown": {HOSTILE: 9},
        "unknown": {HOSTILE: HOSTILE},
    }
    chosen = manifest().plan.model_copy(update=changes | {"reason": HOSTILE})
    counts = {"parameters_total": 1, "parameters_trained": 1}
    return a.Plan(
        recipe=HOSTILE,
        recipe_sha256="0",
        device=HOSTILE,
        chosen=chosen,
        candidates=[chosen],
        notes=[HOSTILE],
        **counts,
    )


def choice() -> a.Choice:
    mean = Interval(mean=1.0, low=0.0, high=2.0)
    mark = Mark(step=1, on_disk=True, loss=mean, action=mean, errors=[mean], switches=None)
    words = {"run": HOSTILE, "interval": HOSTILE, "answer": HOSTILE, "notes": [HOSTILE], "commands": [FIX]}
    return a.Choice(
        by="loss",
        parameters="average",
        episodes=1,
        frames=1,
        marks=[mark],
        best=1,
        chosen=1,
        alike=[],
        **words,
    )


def prediction() -> a.Prediction:
    question = {"episode": 0, "frame": 0, "action_horizon": 2, "sampling_steps": 1, "seed": 0}
    chunk = {
        "predicted": [[0.0]] * 2,
        "recorded": [[1.0]] * 2,
        "is_pad": [False, True],
        "mean_absolute_error": [1.0],
    }
    return a.Prediction(
        checkpoint=HOSTILE, step=1, dataset=HOSTILE, task=HOSTILE, device=HOSTILE, **question, **chunk
    )


def status() -> a.Status:
    names = {
        "run": HOSTILE,
        "recipe": HOSTILE,
        "reason": HOSTILE,
        "findings": [HOSTILE],
        "unknown": {"peak_bytes": HOSTILE},
    }
    return a.Status(
        state="died", step=1, steps=2, saved_step=None, losses=[1.0], losses_since_step=0, **names
    )


def verdict() -> a.Verdict:
    field = a.Compared(field=HOSTILE, status="equal", recorded=HOSTILE, found=HOSTILE, note=HOSTILE)
    replay = a.Replay(
        start=0,
        steps=1,
        device=HOSTILE,
        tolerance=0.0,
        largest_difference=0.0,
        status="equal",
        first=HOSTILE,
        note=HOSTILE,
    )
    return a.Verdict(
        run=HOSTILE, against=HOSTILE, fields=[field], replay=replay, verdict="equal", first_difference=HOSTILE
    )


TABLES: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (checkpoint, checkpoint_table),
    (choice, choice_table),
    (curve, curve_table),
    (dataset, dataset_table),
    (stats, stats_table),
    (comparison, comparison_table),
    (lambda: a.Diagnosis(findings=[finding()], passed=[HOSTILE], allowed=[HOSTILE]), doctor_table),
    (machine, machine_table),
    (openpi, openpi_view),
    (plan, plan_view),
    (prediction, prediction_table),
    (status, status_table),
    (verdict, verdict_table),
]
