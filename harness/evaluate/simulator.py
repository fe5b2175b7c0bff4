"""One process of the simulator, asked and answered in frames, with a limit of time for each answer."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

from harness.errors import HarnessError
from harness.received.text import for_terminal
from harness.redact import redact
from harness.simulate.frames import receive, send
from harness.units import format_seconds

Start = Callable[[], "subprocess.Popen[bytes]"]
Arrays = dict[str, np.ndarray]
_LAST_WORDS = 40
# Codes of what went wrong with the process itself, and not with what it was asked.
GONE = ("simulator-died", "simulator-hung")


class Simulator:
    """A process of the simulator. `start` makes it, with pipes for its stdin, stdout and stderr.

    An answer may take `patience_s`.
    """

    def __init__(self, start: Start, patience_s: float) -> None:
        self._process = start()
        self._patience_s = patience_s
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._ears = threading.Thread(target=self._listen, daemon=True)
        self._ears.start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._from = _Patient(self._process.stdout.fileno())

    def ask(
        self,
        message: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        *,
        patience_s: float | None = None,
    ) -> tuple[dict[str, Any], Arrays]:
        """The answer to a message: the next frame.

        Raises: HarnessError "simulator-died", "simulator-hung"; those of `receive`.
        """
        try:
            send(self._to, message, arrays or {})
        except OSError as error:
            raise self._died(str(message.get("do"))) from error
        return self.hear(str(message.get("do")), patience_s)

    def hear(self, about: str, patience_s: float | None = None) -> tuple[dict[str, Any], Arrays]:
        """The next frame.

        Raises: as `ask`.
        """
        patience_s = self._patience_s if patience_s is None else patience_s
        self._from.until = time.monotonic() + patience_s
        try:
            found = receive(self._from)
        except TimeoutError as error:
            self.end(kill=True)
            raise HarnessError(
                "simulator-hung",
                "a process of the simulator gave no answer and was ended",
                got=f"nothing for {format_seconds(patience_s)} after {about!r}{self._words()}",
                need="an answer in that time",
                fix="fewer --workers, if the machine has less cores or memory; then --resume",
            ) from error
        except HarnessError as error:
            if error.code != "frame-cut":
                raise
            raise self._died(about) from error
        if found is None:
            raise self._died(about)
        return found

    def _died(self, about: str) -> HarnessError:
        self.end(kill=True)
        code = self._process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return HarnessError(
            "simulator-died",
            "a process of the simulator ended by itself",
            got=f"{how} after {about!r}{self._words()}",
            need="a process that answers",
            fix="its last words say why; signal 9 is a lack of memory: fewer --workers; then --resume",
        )

    def _words(self) -> str:
        words = [line for line in self._last_words if line.strip()]
        return f"; its last words: {words[-1][:300]}" if words else ", without a word"

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with suppress(OSError, ValueError):
            for line in self._process.stderr:
                self._last_words.append(for_terminal(redact(line.decode(errors="replace").rstrip())))

    def kill(self) -> None:
        """Ends the process at once; whoever waits for its answer hears that it died."""
        with suppress(OSError):
            self._process.kill()

    def end(self, *, kill: bool = False) -> None:
        """Ends the process: asks it to stop, and kills it if it does not."""
        if not kill and self._process.poll() is None:
            with suppress(OSError, ValueError):
                send(self._to, {"do": "stop"})
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self.kill()
        self._process.wait()
        self._ears.join(5)
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                if file is not None:
                    file.close()


class _Patient:
    """Reads from a pipe until a time.

    Raises: TimeoutError when it has come.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.until = 0.0

    def read(self, size: int, /) -> bytes:
        left_s = self.until - time.monotonic()
        if not self._poll.poll(max(0.0, left_s) * 1000):
            raise TimeoutError
        return os.read(self._descriptor, min(size, 1 << 20))
