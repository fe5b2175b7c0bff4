"""Where metrics go: metrics.jsonl always, wandb when it works. A sink never blocks or kills training."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.artifacts import Metrics
from harness.recipe import Recipe
from harness.rundir import RunDir, write_atomic

_WANDB_ID = "wandb_id.txt"
_ONLINE_TIMEOUT_S = 15


class MetricsFile:
    """metrics.jsonl: one line a step, no gap and no duplicate, also over a resume."""

    def __init__(self, path: Path, *, start_step: int) -> None:
        """Keeps the lines before `start_step`; what a killed run wrote past its last checkpoint is computed again."""
        kept = []
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    kept += [line] if Metrics.model_validate_json(line).step < start_step else []
                except ValueError:
                    continue  # the half line of a process killed while writing
        write_atomic(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, lines: list[Metrics]) -> None:
        self._file.write("".join(line.model_dump_json() + "\n" for line in lines))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Wandb:
    """wandb in the mode that its own environment variables say; offline when there is no key, so it never asks for one."""

    def __init__(self, run: RunDir, recipe: Recipe, config: dict[str, Any], *, start_step: int, warn: Callable[[str], None]) -> None:
        self._warn, self._run = warn, None
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        if mode == "disabled":
            return
        logging.getLogger("wandb").setLevel(logging.ERROR)
        id_file = run.path / _WANDB_ID
        known = id_file.read_text().strip() if id_file.is_file() and start_step > 0 else None
        self._guard(lambda: self._start(run, recipe, config, mode, known))
        if self._run is not None:
            write_atomic(id_file, self._run.id + "\n")

    def _start(self, run: RunDir, recipe: Recipe, config: dict[str, Any], mode: str, known: str | None) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", init_timeout=_ONLINE_TIMEOUT_S, disable_git=True, save_code=False)
        options: dict[str, Any] = {"id": known, "resume": "allow"} if known else {}
        options |= {"project": os.environ.get("WANDB_PROJECT", "pi05-harness"), "name": run.path.name, "tags": [recipe.name]}
        options |= {"mode": mode, "config": config, "dir": str(run.path), "settings": settings}
        try:
            self._run = wandb.init(**options)
        except Exception as error:
            if mode == "offline":
                raise
            # No network, or a key that the server refuses: the run is logged all the same, and can be synced later.
            self._warn(f"wandb does not answer ({type(error).__name__}), so it logs offline; later: wandb sync {run.path}/wandb/offline-run-*")
            self._run = wandb.init(**options | {"mode": "offline"})

    def write(self, lines: list[Metrics]) -> None:
        for line in lines:
            values = line.model_dump(exclude={"step", "time"})
            self._guard(lambda line=line, values=values: self._run and self._run.log(values, step=line.step))  # type: ignore[misc]

    def image(self, name: str, path: Path, step: int) -> None:
        def log() -> None:
            import wandb

            if self._run is not None:
                self._run.log({name: wandb.Image(str(path))}, step=step)

        self._guard(log)

    def close(self) -> None:
        self._guard(lambda: self._run and self._run.finish())

    def _guard(self, act: Callable[[], object]) -> None:
        """Training goes on without wandb when wandb fails, and says so once."""
        try:
            act()
        except Exception as error:
            self._run = None
            self._warn(f"wandb is off for the rest of this run: {type(error).__name__}: {error}")
