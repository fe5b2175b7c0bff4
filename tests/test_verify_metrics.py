"""Tests how verify reads and compares metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import NormStats
from harness.artifacts.metrics_lines import LINE_BYTES
from harness.artifacts.verdict import Compared
from harness.errors import HarnessError
from harness.run.directory import sha256_json
from harness.run.xla_flags import in_order
from harness.verify.found import _environment
from harness.verify.replay import compare_metrics, recorded_metrics
from harness.verify.statistics import with_distance
from tests.support.report_run import full_run, manifest


def metrics(loss: float, step: int = 0) -> dict[int, dict[str, float]]:
    return {step: {"loss": loss, "grad_norm": 1.0, "param_norm": 2.0, "learning_rate": 1e-4}}


@pytest.mark.parametrize(
    ("recorded", "again", "tolerance", "status"),
    [
        (metrics(1.0), metrics(1.0), 0.0, "equal"),
        (metrics(1.0), metrics(1.0 + 2**-52), 0.0, "differs"),
        (metrics(1.0), metrics(1.01), 0.02, "equal"),
        (metrics(1.0), metrics(float("nan")), 0.02, "differs"),
        (metrics(float("nan")), metrics(float("nan")), 0.0, "equal"),
        (metrics(1.0), metrics(1.0, step=5), 0.0, "cannot tell"),
    ],
)
def test_metrics_are_compared_bit_for_bit_or_within_a_tolerance(
    recorded: Any, again: Any, tolerance: float, status: str
) -> None:
    assert compare_metrics(recorded, again, start=0, tolerance=tolerance, device="cpu").status == status


def test_of_a_step_that_was_replayed_the_last_line_counts(tmp_path: Path) -> None:
    values = {"grad_norm": 1, "param_norm": 1, "learning_rate": 1, "step_s": 1, "time": 1}
    lines = [json.dumps({"step": 0, "loss": loss} | values) for loss in (3.0, 4.0)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert recorded_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == 4.0
    with pytest.raises(HarnessError) as caught:
        recorded_metrics(tmp_path / "nothing.jsonl")
    assert caught.value.code == "metrics-missing"


@pytest.mark.parametrize("hosts", [1, 2])
def test_the_flag_by_which_one_process_computes_as_several_is_no_setting(hosts: int) -> None:
    recorded = manifest()
    levers = recorded.plan.levers.model_copy(update={"platform": "cpu", "devices": 2, "hosts": hosts})
    recorded = recorded.model_copy(update={"plan": recorded.plan.model_copy(update={"levers": levers})})
    flags = {"XLA_FLAGS": in_order({}), "JAX_PLATFORMS": "cpu"}
    remade = recorded.model_copy(update={"environment": flags})
    found = _environment(recorded, remade, {})
    assert found == (flags if hosts == 1 else {"JAX_PLATFORMS": "cpu"})
    if hosts == 2:
        own = {"XLA_FLAGS": "--xla_cpu_use_xnnpack=true"}
        assert _environment(recorded, remade, own) == {"JAX_PLATFORMS": "cpu"} | own


@pytest.mark.parametrize("torn", [b'{"step": 1, "lo', bytes(300)])
def test_the_half_line_of_a_killed_process_is_left_out(torn: bytes, tmp_path: Path) -> None:
    """Elsewhere in the file a line that is none is refused."""
    path = tmp_path / "metrics.jsonl"
    values = {"loss": 3, "grad_norm": 1, "param_norm": 1, "learning_rate": 1, "step_s": 1, "time": 1}
    whole = json.dumps({"step": 0} | values).encode() + b"\n"
    path.write_bytes(whole + torn)
    assert list(recorded_metrics(path)) == [0]
    for text in (whole + torn + b"\n" + whole, torn + b"\n", whole + b"x" * (LINE_BYTES + 9) + b"\n" + whole):
        path.write_bytes(text)
        with pytest.raises(HarnessError) as caught:
            recorded_metrics(path)
        assert caught.value.code == "metrics-invalid"


@pytest.mark.parametrize(
    ("times", "matters", "note"),
    [
        (1 + 2**-52, False, "by rounding alone: at most 6e-17 of the spread or the value, state[3].std"),
        (1.01, True, "by up to"),
    ],
)
def test_it_says_how_far_other_statistics_are(tmp_path: Path, times: float, matters: bool, note: str) -> None:
    """A processor that sums in another order is no other data."""
    run = full_run(tmp_path / "smoke-001")
    own = run.read(NormStats)
    assert own is not None
    state = own.norm_stats["state"]
    other = state.model_copy(update={"std": [*state.std[:3], state.std[3] * times, *state.std[4:]]})
    found = own.model_copy(update={"norm_stats": own.norm_stats | {"state": other}})
    row = Compared(field="norm_stats", status="differs")
    made = manifest(norm_stats_sha256=sha256_json(own.norm_stats))
    [told] = with_distance([row], run, made, found)
    assert (told.status, told.matters) == ("differs", matters)
    assert note in told.note
    # Whose file is not what its manifest says has no distance to tell.
    assert with_distance([row], run, manifest(), found) == [row]
