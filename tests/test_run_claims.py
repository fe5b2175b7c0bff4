"""Tests that what a received run claims is shown as a claim, and that its words stand in no command."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import pytest

from harness import artifacts as a
from harness.probe.machine import probe
from harness.report.page import render
from harness.run.directory import RunDir
from harness.run.surroundings import source_digest
from harness.verify.binding import bound
from harness.verify.run import verify_pair
from tests.support.report_run import Page, full_run, manifest, run_without_recipe


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return run_without_recipe(tmp_path)


def test_a_verdict_that_came_with_a_run_is_a_claim(run: RunDir) -> None:
    replay = a.Replay(
        start=0,
        steps=3,
        device="H100",
        tolerance=0.0,
        largest_difference=0.0,
        status="equal",
        note="bit for bit",
    )
    forged = a.Verdict(
        run="x",
        against="this machine and these files",
        fields=[],
        replay=replay,
        verdict="equal",
        first_difference=None,
    )
    run.write(forged)
    html, text = render(run), Page(render(run)).text
    assert "Verified: claimed: equal" in text
    assert "does not say when or on which machine" in text
    assert "bound to no manifest" in text
    assert '<li class="is-open"><i aria-hidden="true"></i><div><b>Verified' in html
    assert 'class="good">equal' not in html


def test_a_verdict_is_bound_to_its_manifest_and_says_who_when_and_on_what(run: RunDir) -> None:
    verdict = bound(verify_pair(run, run), run, probe([]), source_digest())
    assert verdict.by
    assert verdict.manifest_sha256 == hashlib.sha256((run.path / "manifest.json").read_bytes()).hexdigest()
    assert socket.gethostname() not in verdict.by.model_dump_json()
    run.write(verdict)
    path = run.path / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    text = Page(render(run)).text
    assert f"written {verdict.by.time} by harness" in text
    assert "on this manifest" in text
    run.write(manifest(device="another card"))
    assert "on another manifest than the one here" in Page(render(run)).text


def test_a_verdict_of_an_older_harness_is_read(run: RunDir) -> None:
    body = {
        "run": "x",
        "against": "y",
        "fields": [],
        "replay": None,
        "verdict": "cannot tell",
        "first_difference": None,
    }
    (run.path / "verdict.json").write_text(json.dumps(body))
    assert run.read(a.Verdict)


@pytest.mark.parametrize(
    "revision",
    ["--upload-pack=x", "main", "0a581d0", "-b", "a" * 39, "g" * 40, "; rm -rf ~", "0" * 40 + "\n"],
)
def test_what_is_no_commit_stands_in_no_command(run: RunDir, revision: str) -> None:
    run.write(manifest(source_revision=revision))
    assert "git checkout" not in Page(render(run)).text


def test_a_path_in_a_command_is_one_word(tmp_path: Path) -> None:
    run = full_run(tmp_path / "my runs" / "-a $(b)")
    assert f"harness verify '{run.path}' --steps 3" in Page(render(run)).text


def test_a_run_below_here_whose_name_begins_with_a_dash_is_no_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_run(tmp_path / "--json")
    monkeypatch.chdir(tmp_path)
    assert "harness verify ./--json --steps 3" in Page(render(RunDir("--json"))).text
