"""wandb in a process of its own, told what to log by lines of JSON on stdin; what it has to say it answers on
stdout.

Whatever happens here (a server that hangs, a full disk, a crash) happens to this process; the trainer never
waits for it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.artifacts import Metrics
from harness.artifacts.metrics_lines import read_lines
from harness.run.directory import METRICS
from harness.train.wandb_log import last_step

INIT_TIMEOUT_S = 15


def say(text: str) -> None:
    sys.stdout.write(json.dumps(text) + "\n")
    sys.stdout.flush()


def start(told: dict[str, Any]) -> Any:
    """The wandb run: in the mode that is told, or offline when no server answers."""
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_TIMEOUT_S,
        disable_git=True,
        save_code=False,
        x_stats_pid=told["pid"],
    )
    options: dict[str, Any] = {
        key: told[key] for key in ("id", "project", "name", "tags", "config", "dir")
    } | {"settings": settings, "resume": "allow"}
    if told["mode"] == "offline":
        return wandb.init(**options, mode="offline")
    try:
        return wandb.init(**options, mode=told["mode"])
    except Exception as error:
        # No network, or a key that the server refuses: the run is logged all the same, and can be synced
        # later.
        say(
            f"wandb does not answer ({type(error).__name__}), so it logs offline; later: wandb sync"
            f" {told['dir']}/wandb/offline-run-*"
        )
        return wandb.init(**options, mode="offline")


def catch_up(directory: Path, after: int, *, before: int) -> Iterator[dict[str, Any]]:
    """What to log of the steps before this attempt that wandb does not have: the end of a container takes
    what it had not written yet.
    """
    try:
        for _, _, kept in read_lines(directory / METRICS, directory):
            if kept is not None and after < kept.step < before:
                yield {"values": values(kept), "step": kept.step}
    except OSError:
        return


def values(line: Metrics) -> dict[str, Any]:
    """What wandb shows of a line of metrics."""
    return line.model_dump(exclude={"step", "time", "frames"}, exclude_none=True)


def log(run: Any, told: dict[str, Any], after: int) -> None:
    """Logs one message.

    Values up to the step `after` are there already, and the same to the last bit: they were computed a second
    time.
    """
    import wandb

    if told.get("step", after + 1) <= after:
        return
    if "values" in told:
        run.log(told["values"], step=told["step"])
    elif "image" in told:
        run.log({told["image"]: wandb.Image(told["path"])}, step=told["step"])
    elif "summary" in told:
        run.summary.update(told["summary"])


def main() -> None:
    """Reads until the end: of what is told, when the trainer has ended, or of the trainer itself."""
    run: Any = None
    ended, after = False, -1
    try:
        for line in sys.stdin:
            told = json.loads(line)
            ended = "finish" in told
            if ended:
                break
            if "start" in told:
                directory = Path(told["start"]["dir"])
                # Looked at before this attempt makes a log of its own; a server knows by itself where a run
                # stands.
                here = last_step(directory, told["start"]["id"])
                run = start(told["start"])
                after = here if run.offline else run.step - 1
                for missing in catch_up(directory, after, before=told["start"]["start_step"]):
                    log(run, missing, after)
            else:
                log(run, told, after)
    except Exception as error:
        say(f"wandb is off for the rest of this run: {type(error).__name__}: {error}")
    if run is not None:
        run.finish(exit_code=0 if ended else 1)


if __name__ == "__main__":
    main()
