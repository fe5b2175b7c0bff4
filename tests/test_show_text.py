"""Tests that shown text stays text.

No markup is read in data, no data controls a terminal, and no fix is cut off at the width of a pipe.
"""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import artifacts as a
from harness.artifacts.curve import CurveSeries, Learning, Seam
from harness.show.checkpoint import checkpoint_table
from harness.show.curve import curve_table
from harness.show.dataset import comparison_table, dataset_table, stats_table
from harness.show.doctor import doctor_table
from harness.show.machine import machine_table
from harness.show.openpi import openpi_view
from harness.show.plan import plan_view
from harness.show.prediction import prediction_table
from harness.show.progress import Progress, spinner
from harness.show.status import status_table
from harness.show.verdict import verdict_table
from harness.verbs.answers import answer
from tests.support.report_run import manifest

ROOT = Path(__file__).parents[1]
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
NAMES = [table.__name__ for _, table in TABLES]


def shown(renderable: Any, width: int, *, color: bool = False) -> str:
    stream = io.StringIO()
    Console(
        file=stream, width=width, force_terminal=color, color_system="truecolor" if color else None
    ).print(renderable, crop=False)
    return stream.getvalue()


@pytest.mark.parametrize(("make", "table"), TABLES, ids=NAMES)
def test_no_table_obeys_what_it_shows(make: Callable[[], Any], table: Callable[[Any], Any]) -> None:
    text = " ".join(shown(table(make()), 2000).split())
    assert "[/x][green]equal[/green] :boom: \\x1b[2J\\x1b]0;t\\x07 \\u202e \\x9b1A end" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\x9b"}
    coloured = shown(table(make()), 2000, color=True)
    assert "\x1b]" not in coloured
    assert "\x1b[2J" not in coloured


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize(("make", "table"), TABLES, ids=NAMES)
def test_no_table_cuts_a_text_off(make: Callable[[], Any], table: Callable[[Any], Any], width: int) -> None:
    """The one sign that a text is cut off; `verify` shortens long values by itself, and `data` a long list of
    tasks.
    """
    if table is not verdict_table:
        assert "…" not in shown(table(make()), width)


@pytest.mark.parametrize(
    ("make", "table"),
    [
        pair
        for pair in TABLES
        if pair[1].__name__ in ("curve_table", "stats_table", "doctor_table", "openpi_view")
    ],
)
def test_a_fix_stands_on_one_line_however_narrow_the_terminal(
    make: Callable[[], Any], table: Callable[[Any], Any]
) -> None:
    assert FIX in shown(table(make()), 80)


def test_a_fix_is_whole_in_what_a_verb_prints_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    answer(stats(), False, stats_table)
    assert FIX in capsys.readouterr().out


def test_every_table_is_made_of_the_cells_that_are_text() -> None:
    """A new table cannot forget it: only show/rows.py knows rich's own table, and no other module reads
    markup.
    """
    for path in [*(ROOT / "harness/show").glob("*.py"), *(ROOT / "harness/verbs").glob("*.py")]:
        tree = ast.parse(path.read_text())
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
        }
        names |= {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert "from_markup" not in names, path
        if path.name != "rows.py":
            assert not names & {"Table", "add_row", "add_column", "Panel", "Markdown"}, path


def test_what_a_run_says_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    console = Progress()
    console.say(HOSTILE)
    console.warn(HOSTILE)
    console.finding(finding())
    with spinner("planning") as say:
        say(HOSTILE)
    said = capsys.readouterr().err
    assert said.count("[/x][green]equal[/green] :boom: \\x1b[2J") == 6
    assert not set(said) & {"\x1b", "\x07", "\u202e", "\x9b"}
    assert "warning: error" not in said
    assert f"\n  fix:  {FIX}\n" in said


def test_a_traceback_and_a_warning_of_a_download_are_text() -> None:
    name = "\x1b[1A\x1b[2K\x1b[32mverdict: equal\x1b[0m\nforged"
    crash = "import sys, harness.cli as c\ndef app(): raise RuntimeError(sys.argv[1])\nc.app = app\nc.main()"
    done = subprocess.run([sys.executable, "-c", crash, name], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "\\x1b[2K" in done.stderr
    assert "\x1b" not in done.stderr
    warn = (
        "import sys\nfrom harness.received.consent import Named, announce\n"
        "announce(sys.argv[1], Named(by=sys.argv[1]), 1)"
    )
    done = subprocess.run([sys.executable, "-c", warn, name], capture_output=True, text=True, check=False)
    assert "\x1b" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_spinner_on_a_terminal_reads_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with spinner("[/x]") as say:
        say("[/x]")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_recipe_of_any_characters_is_compiled_under_any_encoding(tmp_path: Path, encoding: str) -> None:
    """The child that compiles is told the recipe in UTF-8, whatever the terminal's encoding is."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        (ROOT / "harness/recipe/smoke.yaml").read_text().replace("A tiny π0.5", "把碗放在盘子上 π0.5"),
        encoding="utf-8",
    )
    environment = os.environ | {
        "PYTHONIOENCODING": encoding,
        "PYTHONPATH": str(ROOT),
        "HARNESS_CACHE": str(tmp_path / "cache"),
    }
    command = [
        sys.executable,
        "-m",
        "harness.cli",
        "plan",
        "--recipe",
        str(recipe),
        "--device",
        "cpu",
        "--json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert json.loads(done.stdout)["chosen"]
