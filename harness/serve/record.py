"""What was asked and answered, kept in a directory: append-only, bounded, without keys.

A file is a sequence of msgpack maps, one a request: number, time, connection, asked (the client's frame),
and answered (the server's frame) or refused (its sentence). `msgpack.Unpacker` reads it; what the last map
lacks after a crash is left out. Headers, in which a key would stand, are not kept.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgpack

from harness.errors import HarnessError
from harness.received.text import word
from harness.units import GIB, format_bytes

SUFFIX = ".msgpack"
DEFAULT_BYTES = 4 * GIB
# What must stay free on the disk: a server that fills it stops whatever else writes there.
_LEAST_FREE_BYTES = GIB


class Recorder:
    """Writes a new file in `directory`. `limit_bytes` is of all recordings in it together.

    Raises: HarnessError "record-unwritable".
    """

    def __init__(self, directory: Path, limit_bytes: int = DEFAULT_BYTES) -> None:
        self._limit, self._number = limit_bytes, 0
        self.full: str | None = None
        name = f"record-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}{SUFFIX}"
        self.path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._bytes = sum(
                path.lstat().st_size for path in directory.iterdir() if path.name.endswith(SUFFIX)
            )
            # What a robot saw is for nobody else on the machine.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            # Unbuffered, so that closing has nothing left to write that could fail a second time.
            self._file = os.fdopen(os.open(self.path, flags, 0o600), "ab", buffering=0)
        except OSError as error:
            raise HarnessError(
                "record-unwritable",
                f"requests cannot be recorded in {directory}",
                got=error.strerror or str(error),
                need="a directory that this user may write",
                fix=f"--record ANOTHER, or mkdir -p {word(directory)} && chmod u+rwx {word(directory)}",
            ) from error

    def add(self, connection: int, asked: bytes, answered: bytes | str) -> str | None:
        """Appends a request. Once the limit is reached, or the disk is, nothing more is written.

        Returns why, for the first request that is not written; else None.
        """
        if self.full is not None:
            return None
        body = {"number": self._number + 1, "time": time.time(), "connection": connection, "asked": asked}
        body["refused" if isinstance(answered, str) else "answered"] = answered
        packed: bytes = msgpack.packb(body)
        self.full = self._written(packed)
        if self.full is None:
            self._number += 1
            self._bytes += len(packed)
        return self.full

    def _written(self, packed: bytes) -> str | None:
        """Writes a map. Returns why not, if so."""
        if self._bytes + len(packed) > self._limit:
            return f"{format_bytes(self._limit)} are recorded in {self.path.parent}"
        try:
            disk = os.statvfs(self.path.parent)
            if disk.f_bavail * disk.f_frsize < _LEAST_FREE_BYTES + len(packed):
                return f"less than {format_bytes(_LEAST_FREE_BYTES)} are free at {self.path.parent}"
            rest = packed
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        return None

    def summary(self) -> str:
        """What is in the file, and why no more, if so."""
        text = f"{self.path.name}: {self._number} requests"
        return text if self.full is None else f"{text}; then recording stopped: {self.full}"

    def close(self) -> None:
        self._file.close()
