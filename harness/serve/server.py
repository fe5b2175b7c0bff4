"""The websocket server that openpi's clients talk to. Nothing in its event loop waits for the device.

The first message of a connection is the metadata. Then one binary frame comes in and one goes out; a text
frame is an error, and the connection lives.

Source: openpi src/openpi/serving/websocket_policy_server.py, commit 15a9616, for the protocol.
"""

from __future__ import annotations

import asyncio
import http
import logging
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from websockets.asyncio.server import Server as Listener
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from harness.errors import HarnessError
from harness.serve.access import Key, listenable, port_taken
from harness.serve.batch import Sampled
from harness.serve.desk import Desk, sentence
from harness.serve.record import Recorder
from harness.serve.tally import MEDIA_TYPE, Tally
from harness.serve.wire import FRAME_BYTES

HEALTH, METRICS = "/healthz", "/metrics"
# A compile on another thread, or a loaded machine, may keep a client from answering a ping for long.
_PING_S, _PONG_S = 20.0, 60.0
# Threads that read frames: resizing a large picture takes milliseconds without Python's lock.
_READERS = 2
_PATHS = ("/", "")
# The longest that a stop waits for what is under way.
DRAIN_S = 120.0
# Failed handshakes are counted and answered; their tracebacks are nobody's.
_silent = logging.getLogger("harness.serve.websockets")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class Settings(NamedTuple):
    """Where the server listens and to whom. Without `key` everybody who reaches the port is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    key: Key | None = None
    max_clients: int = 64


class Server:
    """Serves a desk until `stop` ends it.

    `tally` counts; `recorder` keeps requests, if given. `warn` hears what is wrong with requests that are
    answered nevertheless.
    """

    def __init__(
        self,
        desk: Desk,
        settings: Settings,
        tally: Tally,
        recorder: Recorder | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._desk, self._settings, self._tally, self._recorder = desk, settings, tally, recorder
        self._warn = warn
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="record")
        # Whoever has connected, also without a word so far.
        self._connected: weakref.WeakSet[ServerConnection] = weakref.WeakSet()
        self._open: set[ServerConnection] = set()
        self._busy: set[ServerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._lacking: set[str] = set()
        self.ended_by = "stop"

    def stop(self, why: str = "stop") -> None:
        """Begins the end: no new client, and those who wait get their answers. Called in the event loop.

        The second call ends at once.
        """
        if self._stop.is_set():
            self._hurry.set()
            return
        self.ended_by = why
        self._stop.set()

    async def run(self, ready: Callable[[int], None]) -> None:
        """Listens, calls `ready` with the port, and returns when the server was stopped and has answered.

        Raises: HarnessError "port-taken".
        """
        listener = await self._listen()
        try:
            ready(listener.sockets[0].getsockname()[1])
            await self._stop.wait()
            await self._drain(listener)
        finally:
            listener.close()
            await listener.wait_closed()
            self._readers.shutdown()
            self._writer.shutdown()

    async def _listen(self) -> Listener:
        connected = self._connected

        class Connection(ServerConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                connected.add(self)

        try:
            return await serve(
                self._client,
                # asyncio takes several hosts; websockets declares one.
                listenable(self._settings.host, self._settings.port),  # type: ignore[arg-type]
                self._settings.port,
                process_request=self._handshake,
                # A browser names its page's origin: no page may talk to a robot behind its user's back.
                origins=[None],
                compression=None,
                max_size=FRAME_BYTES,
                max_queue=1,
                ping_interval=_PING_S,
                ping_timeout=_PONG_S,
                close_timeout=5,
                logger=_silent,
                create_connection=Connection,
            )
        except OSError as error:
            raise port_taken(self._settings.host, self._settings.port, error) from error

    def _handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        """What is answered instead of a websocket: health, metrics, or why the client is not let in."""
        response = self._instead(connection, request)
        # Of websockets 16, which knows no other method, a request has no `method`.
        if response is not None and getattr(request, "method", "GET") == "HEAD":
            # Its headers alone, which say how long the body were.
            response.body = b""
        return response

    def _instead(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == HEALTH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        key = self._settings.key
        if key is not None and not key.opens(request.headers.get_all("Authorization")):
            self._tally.denied(unauthorized=True)
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "a wrong key, or none: send Authorization: Api-Key KEY\n"
            )
        if path == METRICS:
            response = connection.respond(http.HTTPStatus.OK, self._tally.text(draining=self._stop.is_set()))
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = MEDIA_TYPE
            return response
        # A reverse proxy may pass on a path of its own: a client of the policy is let in under any.
        if path not in _PATHS and not request.headers.get_all("Upgrade"):
            return connection.respond(http.HTTPStatus.NOT_FOUND, f"there is /, {HEALTH} and {METRICS}\n")
        if self._stop.is_set() or len(self._open) >= self._settings.max_clients:
            self._tally.denied(unauthorized=False)
            why = "the server is ending" if self._stop.is_set() else self._no_room()
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n")
        return None

    def _no_room(self) -> str:
        return f"{self._settings.max_clients} clients are connected: wait for one to leave (--max-clients)"

    async def _client(self, connection: ServerConnection) -> None:
        # Two handshakes may have been let in at once for one place.
        if self._stop.is_set() or len(self._open) >= self._settings.max_clients:
            self._tally.denied(unauthorized=False)
            await connection.close(CloseCode.TRY_AGAIN_LATER, "no room")
            return
        self._open.add(connection)
        self._tally.came()
        number = self._tally.connections
        gone = asyncio.ensure_future(connection.wait_closed())
        try:
            await connection.send(self._desk.metadata)
            await self._requests(connection, number, gone)
        except ConnectionClosed:
            pass
        finally:
            gone.cancel()
            self._open.discard(connection)
            self._busy.discard(connection)
            self._tally.went()

    async def _requests(self, connection: ServerConnection, number: int, gone: asyncio.Future[None]) -> None:
        asked, previous_s = 0, None
        while not self._stop.is_set():
            frame = await connection.recv()
            began = time.perf_counter()
            self._busy.add(connection)
            answer = await self._answer(frame, asked, began, previous_s, gone)
            asked += 1
            if answer is None:
                self._tally.ended("lost")
                return
            try:
                await connection.send(answer.frame)
            except ConnectionClosed:
                self._tally.ended("lost")
                return
            previous_s = time.perf_counter() - began
            if answer.sampled is not None:
                self._tally.answered(
                    {
                        "decode": answer.decode_s,
                        "wait": answer.sampled.wait_s,
                        "infer": answer.sampled.infer_s,
                        "encode": answer.encode_s,
                        "total": previous_s,
                    },
                    answer.sampled.rows,
                )
            if self._recorder is not None and isinstance(frame, bytes):
                await self._record(self._recorder, number, frame, answer.frame)
            self._busy.discard(connection)
        await connection.close(CloseCode.GOING_AWAY, "the server is ending")

    async def _record(self, recorder: Recorder, number: int, asked: bytes, answered: bytes | str) -> None:
        loop = asyncio.get_running_loop()
        if why := await loop.run_in_executor(self._writer, recorder.add, number, asked, answered):
            self._warn(f"recording has stopped, requests are answered as before: {why}")

    async def _answer(
        self,
        frame: bytes | str,
        asked: int,
        began: float,
        previous_s: float | None,
        gone: asyncio.Future[None],
    ) -> _Answer | None:
        """The answer to a frame, or the sentence of its refusal. None if the client is gone before."""
        loop = asyncio.get_running_loop()
        sampled: Sampled | None = None
        try:
            decoded = await loop.run_in_executor(self._readers, self._desk.read, frame)
            if decoded.asked.is_cut and self._tally.cut():
                self._warn(_cut(decoded.asked.prompt_length, len(decoded.asked.tokens)))
            self._tell_lacking(self._desk.lacking(decoded.asked))
            # Without a seed of the client's own: the number of its request on this connection.
            seed = asked if decoded.asked.seed is None else decoded.asked.seed
            future = asyncio.wrap_future(self._desk.batcher.submit(decoded.asked, seed))
            either: set[asyncio.Future[Any]] = {future, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                future.cancel()
                return None
            sampled = future.result()
            ready = time.perf_counter()
            reply = self._desk.reply(decoded.asked, seed, sampled, ready - began, previous_s)
            return _Answer(reply, decoded.decode_s, time.perf_counter() - ready, sampled)
        except HarnessError as refusal:
            failed = sampled is not None or refusal.code == "inference-failed"
            self._tally.ended("failed" if failed else "refused")
            return _Answer(sentence(refusal))
        except Exception as error:
            self._tally.ended("failed")
            return _Answer(sentence(_unforeseen(error)))

    def _tell_lacking(self, cameras: set[str]) -> None:
        """Says once of each camera that a request came without its picture."""
        for camera in sorted(cameras - self._lacking):
            self._warn(
                f"a request has no picture of {camera}: the model does not see that camera, as in openpi's"
                " server"
            )
        self._lacking |= cameras

    async def _drain(self, listener: Listener) -> None:
        """Closes the port and every idle connection, and waits for those that are being answered."""
        listener.close(close_connections=False)
        for connection in self._open - self._busy:
            task = asyncio.ensure_future(connection.close(CloseCode.GOING_AWAY, "the server is ending"))
            self._tasks.add(task)
        deadline = time.monotonic() + DRAIN_S
        while self._open and time.monotonic() < deadline and not self._hurry.is_set():
            await asyncio.sleep(0.02)
        # An answer is not waited for any longer; nor is one who has connected and says nothing.
        for connection in list(self._connected):
            connection.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Answer(NamedTuple):
    """The frame to send; of actions also what they came from, and the seconds of reading and of writing."""

    frame: bytes | str
    decode_s: float = 0.0
    encode_s: float = 0.0
    sampled: Sampled | None = None


def _cut(length: int, limit: int) -> str:
    return (
        f"a prompt has {length} tokens and is cut to {limit}, as in training: the model does not see its end."
        f" Ask in fewer words, or train with --set model.prompt_tokens={length}"
    )


def _unforeseen(error: Exception) -> HarnessError:
    return HarnessError(
        "request-failed",
        "the request met something that nobody foresaw",
        got=type(error).__name__,
        need="an observation as the handshake's metadata says",
        fix="send another observation, and report this one with --record DIR",
    )
