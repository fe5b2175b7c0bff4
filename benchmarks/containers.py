"""Runs of the smoke recipe in real containers, confined as compose.yaml confines them.

They are started, watched from the host's files, ended, resumed and compared. The module needs Python and a
`docker` command, and nothing of the harness itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STEPS = 32
SAVE_EVERY = 4
TIMES = ("step_s", "data_s", "time")
SMALL = [
    "--recipe=smoke",
    f"--steps={STEPS}",
    *(
        f"--set={key}"
        for key in (
            "model.image_size=56",
            "data.augment=false",
            f"train.save_every_steps={SAVE_EVERY}",
            "train.keep_every_steps=1",
        )
    ),
]
_PATIENCE_S = 600


class Ended(NamedTuple):
    """How a container ended: its exit code, what it said, and whether the engine saw the kernel kill for
    memory.
    """

    code: int
    said: str
    oom: bool


class Image:
    """An image of the harness; `source` is a checkout whose package is mounted over the image's own.

    Its containers carry `labels`, each NAME=VALUE, and have the variables of `environment`.
    """

    def __init__(
        self,
        name: str,
        source: Path | None,
        labels: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self._mount = name, []
        self.labels = [word for label in labels for word in ("--label", label)]
        given = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"} | dict(environment or {})
        self._environment = [word for pair in given.items() for word in ("--env", "=".join(pair))]
        if source is not None:
            where = docker(
                "run",
                "--rm",
                "--entrypoint",
                "python",
                name,
                "-c",
                "import harness, os; print(os.path.dirname(harness.__file__))",
            )
            self._mount = ["--volume", f"{source.absolute() / 'harness'}:{where.strip()}:ro"]

    def options(self, *, runs: str, cache: Path, mode: str = "rw", tini: bool = True) -> list[str]:
        """What `docker run` takes before the image, as in compose.yaml."""
        return [
            *(["--init"] if tini else []),
            *(
                "--read-only",
                "--cap-drop",
                "ALL",
                "--security-opt",
                "no-new-privileges:true",
                "--network",
                "none",
            ),
            *(
                "--tmpfs",
                "/tmp:exec,mode=1777",
                "--shm-size",
                "256m",
                "--user",
                f"{os.getuid()}:{os.getgid()}",
            ),
            *self._environment,
            *("--volume", f"{runs}:/runs:{mode}", "--volume", f"{cache}:/cache"),
            *self._mount,
        ]


class Box:
    """One container, removed when it is left."""

    def __init__(self, image: Image, options: Sequence[str], verb: Sequence[str]) -> None:
        self.id = docker("run", "--detach", *image.labels, *options, image.name, *verb).strip()

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", self.id], capture_output=True, check=False)

    @property
    def runs(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self.id).strip() == "true"

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for it; a container that ends before, or takes too long, is an error."""
        deadline = time.monotonic() + _PATIENCE_S
        looked = time.monotonic()
        while not condition():
            if time.monotonic() - looked > 1:
                looked = time.monotonic()
                if not self.runs and not condition():
                    raise RuntimeError(f"it ended before {what}: {self.said()[-2000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"it took too long until {what}: {self.said()[-2000:]}")
            time.sleep(0.01)

    def said(self) -> str:
        done = subprocess.run(["docker", "logs", self.id], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def ended(self) -> Ended:
        """How it ended, when it has."""
        subprocess.run(["docker", "wait", self.id], capture_output=True, check=True, timeout=_PATIENCE_S)
        state = json.loads(docker("inspect", "--format", "{{json .State}}", self.id))
        return Ended(state["ExitCode"], self.said(), state["OOMKilled"])

    def trainer(self) -> int:
        """The trainer's process id on the host."""
        rows = (row.split(None, 1) for row in docker("top", self.id, "-eo", "pid,args").splitlines()[1:])
        return next((int(pid) for pid, arguments in rows if "harness.train.worker" in arguments), 0)

    def supervisor(self) -> int:
        rows = (row.split(None, 1) for row in docker("top", self.id, "-eo", "pid,args").splitlines()[1:])
        return next(
            (
                int(pid)
                for pid, arguments in rows
                if "bin/harness train" in arguments and "init" not in arguments
            ),
            0,
        )


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(arguments[:3])}: {done.stderr.strip()[-500:]}")
    return done.stdout


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run without their times; a last line that was cut is no line."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            body = json.loads(line)
        except ValueError:
            continue
        found.append({name: value for name, value in body.items() if name not in TIMES})
    return found


def steps(run: Path) -> list[int]:
    """The steps that have been renamed into place."""
    directory = run / "checkpoints"
    return (
        sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
        if directory.is_dir()
        else []
    )


def saving(run: Path) -> bool:
    """Whether a save is under way."""
    return any((run / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def digests(run: Path, step: int) -> dict[str, str]:
    """Array → sha256, as the save has taken it."""
    found: dict[str, str] = json.loads(
        (run / "checkpoints" / str(step) / "harness" / "digests.json").read_text()
    )["leaves"]
    return found


def unsound(image: Image, run: Path, cache: Path, step: int) -> list[str]:
    """What is wrong with a checkpoint when all of its arrays are read and compared with their sha256."""
    options = image.options(runs=str(run.parent), cache=cache)
    command = [
        "docker",
        "run",
        "--rm",
        *options,
        image.name,
        "inspect",
        f"/runs/{run.name}/checkpoints/{step}",
        "--deep",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        return [done.stderr.strip()[-300:]]
    found = json.loads(done.stdout)
    whole = [one["complete"] for one in found["steps"]] == [True]
    return [
        text
        for text in found["findings"]
        if "sha256" in text or "cannot be read" in text or "no stored data" in text
    ] + ([] if whole else ["not whole"])
