"""Logs metrics to wandb, in a separate process behind a bounded queue.

wandb can neither block nor end training.
"""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import signal
import string
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.artifacts import Metrics
from harness.errors import HarnessError
from harness.received.files import LOCK_BYTES, read_received, there
from harness.received.text import word
from harness.recipe.schema import Recipe
from harness.redact import redact_value
from harness.run.directory import RunDir, directory_bytes, write_atomic
from harness.run.steps import whole_steps
from harness.train.wandb_process import values

WANDB_ID = "wandb_id.txt"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# The most messages that wait for a slow wandb. Beyond that, values are missing from wandb, never from
# metrics.jsonl.
MOST_WAITING = 10_000
# How long the end of a run waits for wandb to take what is left.
CLOSE_S = 30.0


class Wandb:
    """wandb in the mode that its own environment variables set.

    Without a key it is offline, so it never asks for one. It runs in a separate process. Every call here
    returns at once. A message from that process is given as a warning at the next call.
    """

    def __init__(
        self,
        run: RunDir,
        recipe: Recipe,
        config: dict[str, Any],
        *,
        start_step: int,
        warn: Callable[[str], None],
    ) -> None:
        self._warn, self._process, self._left_out = warn, None, 0
        self._directory = run.path.absolute()
        self._said: deque[str] = deque()
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        if mode == "disabled":
            return
        try:
            told = {
                "id": _run_id(run),
                "mode": mode,
                "config": config,
                "dir": str(self._directory),
                "pid": os.getpid(),
                "start_step": start_step,
            }
            # A session of its own: Ctrl-C goes to the trainer, which then ends this process itself.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.train.wandb_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, HarnessError) as error:
            warn(f"wandb is off for this run: {error}")
            return
        told |= {
            "project": os.environ.get("WANDB_PROJECT", "pi05-harness"),
            "name": self._directory.name,
            "tags": [recipe.name],
        }
        self._writer = threading.Thread(target=self._pass_on, daemon=True)
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._writer.start()
        self._reader.start()
        self._tell({"start": told})

    def write(self, lines: list[Metrics]) -> None:
        for line in lines:
            self._tell({"values": values(line), "step": line.step})

    def image(self, name: str, path: Path, step: int) -> None:
        self._tell({"image": name, "path": str(path.absolute()), "step": step})

    def held_out(self, step: int, values: dict[str, Any]) -> None:
        """Logs what the parameters after `step` steps do on the held-out episodes."""
        self._tell({"values": values, "step": step - 1})

    def checkpoint(self, step: int) -> None:
        """Logs that a checkpoint of this step was begun.

        `close` adds the checkpoints that exist at the end.
        """
        self._tell({"values": {"checkpoint_step": step}, "step": step - 1})

    def close(self) -> None:
        """Waits up to about CLOSE_S seconds for wandb to take what is left. The rest stays on disk."""
        if self._process is None:
            return
        self._tell({"summary": {"checkpoints": _checkpoints(self._directory)}})
        self._tell({"finish": True})
        deadline = time.monotonic() + CLOSE_S
        with suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_S)
        self._writer.join(max(0.0, deadline - time.monotonic()))
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._said.append(
                f"wandb did not end within {CLOSE_S:.0f} s and was left; later: wandb sync"
                f" {self._directory}/wandb/*run-*"
            )
        self._reader.join(1.0)
        if self._left_out:
            self._said.append(f"wandb was too slow: {self._left_out} values are only in metrics.jsonl")
        self._process = None
        self._repeat()

    def _tell(self, told: dict[str, Any]) -> None:
        if self._process is None:
            return
        try:
            self._waiting.put_nowait(told)
        except queue.Full:
            self._left_out += 1
        self._repeat()

    def _repeat(self) -> None:
        """Gives, in the trainer's own thread, the warnings that the other threads received."""
        while self._said:
            self._warn(self._said.popleft())

    def _pass_on(self) -> None:
        assert self._process is not None
        stdin = self._process.stdin
        assert stdin is not None
        while (told := self._waiting.get()) is not None:
            try:
                plain = json.loads(json.dumps(told, default=str))
                stdin.write(json.dumps(redact_value(plain)).encode() + b"\n")
                stdin.flush()
            except (OSError, ValueError):
                break
        with suppress(OSError):
            stdin.close()

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._said.append(str(json.loads(line)))
            except ValueError:
                continue  # a library printed
        status = self._process.wait()
        if status:
            self._said.append(f"wandb's process ended ({status}); metrics.jsonl has everything")


def _run_id(run: RunDir) -> str:
    """The run's id at wandb.

    A run keeps its id, even if it begins again because it was killed before its first checkpoint.
    Raises: HarnessError "wandb-id-invalid" for an id that is not a plain name, because files are searched for
    by it. UnsafeFile.
    """
    file = run.path / WANDB_ID
    known = read_received(file, run.path, LOCK_BYTES).decode(errors="replace").strip() if there(file) else ""
    if known and not _ID.fullmatch(known):
        need = "letters, digits, - and _"
        raise HarnessError(
            "wandb-id-invalid",
            f"{file} holds no id of a run at wandb",
            got=known[:80],
            need=need,
            fix=f"rm {word(file)}",
        )
    if known:
        return known
    made = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
    write_atomic(file, made + "\n")
    return made


def _checkpoints(run: Path) -> dict[str, dict[str, Any]]:
    """Step → path and bytes of each whole checkpoint on disk."""
    directory = RunDir(run).checkpoints
    try:
        paths = {str(step): directory / str(step) for step in whole_steps(directory)}
    except HarnessError:
        # A step that may not be read is told by the verbs that need it; it does not end a run.
        return {}
    return {name: {"path": str(path), "bytes": directory_bytes(path)} for name, path in paths.items()}
