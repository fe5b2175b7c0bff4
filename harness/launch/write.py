"""The files of an engine: which there are, and how they come to the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.artifacts.launched import Launched
from harness.errors import HarnessError
from harness.launch import compose, kubernetes, ray, slurm
from harness.launch.asked import Asked, Engine
from harness.received.text import word
from harness.run.directory import RECIPE, RunDir, write_atomic

_FILES: dict[Engine, dict[str, Callable[[Asked], str | None]]] = {
    "slurm": {slurm.FILE: slurm.batch_script},
    "kubernetes": {
        kubernetes.TRAIN_JOB_FILE: kubernetes.train_job,
        kubernetes.JOB_SET_FILE: kubernetes.job_set,
        kubernetes.JOB_FILE: kubernetes.indexed_job,
    },
    "compose": {compose.FILE: compose.compose_file, RECIPE: compose.recipe_file},
    "ray": {ray.FILE: ray.ray_script},
}


def texts(asked: Asked) -> dict[str, str]:
    """File name → text, of all files that the engine is given.

    Raises: HarnessError "launch-path".
    """
    made = {name: text_of(asked) for name, text_of in _FILES[asked.engine].items()}
    return {name: text for name, text in made.items() if text is not None}


def write(asked: Asked) -> list[Path]:
    """Writes the files below `asked.out`. A file with the same bytes is left as it is.

    Raises: HarnessError "launch-exists" before anything is written, "not-writable", "disk-full".
    """
    made = {Path(asked.out) / name: text for name, text in texts(asked).items()}
    for path, text in made.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise HarnessError(
                "launch-exists",
                f"{path} is there already, and holds something else",
                need="a directory of its own for each launch",
                fix=f"--out OTHER, or remove it: rm {word(path)}",
            )
    for path, text in made.items():
        if not path.exists():
            write_atomic(path, text.encode())
    return list(made)


def launched(asked: Asked, files: list[Path]) -> Launched:
    """What was written, with the commands that start it. It is kept beside the files."""
    return keep(
        asked,
        Launched(
            engine=asked.engine,
            hosts=asked.hosts,
            run=asked.name if asked.engine == "kubernetes" else asked.run,
            recipe=asked.recipe,
            gpus=asked.gpus,
            plan=asked.plan,
            files=[str(path) for path in files],
            start=[start for path in files for start in _starts(asked, path)],
        ),
    )


def keep(asked: Asked, made: Launched) -> Launched:
    """Writes launch.json, and gives it back."""
    RunDir(asked.out).write(made)
    return made


def _starts(asked: Asked, path: Path) -> list[str]:
    """The commands that start the run from this file."""
    file = word(path)
    if asked.engine == "slurm":
        return [f"sbatch {file}"]
    if asked.engine == "kubernetes":
        return [f"kubectl apply -f {file}"]
    if asked.engine == "ray":
        return [f"ray job submit -- python {file}"]
    return compose.starts(asked, file) if path.name == compose.FILE else []
