"""A small client of the protocol: for `harness serve --check`, for `harness evaluate` and for load."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from harness.errors import HarnessError
from harness.serve.access import SCHEME
from harness.serve.wire import pack, unpack

# More of a server's text is not looked at.
_MOST_TEXT = 20_000


class Client:
    """A connection to a server, ours or openpi's. `metadata` is what the server said first.

    With `patience_s`, connecting, each request on its way and each answer may take so long; a longer wait
    raises TimeoutError, and no pings are sent: openpi's server answers none while it computes.
    """

    def __init__(self, uri: str, key: str | None = None, *, patience_s: float | None = None) -> None:
        headers = None if key is None else {"Authorization": f"{SCHEME} {key}"}
        self._open, self._patience_s = ExitStack(), patience_s
        waits = {} if patience_s is None else {"open_timeout": patience_s, "ping_interval": None}
        # No proxy of the environment stands between a robot and its policy.
        self._connection = self._open.enter_context(
            connect(uri, compression=None, max_size=None, additional_headers=headers, proxy=None, **waits)  # type: ignore[arg-type]
        )
        try:
            self.metadata: dict[str, Any] = self._received()
        except BaseException:
            self._open.close()
            raise

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to an observation.

        Raises: HarnessError "server-refused" with its sentence; ConnectionClosed; TimeoutError.
        """
        with self._patient():
            self._connection.send(pack(dict(observation)))
        return self._received()

    def close(self) -> None:
        with self._patient():
            self._open.close()

    @contextmanager
    def _patient(self) -> Iterator[None]:
        """A block that writes. A server that reads nothing any more would let it wait for ever.

        Raises: TimeoutError after `patience_s`; the connection is cut then.
        """
        if self._patience_s is None:
            yield
            return
        late = threading.Event()

        def cut() -> None:
            late.set()
            with suppress(OSError):
                # Of the plain socket also under TLS, whose own end would write once more.
                socket.socket.shutdown(self._connection.socket, socket.SHUT_RDWR)

        timer = threading.Timer(self._patience_s, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except ConnectionClosed as error:
            if late.is_set():
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()

    def _received(self) -> dict[str, Any]:
        frame = self._connection.recv(self._patience_s)
        if isinstance(frame, str):
            raise HarnessError(
                "server-refused",
                "the server refused the request",
                got=_said(frame),
                need="actions",
                fix="send what the server's sentence asks for",
            )
        found = unpack(frame)
        if not isinstance(found, dict):
            raise HarnessError(
                "server-refused",
                "the server's answer is no map",
                got=type(found).__name__,
                need="actions",
                fix="connect to a server of openpi's protocol, such as harness serve STEP",
            )
        return found


def _said(text: str) -> str:
    """A server's text. openpi's own sends a whole traceback, of which the end says what it was."""
    lines = [line.strip() for line in text[-_MOST_TEXT:].splitlines() if line.strip()]
    return lines[-1][:500] if text.startswith("Traceback ") and lines else text[:500]
