"""Where the stages of gpu_laws.py run, and until when; the verbs that they start, what a run says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_laws_book import Book
from harness.artifacts import Memory
from harness.run.directory import RunDir
from harness.run.steps import whole_steps

ROOT = Path(__file__).resolve().parents[1]
# All that a run needs is in the package, and a check of a network that is not there takes its time.
OFFLINE = {"HARNESS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
# A batch of 32 keeps the loader busy for a tenth of a second, in which a kill can fall.
ON_A_GPU = ("model.compute_dtype=bfloat16", "train.global_batch=32")
ON_A_CPU = ("model.image_size=56", "data.augment=false")


class Late(Exception):
    """The stage's time is over."""


class Skipped(Exception):
    """The stage has nothing to do here."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Place:
    """Where the runs are, on what they run, and until when (of time.monotonic) a stage may go on."""

    def __init__(
        self, root: Path, rehearse: bool, openpi: Path | None, python: Path | None, book: Book
    ) -> None:
        self.root, self.rehearse, self.openpi, self.book = root, rehearse, openpi, book
        self.python = str(python or sys.executable)
        self.until = 0.0

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def steps(self) -> int:
        return 60

    def law(self) -> list[str]:
        """The options of a small run on recorded frames, which saves at each fourth step and keeps all."""
        keys = (
            *(ON_A_CPU if self.rehearse else ON_A_GPU),
            "train.save_every_steps=4",
            "train.keep_every_steps=4",
        )
        return ["--recipe=smoke", *(f"--set={key}" for key in keys)]

    def left(self, why: str) -> float:
        """Seconds that the stage has left. Raises: Late with `why`."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise Late(why)
        return left

    def environment(self, cache: str = "cache", **variables: str) -> dict[str, str]:
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        known = {
            "PYTHONPATH": paths,
            "HARNESS_CACHE": str(self.root / cache),
            # An image has another, which is not empty when a stage wants an empty one.
            "JAX_COMPILATION_CACHE_DIR": str(self.root / cache / "jax"),
            "WANDB_MODE": "disabled",
        } | OFFLINE
        return os.environ | known | ({"JAX_PLATFORMS": "cpu"} if self.rehearse else {}) | variables

    @contextlib.contextmanager
    def started(self, command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
        """A process of a session of its own, of which nothing is left afterwards."""
        with (self.root / "out").open("w") as out, (self.root / "err").open("w") as err:
            process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=err, text=True, start_new_session=True
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self, command: list[str], environment: dict[str, str]) -> Ended:
        """How a command ended. Raises: Late."""
        what = " ".join(command[1:6])
        with self.started(command, environment) as process:
            try:
                code = process.wait(self.left(what))
            except subprocess.TimeoutExpired as error:
                raise Late(f"{what} was still at work: {tail(self.root / 'err')}") from error
        return Ended(code, (self.root / "out").read_text(), (self.root / "err").read_text())

    def harness(self, *arguments: str, cache: str = "cache", **variables: str) -> Ended:
        command = [sys.executable, "-m", "harness.cli", *arguments]
        return self.run(command, self.environment(cache, **variables))

    def trained(self, run: Path, *options: str, cache: str = "cache", **variables: str) -> dict[str, Any]:
        """What a run that ended says of itself. Raises: RuntimeError for one that failed."""
        begun = time.time()
        done = self.harness(
            "train", f"--run={run}", f"--device={self.device}", *options, cache=cache, **variables
        )
        if done.code != 0:
            raise RuntimeError(f"harness train ended with exit code {done.code}: {done.err[-1500:]}")
        return read(run) | {"seconds_of_the_verb": round(time.time() - begun, 1)}


def tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return lines[-1][:200] if lines else "it has said nothing"


def read(run: Path) -> dict[str, Any]:
    """Steps, losses and seconds of a run, and its memory: planned, compiled, and the allocator's peak."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    memory = RunDir(run).read(Memory)
    assert memory is not None
    bytes_ = {"planned": memory.predicted_bytes, "compiled": memory.compiled.get("device")}
    return {
        "steps": len(lines),
        "loss": [lines[0]["loss"], lines[-1]["loss"]],
        "step_s": sorted(line["step_s"] for line in lines)[len(lines) // 2],
        "checkpoints": whole_steps(run / "checkpoints"),
        "bytes": bytes_ | {"peak": memory.peak_bytes, "pool": memory.limit_bytes},
        "device": memory.device,
    }


def sound(place: Place, run: Path) -> bool:
    """Whether every array of the run's newest checkpoint is read back with its sha256."""
    return place.harness("inspect", str(run), "--deep", "--json").code == 0
