"""The verbs and copies of a run that tests of verify have in common."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import flips
from harness.artifacts import Manifest
from harness.artifacts.verdict import Verdict
from harness.verify.fields import Found, weights_digests


def harness(cache: Path, *arguments: str, code: int | None = 0, **environment: str) -> str:
    env = (
        os.environ
        | {"HARNESS_CACHE": str(cache), "WANDB_MODE": "disabled", "HARNESS_LOCK_SHA256": flips.LOCK}
        | environment
    )
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert code is None or done.returncode == code, done.stderr[-3000:] + done.stdout[-2000:]
    return done.stdout


def verdict(place: Path, run: Path, *arguments: str, code: int = 0, **environment: str) -> Verdict:
    return Verdict.model_validate_json(
        harness(place / "cache", "verify", str(run), "--json", *arguments, code=code, **environment)
    )


def copy(place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(place / "run", tmp_path / "run")


def change_metrics(run: Path, place: Path) -> None:
    del place
    lines = (run / "metrics.jsonl").read_text().splitlines()
    body = json.loads(lines[1])
    body["loss"] = float(body["loss"]) * (1 + 1e-7)
    lines[1] = json.dumps(body)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


# --- the comparison itself ---


def found_as(manifest: Manifest, **changes: Any) -> Found:
    """What is found where everything is as the manifest says, but for `changes`."""
    same: dict[str, Any] = {
        name: getattr(manifest, name) for name in Found._fields if name in Manifest.model_fields
    }
    same |= {
        "weights": weights_digests(manifest.weights),
        "leaves": manifest.weights["leaves"],
        "plan": manifest.plan.levers.model_dump(mode="json"),
    }
    same |= {
        "files": {"dataset.json": manifest.dataset_sha256, "norm_stats.json": manifest.norm_stats_sha256}
    }
    return Found(**same | changes)
