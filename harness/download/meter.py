"""What is common to the transfers of one download: the bytes that have come, and the end of all of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse

from harness.download.listing import RemoteFile

Progress = Callable[[int, int], None]


class Stopped(Exception):
    """The download was interrupted, or another file of it has failed."""


class Meter:
    """Sums the received bytes of all files, for the progress callback, and ends all transfers at once."""

    def __init__(self, remote: list[RemoteFile], progress: Progress | None) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._responses: set[HTTPResponse] = set()
        self._progress = progress
        self._have: dict[str, int] = {}
        self._sizes = {file.path: file.bytes or 0 for file in remote}

    def update(self, path: str, have: int, size: int | None = None) -> None:
        with self._lock:
            self._have[path] = have
            self._sizes[path] = size or self._sizes[path]
            if self._progress is not None:
                done = sum(self._have.values())
                self._progress(done, max(done, sum(self._sizes.values())))

    def stop(self) -> None:
        """Ends the transfers, also one that waits for a server that sends nothing. What has come is kept."""
        self._stopped.set()
        with self._lock:
            for response in self._responses:
                _hang_up(response)

    def wait(self, seconds: float) -> None:
        """Waits, unless `stop` was called.

        Raises: Stopped.
        """
        if self._stopped.wait(seconds):
            raise Stopped

    @contextmanager
    def reading(self, response: HTTPResponse) -> Iterator[None]:
        """A block that reads a body, and that `stop` can end."""
        with self._lock:
            self._responses.add(response)
        try:
            self.wait(0)
            yield
            self.wait(0)
        except (HTTPException, OSError) as error:
            if self._stopped.is_set():
                raise Stopped from error
            raise
        finally:
            with self._lock:
                self._responses.discard(response)


def _hang_up(response: HTTPResponse) -> None:
    """Ends the connection under a thread that reads from it; closing the file would wait for that thread."""
    raw = getattr(response.fp, "raw", None)
    held = getattr(raw, "_sock", None)
    if held is not None:
        with suppress(OSError):
            # Of the plain socket also under TLS, whose own end would write once more.
            socket.socket.shutdown(held, socket.SHUT_RDWR)
