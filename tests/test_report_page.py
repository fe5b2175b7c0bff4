"""Tests the report page, from run directories made with the artifacts' own classes."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness import artifacts as a
from harness.errors import HarnessError
from harness.recipe.differences import differences_from_published
from harness.recipe.load import load_recipe, shipped_recipes
from harness.report import curves
from harness.report.page import render
from harness.run.directory import RunDir
from tests.support.report_run import MIB, ROOT, Page, full_run, manifest, metrics, write_metrics


def test_full_page_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    html = render(full_run(tmp_path / "smoke-001"))
    page = Page(html)
    assert page.loads
    assert all(load.startswith("data:image/") for load in page.loads)
    assert "@import" not in html
    assert not re.search(r"url\(|fetch\(|XMLHttpRequest|import\(", html)
    assert page.handlers == []
    assert len(html.encode()) < 2_000_000
    for expected in (
        "smoke-001",
        "544,160",
        "0a581d0f3c",
        "put the bowl on the plate",
        "q99 - q01 is 2e-7",
        "interrupted",
        "harness train --resume",
    ):
        assert expected in page.text
    assert "There is no" not in page.text


def test_curves_on_the_page_are_the_logged_ones(tmp_path: Path) -> None:
    rows = metrics(60)
    page = Page(render(full_run(tmp_path, rows=rows)))
    assert set(page.series) == set(curves.SERIES)
    steps, losses = page.series["loss"]
    assert steps == [row["step"] for row in rows]
    assert losses == pytest.approx([row["loss"] for row in rows], rel=1e-5)
    first, last = (sum(row["loss"] for row in part) / 6 for part in (rows[:6], rows[-6:]))
    assert f"{first:.4g}" in page.text
    assert f"{last:.4g}" in page.text


def test_each_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    whole = full_run(tmp_path / "whole")
    for name in (
        "dataset.json",
        "norm_stats.json",
        "checkpoint.json",
        "machine.json",
        "metrics.jsonl",
        "camera_views.png",
        "manifest.json",
    ):
        run = full_run(tmp_path / f"without_{name}")
        (run.path / name).unlink()
        page = Page(render(run))
        assert f"There is no {name}" in page.text
        assert f"There is no {name}" not in Page(render(whole)).text


def test_nothing_but_metrics_still_gives_a_page(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "bare")
    run.path.mkdir()
    write_metrics(run, metrics(5))
    page = Page(render(run))
    assert "what was run is not known" in page.text
    assert "too few to compare" in page.text
    assert page.series["loss"][0] == [0, 1, 2, 3, 4]


def test_damaged_artifact_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    (tmp_path / "dataset.json").write_text('{"source": ')
    (tmp_path / "camera_views.png").write_bytes(b"not a picture")
    page = Page(render(run))
    assert "dataset.json cannot be used" in page.text
    assert "camera_views.png is not a picture" in page.text
    assert "544,160" in page.text


@pytest.mark.parametrize("make", [False, True])
def test_not_a_run(tmp_path: Path, make: bool) -> None:
    path = tmp_path / "nothing"
    if make:
        path.mkdir()
    with pytest.raises(HarnessError) as caught:
        render(RunDir(path))
    assert caught.value.code == "run-missing"


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    hostile = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    run = full_run(tmp_path / "smoke-001")
    recipe = load_recipe("smoke").model_dump(mode="json") | {"description": hostile, "name": "x"}
    run.write(
        manifest(
            "smoke",
            recipe=recipe,
            device=hostile,
            packages={hostile: hostile},
            weights={"source": hostile},
            source_revision=hostile,
        )
    )
    clean, dirty = Page(render(full_run(tmp_path / "clean"))), Page(render(run))
    assert dirty.tags == clean.tags
    assert dirty.handlers == []
    assert hostile in dirty.text


def test_a_text_neither_turns_its_line_around_nor_controls_anything(tmp_path: Path) -> None:
    hostile = "gnp.\u202eexe\x1b[31m\x00"
    run = full_run(tmp_path / "smoke-001\u202e")
    run.write(manifest("smoke", device=hostile, packages={hostile: hostile}))
    page = render(run)
    assert not set("\u202e\x1b\x00") & set(page)
    assert "gnp.\\u202eexe\\x1b[31m\\x00" in Page(page).text


def test_shell_words_of_commands_are_quoted(tmp_path: Path) -> None:
    run = full_run(tmp_path / "a run; rm -rf x")
    assert f"--run '{run.path}'" in Page(render(run)).text


def test_nan_losses_are_counted_and_are_gaps(tmp_path: Path) -> None:
    rows = metrics(30)
    rows[20]["loss"] = math.nan
    rows[21]["loss"] = math.inf
    page = Page(render(full_run(tmp_path, rows=rows)))
    assert page.series["loss"][1][20:22] == [None, None]
    assert "2 logged losses are NaN or infinite, the first at step 20" in page.text


def test_torn_line_and_resumed_steps_are_said(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    again = metrics(12, seed=1)[8:]
    write_metrics(run, metrics(10) + again)
    with run.metrics.open("a") as file:
        file.write('{"step": 12, "loss"')
    page = Page(render(run))
    assert page.series["loss"][0] == list(range(12))
    assert page.series["loss"][1][8] == pytest.approx(again[0]["loss"], rel=1e-5)
    assert "1 lines of metrics.jsonl are torn" in page.text
    assert "2 steps were logged more than once" in page.text


def test_long_run_is_thinned_and_keeps_its_extremes(tmp_path: Path) -> None:
    rows = metrics(30_000)
    rows[17_123]["loss"] = 9.5
    html = render(full_run(tmp_path, rows=rows))
    steps, losses = Page(html).series["loss"]
    assert len(steps) <= curves.MAX_POINTS + 2
    assert losses[steps.index(17_123)] == 9.5
    assert min(losses) == pytest.approx(min(row["loss"] for row in rows), rel=1e-5)
    assert (steps[0], steps[-1]) == (0, 29_999)
    assert len(html.encode()) < 2_000_000


def test_large_picture_is_made_smaller(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    noise = Image.frombytes("RGB", (1600, 1200), random.Random(0).randbytes(1600 * 1200 * 3))
    noise.save(tmp_path / "camera_views.png")
    assert (tmp_path / "camera_views.png").stat().st_size > 2_000_000
    assert len(render(run).encode()) < 2_000_000


def test_who_is_trained_and_what_differs(tmp_path: Path) -> None:
    text = Page(render(full_run(tmp_path / "lora", "pi05_libero_lora"))).text
    assert "466,957,072 of 3,403,421,456" in text
    assert "language: 2.51 B, frozen" in text
    assert "model.paligemma.lora.rank" in text
    assert "key for key" in Page(render(full_run(tmp_path / "full", "pi05_libero"))).text


def test_deviations_are_shown(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    plan = manifest().plan.model_copy(update={"deviations": ["global batch 32 instead of 256"]})
    run.write(manifest(plan=plan))
    assert "Deviation: global batch 32 instead of 256" in Page(render(run)).text


def test_changed_source_is_said_and_the_commit_can_be_checked_out(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    run.write(manifest(source_revision=f"{'0a581d0' + '3' * 33}+source.cef2d8"))
    text = Page(render(run)).text
    assert f"git checkout 0a581d0{'3' * 33}\n" in text
    assert "changes on top of it: source.cef2d8" in text


def test_claims_are_marked_by_their_evidence(tmp_path: Path) -> None:
    run = full_run(tmp_path / "smoke-001")
    html = render(run)
    assert "Learning: not analysed" in Page(html).text
    assert "Verified: not yet" in Page(html).text
    checkpoint = run.read(a.Checkpoint)
    assert checkpoint is not None
    run.write(checkpoint.model_copy(update={"parameters_trained": 544_160, "interrupted": []}))
    run.write(
        a.Verdict(
            run="x",
            against="y",
            fields=[],
            replay=None,
            verdict="differs",
            first_difference="train.seed was 42 and is 43",
        )
    )
    memory: dict[str, Any] = {
        "device": "cpu",
        "devices": 1,
        "breakdown": {},
        "source": "compiled",
        "compiled": {"device": 5},
        "step": 9,
        "host_peak_bytes": 7,
    }
    run.write(a.Memory(**memory, predicted_bytes=10 * MIB, peak_bytes=15 * MIB, limit_bytes=40 * MIB))
    html = render(run)
    text = Page(html).text
    assert {
        name: mark
        for mark, name in re.findall(
            r'<li class="is-(\w+)"><i aria-hidden="true"></i><div><b>([^:<]+):', html
        )
    } == {
        "Run": "good",
        "Learning": "open",
        "Who was trained": "good",
        "Checkpoint": "good",
        "Memory": "warn",
        "Verified": "bad",
    }
    assert "train.seed was 42 and is 43" in text
    assert "150% of the prediction" in text


def test_another_number_of_trained_parameters_than_the_recipe_says_is_bad(tmp_path: Path) -> None:
    run = full_run(tmp_path / "smoke-001")
    checkpoint = run.read(a.Checkpoint)
    assert checkpoint is not None
    run.write(checkpoint.model_copy(update={"parameters_trained": 7}))
    assert "yet the checkpoint's optimizer keeps state of 7" in Page(render(run)).text


def test_differences_say_which_matter() -> None:
    published = load_recipe("pi05_libero")
    assert differences_from_published(published) == []
    changed = load_recipe(
        "pi05_libero",
        ["train.seed=7", "train.global_batch=32", "train.save_every_steps=10", "data.dataset=mine"],
    )
    found = {each.key: each.weight for each in differences_from_published(changed)}
    assert found == {
        "train.seed": "same mathematics",
        "train.save_every_steps": "cadence",
        "train.global_batch": "another experiment",
        "data.dataset": "other data",
    }
    assert [each.weight for each in differences_from_published(changed)] == [
        "another experiment",
        "other data",
        "same mathematics",
        "cadence",
    ]


def test_every_key_of_every_shipped_recipe_has_a_meaning() -> None:
    for name in shipped_recipes():
        for each in differences_from_published(load_recipe(name)):
            assert each.why


def test_commands_reproduce_resume_and_verify(tmp_path: Path) -> None:
    run = full_run(tmp_path / "smoke-001")
    text = Page(render(run)).text
    for verb in ("train --recipe", "train --resume", "verify", "inspect --run", "analyse", "predict"):
        assert f"harness {verb}" in text


def test_the_verb_writes_one_page_or_an_overlay(tmp_path: Path) -> None:
    runs = [full_run(tmp_path / f"smoke-{n:03d}") for n in range(2)]

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness.cli", "report", *words]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert call(str(runs[0].path)).stdout.strip() == str(runs[0].path / "report.html")
    assert call("--run", str(runs[1].path)).stdout.strip() == str(runs[1].path / "report.html")
    both = call(*(str(run.path) for run in runs), "--json")
    assert json.loads(both.stdout)["path"] == "compare.html"
    assert (tmp_path / "compare.html").stat().st_size == json.loads(both.stdout)["bytes"]
    assert call(str(tmp_path / "nowhere")).returncode == 2
    assert call().returncode == 2
