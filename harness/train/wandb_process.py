"""wandb in a process of its own, told what to log by lines of JSON on stdin; what it has to say it answers on stdout.

Whatever happens here (a server that hangs, a full disk, a crash) happens to this process; the trainer never waits for it.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

INIT_TIMEOUT_S = 15


def say(text: str) -> None:
    sys.stdout.write(json.dumps(text) + "\n")
    sys.stdout.flush()


def start(told: dict[str, Any]) -> Any:
    """The wandb run: in the mode that is told, or offline when no server answers."""
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_S, disable_git=True, save_code=False, x_stats_pid=told["pid"])
    options: dict[str, Any] = {key: told[key] for key in ("id", "project", "name", "tags", "config", "dir")} | {"settings": settings, "resume": "allow"}
    if told["mode"] == "offline":
        return wandb.init(**options, mode="offline")
    try:
        return wandb.init(**options, mode=told["mode"])
    except Exception as error:
        # No network, or a key that the server refuses: the run is logged all the same, and can be synced later.
        say(f"wandb does not answer ({type(error).__name__}), so it logs offline; later: wandb sync {told['dir']}/wandb/offline-run-*")
        return wandb.init(**options, mode="offline")


def log(run: Any, told: dict[str, Any]) -> None:
    """Logs one message."""
    import wandb

    if "values" in told:
        run.log(told["values"], step=told["step"])
    elif "image" in told:
        run.log({told["image"]: wandb.Image(told["path"])}, step=told["step"])
    elif "summary" in told:
        run.summary.update(told["summary"])


def main() -> None:
    """Reads until the end: of what is told, when the trainer has ended, or of the trainer itself."""
    run: Any = None
    ended = False
    try:
        for line in sys.stdin:
            told = json.loads(line)
            ended = "finish" in told
            if ended:
                break
            run = start(told["start"]) if "start" in told else run
            log(run, told)
    except Exception as error:
        say(f"wandb is off for the rest of this run: {type(error).__name__}: {error}")
    if run is not None:
        run.finish(exit_code=0 if ended else 1)


if __name__ == "__main__":
    main()
