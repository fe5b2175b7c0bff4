"""A connection between two processes of a run, as messages: lines of JSON."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from harness.received.json import parse_json

# Who connects says at once who it is, and is answered at once.
ANSWER_S = 10.0
# A process is lost if nothing comes from it for so long.
SILENT_S = 60.0
_CLOSE_S = 5.0
_LINE_BYTES = 2**24


class Gone(Exception):
    """The other end of a connection has closed it, or says nothing."""


class Line:
    """One connection, as messages."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(ANSWER_S)
        self._socket, self._rest, self._sending = connection, b"", threading.Lock()

    def patient(self) -> None:
        """Waits from now on as long as a process may be silent."""
        self._socket.settimeout(SILENT_S)

    def send(self, kind: str, body: Any = None) -> None:
        """Raises: Gone."""
        try:
            with self._sending:
                self._socket.sendall(json.dumps([kind, body]).encode() + b"\n")
        except OSError as error:
            raise Gone(words(error)) from error

    def receive(self) -> tuple[str, Any]:
        """Raises: Gone, also for what is no message."""
        while b"\n" not in self._rest:
            if len(self._rest) > _LINE_BYTES:
                raise Gone("it sends what is no message")
            try:
                data = self._socket.recv(2**16)
            except OSError as error:
                raise Gone(words(error)) from error
            if not data:
                raise Gone("it has closed the connection")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            kind, body = parse_json(line)
        except (ValueError, TypeError) as error:
            raise Gone("it sends what is no message") from error
        return str(kind), body

    def lives(self) -> bool:
        """Whether the other end has not closed the connection."""
        self._socket.setblocking(False)
        try:
            while data := self._socket.recv(2**16):
                self._rest += data
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self.patient()

    def close(self) -> None:
        """Closes the connection after the other end has read what was sent."""
        with suppress(OSError), self._socket:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(_CLOSE_S)
            deadline = time.monotonic() + _CLOSE_S
            while self._socket.recv(2**16) and time.monotonic() < deadline:
                pass


def words(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "it says nothing"
    return error.strerror or str(error)
