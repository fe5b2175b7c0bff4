"""The stages of gpu_laws.py, in their order. Each gives whether its law holds, and what was found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_laws_book import judged_verdict
from benchmarks.gpu_laws_kills import kills
from benchmarks.gpu_laws_openpi import openpi
from benchmarks.gpu_laws_place import ON_A_CPU, Place, Skipped, sound
from harness.artifacts import Manifest
from harness.run.directory import KERNELS, RunDir, sha256_file

# XLA may choose kernels by timing, and takes none that is not deterministic.
CHOSEN_BY_TIMING = "--xla_gpu_deterministic_ops=false --xla_gpu_exclude_nondeterministic_ops=true"
# All that a run needs is the package's own: a card's machine has no network.
FROM_THE_PACKAGE = (
    "data.dataset=sample",
    "data.asset_id=sample",
    "data.tokenizer=sample",
    "weights.source=null",
)


def train(place: Place) -> tuple[bool, dict[str, Any]]:
    run = place.root / "whole"
    shutil.rmtree(run, ignore_errors=True)
    found = place.trained(run, f"--steps={place.steps}", *place.law())
    found["sound"] = sound(place, run)
    whole = found["checkpoints"][-1:] == [place.steps] and found["steps"] == place.steps
    return whole and found["sound"], found


def verify(place: Place) -> tuple[bool, dict[str, Any]]:
    done = place.harness(
        "verify", str(place.root / "whole"), "--steps=3", f"--device={place.device}", "--json"
    )
    if done.code == 2:
        raise RuntimeError(f"verify could not be done: {done.err[-1500:]}")
    return judged_verdict(json.loads(done.out))


def kernels(place: Place) -> tuple[bool, dict[str, Any]]:
    if place.rehearse:
        raise Skipped("a CPU's kernels are not chosen by timing")
    run, flags = place.root / "timed", {"XLA_FLAGS": CHOSEN_BY_TIMING}
    shutil.rmtree(run, ignore_errors=True)
    for cache in ("cache-timed", "cache-timed-empty"):
        shutil.rmtree(place.root / cache, ignore_errors=True)
    found = place.trained(run, "--steps=4", *place.law(), cache="cache-timed", **flags)
    manifest, kept = RunDir(run).read(Manifest), run / KERNELS
    assert manifest is not None
    written = kept.is_file() and sha256_file(kept) == manifest.kernels_sha256
    done = place.harness(
        "verify", str(run), "--steps=3", "--device=cuda", "--json", cache="cache-timed-empty", **flags
    )
    if done.code == 2:
        raise RuntimeError(f"verify could not be done: {done.err[-1500:]}")
    verdict = json.loads(done.out)
    holds, told = judged_verdict(verdict)
    status = {field["field"]: field["status"] for field in verdict["fields"]}
    used = status.get("kernels") == "equal" and "chose some anew" not in done.err
    size = kept.stat().st_size if kept.is_file() else None
    told |= {"written": written, "bytes_of_the_file": size, "used": used, "step_s": found["step_s"]}
    return holds and written and used, told


def real(place: Place) -> tuple[bool, dict[str, Any]]:
    run = place.root / "real"
    shutil.rmtree(run, ignore_errors=True)
    recipe = "smoke" if place.rehearse else "pi05_libero_lora"
    sizes = ON_A_CPU if place.rehearse else ("train.global_batch=32",)
    keys = (*FROM_THE_PACKAGE, *sizes, "train.save_every_steps=6", "train.log_every_steps=1")
    options = [f"--recipe={recipe}", "--steps=6", "--profile=3", *(f"--set={key}" for key in keys)]
    found = place.trained(run, *options)
    found["profile"] = _profile(place, run)
    # Gigabytes, of which nothing is asked any more.
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return found["steps"] == 6 and found["checkpoints"] == [6], found


def _profile(place: Place, run: Path) -> dict[str, Any]:
    """Where the time of a step went, in milliseconds. A machine without a profiler says why; no law fails."""
    done = place.harness("profile", str(run), "--json")
    if done.code != 0:
        return {"none": done.err[-500:]}
    told = json.loads(done.out)
    rows = {" ".join((row["part"], row["turn"])).strip(): row["seconds"] * 1e3 for row in told["rows"]}
    times = {name: told[name] for name in ("step_s", "busy_s", "link_s", "link_alone_s", "unnamed_s")}
    return times | {"ms": {name: round(ms, 2) for name, ms in rows.items()}}


Stage = Callable[[Place], tuple[bool, dict[str, Any]]]
# The most telling first.
STAGES: dict[str, Stage] = {
    "train": train,
    "kills": kills,
    "verify": verify,
    "kernels": kernels,
    "openpi": openpi,
    "real": real,
}
# Stage → the stage whose run it looks at.
NEEDS = {"kills": "train", "verify": "train"}
# Seconds, on a GPU. With openpi they are more than ten minutes together: the rest is another call's.
LIMITS = {"train": 120, "kills": 240, "verify": 80, "kernels": 120, "openpi": 330, "real": 180}
