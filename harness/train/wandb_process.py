"""The process that runs wandb: it reads lines of JSON on stdin and writes its messages to stdout.

A fault here (a server that hangs, a full disk, a crash) stays in this process. The trainer never waits for
it.
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
    """The wandb run, in the requested mode, or offline if no server answers."""
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
        # No network, or a key that the server refuses: the run is still logged, and can be synced later.
        say(
            f"wandb does not answer ({type(error).__name__}), so it logs offline; later: wandb sync"
            f" {told['dir']}/wandb/offline-run-*"
        )
        return wandb.init(**options, mode="offline")


def catch_up(directory: Path, after: int, *, before: int) -> Iterator[dict[str, Any]]:
    """The metrics of steps before this attempt that wandb does not have.

    When a container ends, values that wandb had not yet written are lost.
    """
    try:
        for _, _, kept in read_lines(directory / METRICS, directory):
            if kept is not None and after < kept.step < before:
                yield {"values": values(kept), "step": kept.step}
    except OSError:
        return


def values(line: Metrics) -> dict[str, Any]:
    """The values of a line of metrics that wandb shows."""
    return line.model_dump(exclude={"step", "time", "frames"}, exclude_none=True)


def log(run: Any, told: dict[str, Any], after: int) -> None:
    """Logs one message.

    Values up to the step `after` are already there. They are the same to the last bit, because the same steps
    were computed a second time.
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
    """Reads messages until the trainer sends "finish" or its end of the pipe closes."""
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
                # Read before this attempt starts its own log. A server knows by itself where a run stands.
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
