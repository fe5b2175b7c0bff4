"""Tests the contents of the files of a run that another person sent: none makes a reader fail."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness import artifacts as a
from harness.artifacts.metrics_lines import LINE_BYTES, read_lines
from harness.choose.choose import choose
from harness.errors import HarnessError
from harness.probe.machine import probe
from harness.recipe.load import load_recipe
from harness.report import sections
from harness.report.page import render
from harness.run.directory import RunDir
from harness.run.status import read_status
from harness.run.surroundings import source_digest
from harness.train.metrics import MetricsFile
from harness.verify.binding import bound
from harness.verify.replay import recorded_metrics
from harness.verify.run import verify_pair
from tests.support.held_out import falling, run_of
from tests.support.report_run import Page, metrics, picture, run_without_recipe
from tests.support.run_readers import READERS, outcome


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return run_without_recipe(tmp_path)


# What a person may have put into a file that verbs show, reads as what it is, or is refused by name; `None`
# leaves the key out.
HOSTILE: list[Any] = [
    "x",
    "",
    "[/x]",
    "[green]equal[/green]",
    "\x1b]0;x\x07\x1b[2J",
    "\ud800",
    "\u202e",
    "--upload-pack=x",
    0,
    -1,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    10**19,
    10**30,
    True,
    [],
    {},
    [[]],
    {"": None},
    {"source": {}, "files": {"a": {}}, "leaves": []},
    "2001-99-99",
    json.loads("[" * 90 + "]" * 90),
    [{"a": 1}] * 3,
]


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [at, *(path for key, child in children for path in paths(child, (*at, key)))]


def put(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    place = body
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return body


# Written for people and their tools; no verb reads them again.
READ_BY_NOBODY = {
    "status.json",
    "openpi.json",
    "fetched.json",
    "replayed.json",
    "serving.json",
    "serve_check.json",
    "serving_plan.json",
    *("hosts.json", "launch.json", "profile.json", "traced.json"),
}
# By the page of an evaluation (tests/test_report_evaluation.py), by plans (tests/test_calibrate_used.py).
READ_ELSEWHERE = {"setting.json", "evaluation.json", "calibration.json"}


@pytest.mark.parametrize(
    "name",
    sorted({kind.FILE for kind in a.Artifact.__subclasses__()} - READ_BY_NOBODY - READ_ELSEWHERE),
)
def test_no_content_of_any_artifact_brings_a_reader_down(run: RunDir, name: str) -> None:
    """The page, the status, and what goes on with the run: twelve changes of each file, each elsewhere."""
    _everything(run)
    whole, chance = (run.path / name).read_text(), random.Random(name)
    places = paths(json.loads(whole))
    for _ in range(12):
        changed = put(json.loads(whole), chance.choice(places), chance.choice([*HOSTILE, None]))
        (run.path / name).write_text(json.dumps(changed))
        for reader in ("status", "report"):
            assert outcome(READERS[reader], run.path) != "a refusal without a fix", changed


def _everything(run: RunDir) -> None:
    """Gives the run the artifacts that it lacks."""
    run.write(choose(run_of(run.path, falling(3, 3), [])))
    wave = [[0.1 * i] * 7 for i in range(10)]
    question = {
        "episode": 0,
        "frame": 0,
        "task": "open the drawer",
        "action_horizon": 10,
        "sampling_steps": 10,
        "seed": 0,
    }
    answer = {"predicted": wave, "recorded": wave, "is_pad": [False] * 10, "mean_absolute_error": [0.5] * 7}
    run.write(a.Prediction(checkpoint="x", step=1, dataset="sample", device="cpu", **question, **answer))
    found = a.Finding(severity="warning", check="disk", got="little", need="more", fix="df")
    run.write(a.Diagnosis(findings=[found], passed=["clock"]))
    bytes_ = {
        "predicted_bytes": 10,
        "breakdown": {"a": 1},
        "compiled": {"device": 3},
        "peak_bytes": 5,
        "limit_bytes": 9,
        "host_peak_bytes": 4,
    }
    run.write(a.Memory(device="cpu", devices=1, source="compiled", step=3, **bytes_))
    one = a.Difference(key="state", dimension=0, statistic="mean", ours=1.0, theirs=2.0, share=None)
    run.write(a.Comparison(path="x", differences=[one], largest_share=None, only_ours={}, only_theirs={}))
    moved = a.Movement(
        name="vision", layer=3, update_norm=1.0, base_norm=2.0, relative=0.5, changed=0.1, parameters=4
    )
    checkpoint = run.read(a.Checkpoint)
    assert checkpoint
    told = a.Moved(
        against="x",
        against_step=1,
        groups=[moved],
        blocks=[moved],
        only_here=[],
        only_there=[],
        not_compared=[],
        notes=["n"],
    )
    run.write(checkpoint.model_copy(update={"moved": told}))
    run.write(bound(verify_pair(run, run), run, probe([]), source_digest()))
    analysed = outcome(READERS["analyse"], run.path)
    assert analysed.startswith("exit code")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**5,
        b'{"run": ' * 10**5,
        b"\xff\xfe",
        b"",
        b"null",
        b"{" + b",".join(b'"k%d":1' % i for i in range(10**5)) + b"}",
        b"9" * 10**5,
        b'{"a": 1e400}',
    ],
    ids=[
        "deep list",
        "deep mapping",
        "bytes",
        "empty",
        "null",
        "a hundred thousand keys",
        "digits",
        "infinite",
    ],
)
@pytest.mark.parametrize("name", ["manifest.json", "norm_stats.json", "verdict.json"])
def test_no_text_of_a_file_brings_a_reader_down(run: RunDir, name: str, content: bytes) -> None:
    (run.path / name).write_bytes(content)
    for reader in READERS.values():
        assert outcome(reader, run.path) != "a refusal without a fix"
    problems = Page((run.path / "report.html").read_text()).text
    assert f"{name} cannot be used" in problems
    assert len(problems) < 100_000


LINE = {
    "step": 1,
    "loss": 1.0,
    "grad_norm": 1.0,
    "param_norm": 1.0,
    "learning_rate": 1.0,
    "step_s": 1.0,
    "time": 1.0,
}


@pytest.mark.parametrize(
    "step", ["1e400", "9007199254740992", "100000000000000000", "-1", "1.5", "true", '"1"', "NaN", "9" * 5000]
)
def test_a_step_is_a_whole_number_that_every_reader_has_exactly(run: RunDir, step: str) -> None:
    run.metrics.write_text(json.dumps(LINE).replace('"step": 1', f'"step": {step}') + "\n")
    assert read_status(run).step == 0
    assert (
        "1 lines of metrics.jsonl are torn" in Page(render(run)).text
        or "no step was logged" in Page(render(run)).text
    )
    with pytest.raises(HarnessError) as caught:
        recorded_metrics(run.metrics)
    assert caught.value.code == "metrics-invalid"


def test_the_greatest_step_is_one(run: RunDir) -> None:
    run.metrics.write_text(json.dumps(LINE | {"step": 2**53 - 1}) + "\n")
    assert read_status(run).step == 2**53
    assert list(recorded_metrics(run.metrics)) == [2**53 - 1]


@pytest.mark.parametrize("name", ["loss", "grad_norm", "learning_rate", "step_s", "data_s", "time"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1e308])
def test_any_number_of_a_line_is_shown(run: RunDir, name: str, value: float) -> None:
    rows = metrics(12)
    for row in rows[3:]:
        row[name] = value
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for reader in ("status", "report", "verify"):
        assert outcome(READERS[reader], run.path) != "a refusal without a fix"


def test_a_line_without_an_end_costs_no_memory_and_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.write(
            json.dumps(LINE).encode()
            + b"\n"
            + b"x" * (40 * LINE_BYTES)
            + b"\n"
            + json.dumps(LINE | {"step": 2}).encode()
        )
    lines = list(read_lines(path, tmp_path))
    assert [line.metrics.step if line.metrics else None for line in lines] == [1, None, 2]
    assert max(len(line.text) for line in lines) <= LINE_BYTES + 1
    MetricsFile(path, start_step=2).close()
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "x: 2001-99-99",
        "x: &a [*a]",
        "<<: {a: 1}",
        "[" * 9999,
        "\0",
        "? [a]\n: 1",
        "1: 2",
        "x: !!binary aGk=",
        "x" * (2 << 20),
    ],
)
def test_a_recipe_file_may_hold_anything(run: RunDir, text: str) -> None:
    (run.path / "recipe.yaml").write_text(text)
    for reader in READERS.values():
        assert outcome(reader, run.path) != "a refusal without a fix"
    assert any("recipe.yaml cannot be used" in finding for finding in read_status(run).findings)


@pytest.mark.parametrize(
    "asset_id", ["/tmp/x", "../../x", "a/../../x", "", ".", "a//b", "~/x", "a\0", "x/" * 200 + "y" * 300]
)
def test_an_asset_id_is_no_path_out_of_the_checkpoint(asset_id: str) -> None:
    with pytest.raises(HarnessError) as caught:
        load_recipe("smoke", [f"data.asset_id={json.dumps(asset_id)}"])
    assert caught.value.code == "recipe-invalid"


def test_the_asset_ids_of_openpi_are_taken() -> None:
    assert (
        load_recipe("smoke", ["data.asset_id=physical-intelligence/libero"]).data.asset_id
        == "physical-intelligence/libero"
    )


def test_pillow_is_given_no_other_format_than_png(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS picture is a program, which Pillow lets Ghostscript run."""
    called: list[str] = []
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: called.append("gs"))
    views = run.path / "camera_views.png"
    for content in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        _encoded("JPEG"),
        _encoded("GIF"),
    ):
        views.write_bytes(content)
        assert "camera_views.png is not a picture" in Page(render(run)).text
    assert called == []


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def test_a_picture_of_many_pixels_is_not_decoded(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "MAX_PIXELS", 100 * 100)
    (run.path / "camera_views.png").write_bytes(picture(101, 100))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
    assert "too large a picture" in Page(render(run)).text


def test_a_picture_outside_of_the_run_is_not_shown(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(picture(8, 8))
    views = run.path / "camera_views.png"
    views.unlink()
    views.symlink_to(tmp_path / "holiday.png")
    html = render(run)
    assert "data:image" not in html
    assert "leads out of" in Page(html).text


def test_a_drawing_is_as_large_as_the_network_and_not_as_a_file_says(run: RunDir) -> None:
    _everything(run)
    body = json.loads((run.path / "checkpoint.json").read_text())
    for layer in (10**8, -1, 10**19):
        body["moved"]["blocks"][0]["layer"] = layer
        (run.path / "checkpoint.json").write_text(json.dumps(body))
        assert "checkpoint.json cannot be used" in Page(render(run)).text
    body["moved"]["blocks"] = [
        body["moved"]["blocks"][0] | {"name": f"part {i}", "layer": i % 1000} for i in range(20_000)
    ]
    (run.path / "checkpoint.json").write_text(json.dumps(body))
    assert len(render(run)) < 20 * 2**20
