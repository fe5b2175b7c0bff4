"""`harness serve` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


class Verb:
    """`harness serve` in a process of its own, on a free port."""

    def __init__(self, path: Path, run: Path, *options: str) -> None:
        command = [sys.executable, "-m", "harness.cli", "serve", str(path), "--port", "0", "--run", str(run)]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        self.said: list[str] = []
        self._heard = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        assert self._heard.wait(120), "".join(self.said)
        last = self.said[-1]
        assert "serving on ws://" in last, "".join(self.said)
        self.port = int(last.partition("ws://")[2].partition(" ")[0].rpartition(":")[2])

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if "serving on ws://" in line:
                self._heard.set()
        self._heard.set()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)
