"""A small client of the protocol: for `harness serve --check`, for `harness evaluate` and for load."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from websockets.sync.client import connect

from harness.errors import HarnessError
from harness.serve.access import SCHEME
from harness.serve.wire import pack, unpack


class Client:
    """A connection to a server, ours or openpi's. `metadata` is what the server said first.

    With `patience_s`, connecting and each answer may take so long; a longer wait raises TimeoutError, and no
    pings are sent: openpi's server answers none while it computes.
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
        self._connection.send(pack(dict(observation)))
        return self._received()

    def close(self) -> None:
        self._open.close()

    def _received(self) -> dict[str, Any]:
        frame = self._connection.recv(self._patience_s)
        if isinstance(frame, str):
            raise HarnessError(
                "server-refused",
                "the server refused the request",
                got=frame[:500],
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
