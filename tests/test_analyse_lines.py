"""Tests the records that are read from lines of programs, terminals and people."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from harness.analyse import lines as lines_module
from harness.analyse import source as source_module
from harness.analyse.lines import read_records
from harness.analyse.source import open_source
from harness.errors import HarnessError
from tests.support.console_log import REPORT, falling, log, steps

TEXT = log(steps(), falling())
BAR = "\r  3%|▎         | 10/30000 [00:10<8:03:20,  1.00it/s]"


def read(text: str | bytes) -> lines_module.Records:
    return read_records(open_source("-", text if isinstance(text, bytes) else text.encode()).text)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Step 10: grad_norm=1.5705, loss=0.1146, param_norm=1803.1594",
            {"step": 10, "loss": 0.1146, "grad_norm": 1.5705, "param_norm": 1803.1594},
        ),
        (
            "Step 10: grad_norm=1,5705, loss=0,1146, param_norm=1803,1594",
            {"step": 10, "loss": 0.1146, "grad_norm": 1.5705, "param_norm": 1803.1594},
        ),
        (
            "Step 1,000: loss=0.1146, param_norm=1,803.1594",
            {"step": 1000, "loss": 0.1146, "param_norm": 1803.1594},
        ),
        ("Step 10: loss=nan, grad_norm=inf", {"step": 10, "loss": np.nan, "grad_norm": np.inf}),
        ("Step 10: loss=1.2e-05", {"step": 10, "loss": 1.2e-5}),
        ("\x1b[32mStep 10\x1b[0m: loss=\x1b[1;31m0.5\x1b[0m", {"step": 10, "loss": 0.5}),
        (BAR + "\rStep 10: loss=0.5", {"step": 10, "loss": 0.5}),
        (BAR[1:] + " Step 10: loss=0.5", {"step": 10, "loss": 0.5}),
        (
            "step 3/60  loss 2.2422  grad_norm 1.794  0.59 s a step  33.8 s left",
            {"step": 2, "loss": 2.2422, "grad_norm": 1.794, "step_s": 0.59},
        ),
        (
            "step 3/60  loss 2.2422  grad_norm 1.794  5 min 03 s a step  4 h 40 min left",
            {"step": 2, "loss": 2.2422, "grad_norm": 1.794, "step_s": 303},
        ),
        (
            "step 3/60  loss 2.2422  grad_norm 1.794  2 h 05 min a step",
            {"step": 2, "loss": 2.2422, "grad_norm": 1.794},
        ),
        (
            "step=100 loss=0.0231 lr=1.00e-06 grad_norm=1.22 time=12.3s",
            {"step": 100, "loss": 0.0231, "learning_rate": 1e-6, "grad_norm": 1.22},
        ),
        (
            '{"loss": 0.5, "_step": 4, "_timestamp": 1700000000.5}',
            {"step": 4, "loss": 0.5, "time": 1700000000.5},
        ),
        ('{"step":4,"loss":null,"grad_norm":NaN}', {"step": 4, "loss": np.nan, "grad_norm": np.nan}),
        (
            "12:30:01.500 [I] Step 10: loss=0.5  (1234:train.py:269)",
            {"step": 10, "loss": 0.5, "time": 45001.5},
        ),
        ("2026-01-02T00:00:01Z Step 10: loss=0.5", {"step": 10, "loss": 0.5, "time": 1767312001.0}),
    ],
)
def test_a_line(line: str, expected: dict[str, float]) -> None:
    columns = read(line + "\n").columns
    found = {
        name: values[0]
        for name, values in columns.items()
        if len(values) and not (np.isnan(values[0]) and name not in expected) and "has_" not in name
    }
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "line",
    [
        "steps 3 loss 3",
        "step one: loss=1",
        "Epoch 3 loss=0.1",
        "Step 3: accuracy=0.1",
        "loss=0.3",
        "5 steps to the loss",
    ],
)
def test_a_line_that_is_no_record(line: str) -> None:
    assert not len(read(line + "\n").columns["step"])


def test_a_mixture_of_forms_and_noise_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "_CHUNK_LINES", 3000)
    rng = np.random.default_rng(0)
    forms = (
        "Step {s}: grad_norm=1.2, loss={v:.4f}, param_norm=3.0",
        "Step {s}: loss={v:.4f}",
        '{{"step":{s},"loss":{v:.4f}}}',
        "12:00:00 I Step {s}: loss={v:.4f}",
    )
    values = np.round(rng.random(9000), 4)
    rows = []
    for s, v in enumerate(values):
        # Long stretches of one form, then of any.
        rows.append(forms[0 if s < 6500 else rng.integers(4)].format(s=s, v=v))
        if rng.random() < 0.01:
            rows.append("stepping over something else")
    found = read("\n".join(rows) + "\n")
    assert found.columns["step"].tolist() == list(range(9000))
    assert found.columns["loss"] == pytest.approx(values)


def test_commas_are_told() -> None:
    assert read(TEXT.replace(".", ",")).log.decimal_commas
    assert not read(TEXT).log.decimal_commas
    assert read(TEXT.replace(".", ",")).columns["loss"] == pytest.approx(read(TEXT).columns["loss"])


@pytest.mark.parametrize("cut", [1, 3, 9, 30, 50])
def test_a_last_line_that_is_cut_off_is_left_out(cut: int) -> None:
    found = read(TEXT[:-1])
    assert (len(found.columns["step"]), found.torn) == (300, 0)
    found = read(TEXT[: -1 - cut])
    assert len(found.columns["step"]) == 299
    assert found.columns["loss"] == pytest.approx(read(TEXT).columns["loss"][:299])


def test_a_json_line_that_is_cut_off_is_left_out() -> None:
    rows = "\n".join(json.dumps({"step": i, "loss": 0.5, "time": 1.5}) for i in range(5))
    assert len(read(rows).columns["step"]) == 5
    assert len(read(rows[:-2]).columns["step"]) == 4


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(TEXT.encode()),
        gzip.compress(TEXT[:9000].encode()) + gzip.compress(TEXT[9000:].encode()),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        "".join(BAR * 3 + "\r" + " " * 60 + "\r" + line + "\n" for line in TEXT.splitlines()).encode(),
        "".join(f"\x1b[2K\x1b[1;32m{line}\x1b[0m\n" for line in TEXT.splitlines()).encode(),
    ],
    ids=["gzip", "two gzips", "utf-16", "utf-8 mark", "crlf", "progress bar", "colours"],
)
def test_wrappings(data: bytes) -> None:
    assert read(data).columns["loss"] == pytest.approx(read(TEXT).columns["loss"])


def test_a_gzip_that_is_cut_off_is_partial() -> None:
    data = gzip.compress(log(range(20_000), falling(20_000)).encode())
    source = open_source("-", data[: len(data) // 2])
    assert 1000 < len(read_records(source.text).columns["step"]) < 19_000
    assert source.partial


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "log-empty"),
        (b" \n\n", "log-empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40, "log-binary"),
        (np.random.default_rng(0).bytes(50_000), "log-binary"),
        (b"\0" * 5000, "log-binary"),
    ],
)
def test_no_log_at_all(data: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "x.log").write_bytes(data)
    for path, stdin in (("-", data), (str(tmp_path / "x.log"), None)):
        with pytest.raises(HarnessError) as error:
            open_source(path, stdin)
        assert error.value.code == code


def test_places_that_hold_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def code_of(path: Path) -> str:
        with pytest.raises(HarnessError) as error:
            open_source(str(path))
        return error.value.code

    assert code_of(tmp_path / "nowhere") == "log-missing"
    assert code_of(tmp_path) == "run-without-metrics"
    assert code_of(Path("/dev/null")) == "log-unreadable"
    (tmp_path / "secret").write_text(REPORT)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source_module, "open_received", refuse)
    assert code_of(tmp_path / "secret") == "log-unreadable"
