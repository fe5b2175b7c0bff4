"""`harness serve` as a child process on a free port of this machine, with a key that nobody else has."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.errors import HarnessError
from harness.evaluate.remote import Address
from harness.received.text import for_terminal
from harness.redact import redact
from harness.supervise.signals import SUPERVISOR

_SERVING = re.compile(r"serving on (ws://127\.0\.0\.1:\d+) ")
_ERROR = re.compile(r"error \[([a-z0-9-]+)\] (.*)")
_PART = re.compile(r"  (got|need|fix):\s+(.*)")
_LAST_WORDS = 40
# The longest that an end waits for the server's own end: it answers what is under way and writes its file.
_END_S = 30.0
Say = Callable[[str], None]


class Served:
    """A server of this evaluation alone. `address` is where it listens, once `ready` has returned."""

    def __init__(self, command: Sequence[str], key: str, patience_s: float, say: Say) -> None:
        self._key, self._patience_s, self._say = key, patience_s, say
        self._listens, self._uri = threading.Event(), ""
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # It ends with this process, however that ends. Ctrl-C on the terminal reaches only this process.
            env=os.environ | {SUPERVISOR: str(os.getpid())},
            start_new_session=True,
        )
        self._ears = threading.Thread(target=self._listen, daemon=True)
        self._ears.start()

    def ready(self) -> Address:
        """The server's address, once it listens. Loading and compiling may take minutes.

        Raises: HarnessError as the server said it, or "server-ended".
        """
        while not self._listens.wait(0.5):
            if self._process.poll() is not None:
                self._ears.join(5)
                break
        if not self._uri:
            raise self.died()
        return Address(self._uri, self._key, self._patience_s)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def died(self) -> HarnessError:
        """Why the server ended: its own refusal, or its last words."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._ears.join(5)
        words = [line for line in self._last_words if line.strip()]
        refusal = next(((n, m) for n, line in enumerate(words) if (m := _ERROR.match(line))), None)
        if refusal is not None:
            at, match = refusal
            parts = {m[1]: m[2] for line in words[at + 1 :] if (m := _PART.match(line))}
            return HarnessError(
                match[1],
                match[2],
                got=parts.get("got"),
                need=parts.get("need"),
                fix=parts.get("fix", "look at the lines above"),
            )
        code = self._process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return HarnessError(
            "server-ended",
            "the policy's server ended by itself; no episode was counted that it had not answered",
            got=f"{how}; its last words: {words[-1][:300]}" if words else f"{how}, without a word",
            need="a server that answers until the end",
            fix="signal 9 is a lack of memory: a smaller --batch, or --device cpu; then go on with --resume",
        )

    def end(self, *, kill: bool = False) -> None:
        """Ends the server; it writes what it did to serving.json. `kill`: at once."""
        if not kill and self.alive:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        self._ears.join(5)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = for_terminal(redact(line.decode(errors="replace").rstrip()))
            self._last_words.append(text)
            found = _SERVING.search(text)
            if found and not self._uri:
                self._uri = found[1]
                self._listens.set()
            elif not self._uri and not text.startswith((" ", "error")):
                self._say(text)
        self._listens.set()


@contextmanager
def served(checkpoint: str, options: Sequence[str], patience_s: float, say: Say) -> Iterator[Served]:
    """A server of the checkpoint, ended when the block ends. `options` are those of `harness serve`."""
    with tempfile.TemporaryDirectory(prefix="harness-evaluate-") as directory:
        key, file = secrets.token_urlsafe(32), Path(directory) / "key"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(key)
        where = ["--host", "127.0.0.1", "--port", "0", "--api-key-file", str(file)]
        command = [sys.executable, "-m", "harness.cli", "serve", *where, *options, "--", checkpoint]
        server = Served(command, key, patience_s, say)
        try:
            yield server
        finally:
            server.end(kill=sys.exc_info()[0] is not None)
