"""Tests the report page of several runs that are laid over each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.recipe.load import load_recipe
from harness.report.page import render
from harness.run.directory import RunDir
from tests.support.report_run import Page, full_run, manifest, metrics


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    runs = [full_run(tmp_path / f"smoke-{n:03d}", rows=metrics(40 + n, seed=n)) for n in range(3)]
    runs[1].write(manifest("smoke", recipe=load_recipe("smoke", ["train.seed=7"]).model_dump(mode="json")))
    html = render(runs[0], runs[1:])
    page = Page(html)
    others = json.loads(re.findall(r'id="others">(.*?)</script>', html)[0])
    assert [run["name"] for run in others["runs"]] == ["smoke-001", "smoke-002"]
    assert others["runs"][1]["series"]["loss"][0] == list(range(42))
    assert page.series["loss"][0] == list(range(40))
    assert "smoke-001 against smoke-000: 1 keys differ" in page.text
    assert "smoke-002 against smoke-000: the same recipe" in page.text


def test_a_run_laid_over_must_be_one(tmp_path: Path) -> None:
    run = full_run(tmp_path / "smoke-001")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HarnessError) as caught:
        render(run, [RunDir(tmp_path / "empty")])
    assert caught.value.code == "run-missing"
    with pytest.raises(HarnessError) as caught:
        render(run, [run] * 9)
    assert caught.value.code == "too-many-runs"


def test_eight_long_runs_stay_under_two_megabytes(tmp_path: Path) -> None:
    rows = metrics(20_000)
    runs = [full_run(tmp_path / f"smoke-{n:03d}", rows=rows) for n in range(8)]
    assert len(render(runs[0], runs[1:]).encode()) < 2_000_000
